"""What things would cost, item by item, without buying anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from prefect_veogen.api.client import find_balance
from prefect_veogen.api.pricing import quote, validate
from prefect_veogen.errors import BudgetExceeded, ChangeTheRequest, InsufficientBalance, InvalidRequest
from prefect_veogen.ledger import State
from prefect_veogen.models import Certainty, GenerationRequest, Quote, ReceiptKey, in_usd
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.purchase.inputs import identify_inputs
from prefect_veogen.purchase.notices import note_refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.ledger.budgets import Cap
    from prefect_veogen.session import Session


_PAID = (State.BOUGHT, State.STORED)
_PERHAPS_PAID = (State.SENDING, State.IN_DOUBT)


@dataclass(frozen=True, slots=True)
class PlanItem:
    """What one request would cost now; `usd` is 0 for what was bought before, `None` if nothing can be said.

    `where` is the row of a manifest that it is for. What is `in_doubt` may have been charged already: its purchase was
    cut off, and is looked for before it is made again.
    """

    request: GenerationRequest
    usd: Decimal | None
    certainty: Certainty
    already_bought: bool = False
    in_doubt: bool = False
    problem: ChangeTheRequest | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True)
class BudgetLeft:
    """What these requests want of one budget and what it still allows, what is reserved for them included.

    `unpriced` names those of their models that have no price, which no cap allows.
    """

    budget: str
    cap_usd: Decimal
    left_usd: Decimal
    wanted_usd: Decimal
    unpriced: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a list of requests would cost now, and whether that can be paid.

    `total_usd` is the sum of all that is known, an upper bound if any item's price is one; `certainty` is that of the
    least sure item; `unpriced` names the models without a price. `in_doubt_usd` is the part of the total that may have
    left the balance already.
    """

    items: tuple[PlanItem, ...]
    total_usd: Decimal
    certainty: Certainty
    unpriced: frozenset[str]
    balance_usd: Decimal | None
    budgets: tuple[BudgetLeft, ...]
    in_doubt_usd: Decimal = Decimal(0)

    @property
    def problems(self) -> tuple[PlanItem, ...]:
        """The items which would be refused."""
        return tuple(item for item in self.items if item.problem is not None)

    @property
    def price(self) -> str:
        """What it comes to, in words: an amount, an amount at most, or that nobody knows."""
        if self.certainty is Certainty.UNPRICED:
            return f"an unknown amount (no price for {', '.join(sorted(self.unpriced))})"
        return f"{'at most ' if self.certainty is Certainty.UPPER_BOUND else ''}{in_usd(self.total_usd)}"

    @property
    def due_usd(self) -> Decimal:
        """What the balance has to hold: what is in doubt may have been taken from it, and would count twice."""
        return self.total_usd - self.in_doubt_usd

    @property
    def is_affordable(self) -> bool:
        """Whether balance and budgets allow all of it, as far as they are known."""
        if self.balance_usd is not None and self.due_usd > self.balance_usd:
            return False
        return all(budget.wanted_usd <= budget.left_usd and not budget.unpriced for budget in self.budgets)


Wanted = tuple[GenerationRequest, "tuple[Cap, ...]"]
"""A request, and the caps under which it would be bought."""


async def make_plan(session: Session, requests: Sequence[GenerationRequest]) -> Plan:
    """Return what the requests would cost now. Free: reads inputs, the catalogue, the ledger and the balance.

    Equal requests with equal takes are one purchase, so that only the first of them has a price.
    """
    planner = Planner(session)
    items = await planner.add([(request, session.caps) for request in requests])
    return await planner.finish(items)


class Planner:
    """Adds up what requests would cost, some at a time, so that there may be any number of them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._counted: set[str] = set()
        self._in_doubt: set[str] = set()
        self._total = Decimal(0)
        self._in_doubt_total = Decimal(0)
        self._certainties: set[Certainty] = set()
        self._unpriced: set[str] = set()
        self._wanted: dict[Cap, dict[str, Decimal]] = {cap: {} for cap in session.caps}
        self._unpriced_under: dict[Cap, set[str]] = {}

    async def add(self, wanted: Sequence[Wanted]) -> list[PlanItem]:
        """Return what each of these costs, given all that were added before. Free."""
        identified = await map_bounded(wanted, lambda one: _identify(self._session, one[0]))
        keys = [request.receipt_key(self._session.client.base_url) for request, _ in identified]
        new = list(dict.fromkeys(key for key in keys if key not in self._counted))
        states = await map_bounded(new, lambda key: _read_state(self._session, key))
        self._counted.update(key for key, state in zip(new, states, strict=True) if state in _PAID)
        self._in_doubt.update(key for key, state in zip(new, states, strict=True) if state in _PERHAPS_PAID)
        items = []
        for key, (request, problem), (_, caps) in zip(keys, identified, wanted, strict=True):
            item = problem or await _price_item(self._session, request, bought=key in self._counted)
            if key in self._in_doubt and not item.already_bought:
                item = replace(item, in_doubt=True)
            items.append(item)
            self._count(item, key, caps)
        return items

    def _count(self, item: PlanItem, key: str, caps: tuple[Cap, ...]) -> None:
        if item.problem is None:
            self._certainties.add(item.certainty)
            if item.usd is None:
                self._unpriced.add(item.request.model)
        if key in self._counted:
            return
        self._counted.add(key)
        self._total += item.usd or 0
        if item.in_doubt:
            self._in_doubt_total += item.usd or 0
        for cap in caps:
            self._wanted.setdefault(cap, {})[key] = item.usd or Decimal(0)
            if item.problem is None and item.usd is None:
                self._unpriced_under.setdefault(cap, set()).add(item.request.model)

    async def finish(self, items: Sequence[PlanItem] = ()) -> Plan:
        """Return the plan of all that was added; `items` are those it is to show. Free."""
        budgets = []
        for cap, wanted in self._wanted.items():
            left = await _read_left(self._session, cap, {*wanted})
            unpriced = frozenset(self._unpriced_under.get(cap, ()))
            budgets.append(BudgetLeft(cap.budget, cap.usd, left, sum(wanted.values(), Decimal(0)), unpriced))
        balance = await find_balance(self._session.client)
        levels = (Certainty.UNPRICED, Certainty.UPPER_BOUND)
        certainty = next((level for level in levels if level in self._certainties), Certainty.EXACT)
        return Plan(
            items=tuple(items),
            total_usd=self._total,
            certainty=certainty,
            unpriced=frozenset(self._unpriced),
            balance_usd=balance.remaining_usd if balance else None,
            budgets=tuple(budgets),
            in_doubt_usd=self._in_doubt_total,
        )


def check_money(plan: Plan, what: str) -> None:
    """Validate that balance and budgets allow all of a plan, which is called `what`.

    Raises:
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    if plan.total_usd == 0 and plan.certainty is Certainty.EXACT:
        return  # what is already bought skips the caps and the balance
    for budget in plan.budgets:
        if budget.unpriced:
            raise BudgetExceeded.without_a_price(", ".join(sorted(budget.unpriced)))
        if budget.wanted_usd > budget.left_usd:
            raise BudgetExceeded(
                f"{what} would cost {in_usd(budget.wanted_usd)} more, and the budget {budget.budget!r} of "
                f"{in_usd(budget.cap_usd)} has {in_usd(max(budget.left_usd, Decimal(0)))} left",
                wanted_usd=budget.wanted_usd,
                left_usd=budget.left_usd,
                cap_usd=budget.cap_usd,
                budget=budget.budget,
            )
    if plan.balance_usd is not None and plan.due_usd > plan.balance_usd:
        raise InsufficientBalance(
            f"{what} would cost {in_usd(plan.due_usd)} more, and the account holds {in_usd(plan.balance_usd)}",
            required_usd=plan.due_usd,
            balance_usd=plan.balance_usd,
        )


def require_money(session: Session, plan: Plan, what: str, request: GenerationRequest | None = None) -> None:
    """Validate as `check_money` does, before a purchase, and send `veogen.budget.refused` where a cap refuses it."""
    try:
        check_money(plan, what)
    except BudgetExceeded as refusal:
        note_refused(session, refusal, request)
        raise


async def _identify(session: Session, request: GenerationRequest) -> tuple[GenerationRequest, PlanItem | None]:
    try:
        return await identify_inputs(session, request), None
    except InvalidRequest as problem:
        return request, PlanItem(request, None, Certainty.UNPRICED, problem=problem)


async def _price_item(session: Session, request: GenerationRequest, *, bought: bool) -> PlanItem:
    if bought:
        return PlanItem(request, Decimal(0), Certainty.EXACT, already_bought=True)
    try:
        price = await ask_price(session, request)
    except ChangeTheRequest as problem:
        return PlanItem(request, None, Certainty.UNPRICED, problem=problem)
    return PlanItem(request, price.usd, price.certainty)


async def ask_price(session: Session, request: GenerationRequest) -> Quote:
    """Return the quote of a request which the live model object allows.

    Raises:
        ChangeTheRequest: the model is unknown, or does not take the request as it stands.
    """
    model = await session.catalogue.get_model(request.model)
    validate(request, model)
    return quote(request, model)


async def _read_left(session: Session, cap: Cap, unpaid: set[str]) -> Decimal:
    """Return what a budget still allows these purchases, with what runs that died had reserved for them."""
    account = await session.budgets.read_account(cap.budget)
    own = sum(
        (held.usd for name, held in account.reserved.items() if ReceiptKey.of_reservation(name) in unpaid), Decimal(0)
    )
    return cap.usd - account.committed_usd + own


async def _read_state(session: Session, key: str) -> State | None:
    entry = await session.ledger.read(key)
    return None if entry is None else entry.receipt.state
