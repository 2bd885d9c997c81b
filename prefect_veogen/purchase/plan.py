"""What things would cost, item by item, without buying anything."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from prefect_veogen.api.client import balance_of
from prefect_veogen.api.pricing import quote, validate
from prefect_veogen.errors import ChangeTheRequest, InvalidRequest
from prefect_veogen.ledger import State
from prefect_veogen.models import Certainty, GenerationRequest, Quote, ReceiptKey
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.purchase.inputs import identify_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.ledger.budgets import Cap
    from prefect_veogen.session import Session


@dataclass(frozen=True, slots=True)
class PlanItem:
    """What one request would cost now; `usd` is 0 for what was bought before, `None` if nothing can be said."""

    request: GenerationRequest
    usd: Decimal | None
    certainty: Certainty
    already_bought: bool = False
    problem: ChangeTheRequest | None = None


@dataclass(frozen=True, slots=True)
class BudgetLeft:
    """What one budget still allows, what is reserved for these very requests included."""

    budget: str
    cap_usd: Decimal
    left_usd: Decimal


@dataclass(frozen=True, slots=True)
class Plan:
    """What a list of requests would cost now, and whether that can be paid."""

    items: tuple[PlanItem, ...]
    balance_usd: Decimal | None
    budgets: tuple[BudgetLeft, ...]

    @property
    def total_usd(self) -> Decimal:
        """The sum of all that is known; an upper bound if any item's price is one."""
        return sum((item.usd for item in self.items if item.usd is not None), Decimal(0))

    @property
    def certainty(self) -> Certainty:
        """How sure the total is: as sure as its least sure item."""
        found = {item.certainty for item in self.items if item.problem is None}
        return next((level for level in (Certainty.UNPRICED, Certainty.UPPER_BOUND) if level in found), Certainty.EXACT)

    @property
    def problems(self) -> tuple[PlanItem, ...]:
        """The items which would be refused."""
        return tuple(item for item in self.items if item.problem is not None)

    @property
    def is_affordable(self) -> bool:
        """Whether balance and budgets allow all of it, as far as they are known."""
        limits = [budget.left_usd for budget in self.budgets]
        if self.balance_usd is not None:
            limits.append(self.balance_usd)
        return all(self.total_usd <= limit for limit in limits)


async def make_plan(session: Session, requests: Sequence[GenerationRequest]) -> Plan:
    """Return what the requests would cost now. Free: reads inputs, the catalogue, the ledger and the balance.

    Equal requests with equal takes are one purchase, so that only the first of them has a price.
    """
    identified = await map_bounded(requests, lambda request: _identified(session, request))
    keys = [request.receipt_key(session.client.base_url) for request, _ in identified]
    bought = {
        key
        for key, known in zip(keys, await map_bounded(keys, lambda key: is_bought(session, key)), strict=True)
        if known
    }
    items, unpaid = [], {*keys} - bought
    for key, (request, problem) in zip(keys, identified, strict=True):
        items.append(problem or await _item(session, request, bought=key in bought))
        bought.add(key)
    budgets = [BudgetLeft(cap.budget, cap.usd, await _left(session, cap, unpaid)) for cap in session.caps]
    balance = await balance_of(session.client)
    return Plan(tuple(items), balance.remaining_usd if balance else None, tuple(budgets))


async def _identified(session: Session, request: GenerationRequest) -> tuple[GenerationRequest, PlanItem | None]:
    try:
        return await identify_inputs(session, request), None
    except InvalidRequest as problem:
        return request, PlanItem(request, None, Certainty.UNPRICED, problem=problem)


async def _item(session: Session, request: GenerationRequest, *, bought: bool) -> PlanItem:
    if bought:
        return PlanItem(request, Decimal(0), Certainty.EXACT, already_bought=True)
    try:
        price = await priced(session, request)
    except ChangeTheRequest as problem:
        return PlanItem(request, None, Certainty.UNPRICED, problem=problem)
    return PlanItem(request, price.usd, price.certainty)


async def priced(session: Session, request: GenerationRequest) -> Quote:
    """Return the quote of a request which the live model object allows.

    Raises:
        ChangeTheRequest: the model is unknown, or does not take the request as it stands.
    """
    model = await session.catalogue.get_model(request.model)
    validate(request, model)
    return quote(request, model)


async def _left(session: Session, cap: Cap, unpaid: set[str]) -> Decimal:
    """Return what a budget still allows these purchases, with what runs that died had reserved for them."""
    account = await session.budgets.account(cap.budget)
    own = sum(
        (held.usd for name, held in account.reserved.items() if ReceiptKey.of_reservation(name) in unpaid), Decimal(0)
    )
    return cap.usd - account.committed_usd + own


async def is_bought(session: Session, key: str) -> bool:
    """Tell whether a receipt says that the purchase of that key was made."""
    entry = await session.ledger.read(key)
    return entry is not None and entry.receipt.state in (State.BOUGHT, State.STORED)
