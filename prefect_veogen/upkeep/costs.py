"""What the purchases of a store cost, summed up by what they were for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_veogen.errors import UnreadableReceipt
from prefect_veogen.ledger import Receipt, State
from prefect_veogen.ledger.ledger import LOST_MONEY_COUNTS
from prefect_veogen.process.concurrency import map_bounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_veogen.ledger import Ledger
    from prefect_veogen.ledger.receipt import LostAttempt

# Objects are stamped by the store's clock, receipts by that of the machine which bought.
_CLOCK_TOLERANCE = timedelta(hours=1)
_BEGINNING = datetime.min.replace(tzinfo=UTC)


class Grouping(NamedTuple):
    """By what costs are summed up; `label` is the label's name where it is by one."""

    by: Literal["model", "day", "campaign", "label"]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model, UTC day, campaign or label's value has cost; the key of what has none is empty."""

    key: str
    spent_usd: Decimal = Decimal(0)
    """Bought, at the price that was charged."""
    reserved_usd: Decimal = Decimal(0)
    """Being bought, at the quote."""
    in_doubt_usd: Decimal = Decimal(0)
    """Bought or not, at the quote."""

    @property
    def committed_usd(self) -> Decimal:
        """What budgets count of it."""
        return self.spent_usd + self.reserved_usd + self.in_doubt_usd

    def plus(self, other: Cost) -> Cost:
        """Return it with another one added, under its own key."""
        return replace(
            self,
            spent_usd=self.spent_usd + other.spent_usd,
            reserved_usd=self.reserved_usd + other.reserved_usd,
            in_doubt_usd=self.in_doubt_usd + other.in_doubt_usd,
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a store, days in their order and everything else by how much it is, and the damaged receipts."""

    rows: tuple[Cost, ...]
    damaged: tuple[UnreadableReceipt, ...] = ()

    @property
    def total(self) -> Cost:
        """The sum of all rows."""
        total = Cost("")
        for row in self.rows:
            total = total.plus(row)
        return total


@dataclass(slots=True)
class _Sums:
    """Costs as they are added up: of a hundred thousand receipts none is kept."""

    grouping: Grouping
    since: datetime
    rows: dict[str, Cost] = field(default_factory=dict)
    damaged: list[UnreadableReceipt] = field(default_factory=list)

    def add(self, receipt: Receipt) -> None:
        for sent_at, cost in _costs_of(receipt, self.grouping):
            if sent_at >= self.since:
                self.rows[cost.key] = self.rows.get(cost.key, Cost(cost.key)).plus(cost)


async def read_costs(ledger: Ledger, grouping: Grouping, since: datetime | None = None) -> Costs:
    """Return what the purchases of a store cost that were sent since a time. Free; belongs to the I/O loop.

    It counts as budgets do: a failed or refused purchase is nothing, one in doubt is its quote, and so is a lost
    attempt for a day after it was given up.
    """
    sums = _Sums(grouping, since or _BEGINNING)

    async def add(key: str) -> None:
        try:
            entry = await ledger.read(key)
        except UnreadableReceipt as error:
            sums.damaged.append(error)
        else:
            if entry is not None:
                sums.add(entry.receipt)

    await map_bounded(await ledger.list_keys(since and since - _CLOCK_TOLERANCE), add)
    by_key = sorted(sums.rows.values(), key=lambda row: row.key)
    if grouping.by != "day":
        by_key.sort(key=lambda row: row.committed_usd, reverse=True)
    return Costs(tuple(by_key), tuple(sums.damaged))


def _costs_of(receipt: Receipt, grouping: Grouping) -> Iterator[tuple[datetime, Cost]]:
    """Give what a receipt has cost or may cost, each amount with the time when it was sent."""
    sent_at = receipt.sent_at or (receipt.history[-1].at if receipt.history else _BEGINNING)
    price, quoted = receipt.price_usd or Decimal(0), receipt.quote_usd or Decimal(0)
    key = _key(receipt, receipt.request.model, sent_at, grouping)
    match receipt.state:
        case State.BOUGHT | State.STORED:
            yield sent_at, Cost(key, spent_usd=price)
        case State.RESERVED | State.SENDING:
            yield sent_at, Cost(key, reserved_usd=quoted)
        case State.IN_DOUBT:
            yield sent_at, Cost(key, in_doubt_usd=quoted)
    for also in receipt.also_bought:
        at = also.created_at or sent_at
        key = _key(receipt, receipt.request.model, at, grouping)
        yield at, Cost(key, spent_usd=quoted if also.price_usd is None else also.price_usd)
    for lost in receipt.lost:
        if lost.given_up_at > datetime.now(UTC) - LOST_MONEY_COUNTS:
            key = _key(lost, receipt.request.model, lost.sent_at, grouping)
            yield lost.sent_at, Cost(key, in_doubt_usd=lost.quote_usd or Decimal(0))


def _key(attempt: Receipt | LostAttempt, model: str, sent_at: datetime, grouping: Grouping) -> str:
    match grouping.by:
        case "model":
            return model
        case "day":
            return f"{sent_at.astimezone(UTC).date().isoformat()}"
        case "campaign":
            return attempt.campaign or ""
        case "label":
            return attempt.labels.get(grouping.label, "")
