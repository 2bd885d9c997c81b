"""The account's money: balance, bill and statement."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from prefect_veogen.sandbox.catalogue import Model
from prefect_veogen.sandbox.generations import Generation


class InsufficientBalanceError(Exception):
    """The purchase costs more than the balance holds; nothing was bought."""

    def __init__(self, required: Decimal, balance: Decimal) -> None:
        super().__init__(f"required {required} USD, balance {balance} USD")
        self.required = required
        self.balance = balance


@dataclass(frozen=True)
class Purchase:
    """One charge: made when the generation was created, refunded when it failed."""

    id: str
    model: str
    prompt: str
    price_usd: Decimal
    at: datetime
    refunded: bool


@dataclass(frozen=True)
class Bill:
    """All purchases so far; its length counts those not refunded."""

    purchases: tuple[Purchase, ...]

    @property
    def total_usd(self) -> Decimal:
        """Sum the purchases not refunded, in USD."""
        return sum((purchase.price_usd for purchase in self), Decimal("0.00"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Purchase]:
        return (purchase for purchase in self.purchases if not purchase.refunded)


@dataclass(frozen=True)
class StatementLine:
    """A final charge: its generation has completed."""

    number: int
    model: Model
    amount_usd: Decimal
    at: datetime


class Books:
    """Charges, refunds and the statement of one account. Not thread-safe: the engine's lock guards it."""

    def __init__(self, balance_usd: Decimal) -> None:
        self.balance_usd = balance_usd
        self.spent_usd = Decimal("0.00")
        self._charged: list[Generation] = []
        self._unsettled: list[tuple[float, int, Generation]] = []
        self._statement: list[StatementLine] = []

    def check_balance(self, price_usd: Decimal) -> None:
        """Raise InsufficientBalanceError unless the balance covers the price."""
        if self.balance_usd < price_usd:
            raise InsufficientBalanceError(price_usd, self.balance_usd)

    def charge(self, generation: Generation) -> None:
        """Take the price of a new generation from the balance; it is settled when the generation ends."""
        self.balance_usd -= generation.price_usd
        self.spent_usd += generation.price_usd
        self._charged.append(generation)
        heapq.heappush(self._unsettled, (generation.ends, generation.number, generation))

    def settle(self, now: float) -> None:
        """Refund what has failed by now, and put what has completed on the statement."""
        while self._unsettled and self._unsettled[0][0] <= now:
            _, _, generation = heapq.heappop(self._unsettled)
            if generation.fate == "failed":
                generation.refunded = True
                self.balance_usd += generation.price_usd
                self.spent_usd -= generation.price_usd
            elif generation.fate == "completed":
                number = len(self._statement) + 1
                line = StatementLine(number, generation.model, generation.price_usd, generation.completed_at)
                self._statement.append(line)

    def bill(self) -> Bill:
        """Return all purchases, oldest first."""
        return Bill(tuple(_purchase_of(generation) for generation in self._charged))

    def statement(self, model: str | None, kind: str | None) -> list[StatementLine]:
        """List the final charges, newest first."""
        lines = reversed(self._statement)
        return [line for line in lines if model in (None, line.model.slug) and kind in (None, line.model.kind)]


def _purchase_of(generation: Generation) -> Purchase:
    return Purchase(
        id=generation.id,
        model=generation.model.slug,
        prompt=generation.prompt,
        price_usd=generation.price_usd,
        at=generation.created_at,
        refunded=generation.refunded,
    )
