"""A campaign's rows: checked and priced together before the first purchase, then made independently of each other."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from prefect_veogen.campaign.manifest import MOTION, Row, placeholder_image
from prefect_veogen.download.deliver import deliver, intact_asset
from prefect_veogen.errors import (
    BudgetExceeded,
    ChangeTheRequest,
    ChangeTheSetup,
    InsufficientBalance,
    InvalidManifest,
    InvalidRequest,
    PersonNeeded,
    StillRunning,
    VeogenError,
)
from prefect_veogen.ledger import State
from prefect_veogen.models import Asset, Certainty, GenerationRequest, in_usd, named_by_the_package
from prefect_veogen.process.io_loop import each, on_io
from prefect_veogen.purchase.plan import make_plan, priced
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait

if TYPE_CHECKING:
    from prefect_veogen.session import Session


class ItemStatus(StrEnum):
    """How a row ended."""

    OK = "ok"
    """Its assets are in the store."""
    FAILED = "failed"
    """It could not be made; what was bought for it is kept, and running again tries the rest."""
    BLOCKED = "blocked"
    """A cap, the balance or the set-up forbade to buy what is missing."""
    UNKNOWN = "unknown"
    """Paid for and not over yet, or a person must look."""


@named_by_the_package
@dataclass(frozen=True)
class CampaignItem:
    """How one row ended; `assets` holds the picture and, if it was animated, the clip.

    `price_usd` is what the row has cost; `undelivered_usd` tells, by generation, what of that is not in the store yet.
    """

    id: str
    status: ItemStatus
    assets: tuple[Asset, ...] = ()
    price_usd: Decimal = Decimal(0)
    error: str | None = None
    undelivered_usd: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def asset(self) -> Asset | None:
        """The row's last asset: the clip, if there is one."""
        return self.assets[-1] if self.assets else None


@named_by_the_package
@dataclass(frozen=True)
class CampaignReport:
    """How a campaign ended, row by row in the manifest's order."""

    name: str
    items: tuple[CampaignItem, ...]

    @property
    def price_usd(self) -> Decimal:
        """What the campaign has cost, in this run or earlier ones; what rows share was paid for once."""
        paid = {asset.generation_id: asset.price_usd or Decimal(0) for item in self.items for asset in item.assets}
        return sum(paid.values(), self.undelivered_usd)

    @property
    def undelivered_usd(self) -> Decimal:
        """What of that is for generations which are not in the store yet; the next run goes on with them."""
        return sum(
            {name: usd for item in self.items for name, usd in item.undelivered_usd.items()}.values(), Decimal(0)
        )

    @property
    def counts(self) -> dict[ItemStatus, int]:
        """How many rows ended how."""
        found = Counter(item.status for item in self.items)
        return {status: found[status] for status in ItemStatus if found[status]}

    def __str__(self) -> str:
        told = ", ".join(f"{count} {status.value}" for status, count in self.counts.items())
        undelivered = f", {in_usd(self.undelivered_usd)} of it not delivered yet" if self.undelivered_usd else ""
        return f"Campaign {self.name}: {told or 'no rows'}; {in_usd(self.price_usd)}{undelivered}"

    @property
    def by_need(self) -> list[CampaignItem]:
        """The rows, those which need a look first."""
        return sorted(self.items, key=lambda item: item.status is ItemStatus.OK)


def campaign_name(rows: Sequence[Row]) -> str:
    """Return a name for a campaign without one: the same rows have the same."""
    text = "\n".join(f"{row.id} {row.request.unsigned()!r} {row.motion!r}" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_ids(rows: Sequence[Row]) -> None:
    """Pass rows which have an id of their own each, as those of a manifest have.

    Raises:
        InvalidManifest: they haven't; the report could not tell them apart.
    """
    times = Counter(row.id for row in rows)
    if twice := [identity for identity, count in times.items() if count > 1]:
        raise InvalidManifest([f"id: {identity!r} is there {times[identity]} times" for identity in twice])


async def check_rows(session: Session, rows: Sequence[Row]) -> Decimal:
    """Pass rows which can be bought all together, and return what is still to be paid for them, in USD. Free.

    Raises:
        InvalidManifest: rows ask for what their models don't offer; all of them are named.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    return await on_io(_check_rows(session, rows))


async def make_assets(session: Session, row: Row, timeout_seconds: float | None = None) -> CampaignItem:
    """Return a row's assets, buying what is missing. COSTS MONEY; safe to repeat.

    Raises:
        VeogenError: it could not be made; `item_of_failure` says what that means for the row.
    """
    return await on_io(_make_assets(session, row, timeout_seconds))


async def item_of_failure(session: Session, row: Row, error: BaseException) -> CampaignItem:
    """Return how a row ended that raised an error, with what there is of it and what is paid for. Free."""
    match error:
        case StillRunning() | PersonNeeded():
            status = ItemStatus.UNKNOWN
        case ChangeTheSetup():
            status = ItemStatus.BLOCKED
        case _:
            status = ItemStatus.FAILED
    text = str(error) if isinstance(error, VeogenError) else f"{type(error).__name__}: {error}"
    try:
        assets, undelivered = await on_io(_paid_for(session, row))
    except VeogenError:
        return CampaignItem(row.id, status, error=text)
    for generation_id, usd in undelivered.items():
        status = ItemStatus.UNKNOWN
        text += f"\nGeneration {generation_id} is paid for ({in_usd(usd)}); the next run goes on with it."
    price = sum((asset.price_usd or Decimal(0) for asset in assets), sum(undelivered.values(), Decimal(0)))
    return CampaignItem(row.id, status, tuple(assets), price, text, undelivered)


async def _paid_for(session: Session, row: Row) -> tuple[list[Asset], dict[str, Decimal]]:
    """Return a row's assets in the store, and what else of it was bought: generation ids with their prices."""
    picture, undelivered = await _bought(session, row.request)
    if picture is None or row.motion is None:
        return [picture] if picture else [], undelivered
    clip, undelivered = await _bought(session, row.motion_request(picture))
    return [picture, clip] if clip else [picture], undelivered


async def _bought(session: Session, request: GenerationRequest) -> tuple[Asset | None, dict[str, Decimal]]:
    entry = await session.ledger.read(request.receipt_key(session.client.base_url))
    receipt = entry.receipt if entry else None
    if receipt is None or receipt.state not in (State.BOUGHT, State.STORED) or receipt.generation is None:
        return None, {}
    asset = await intact_asset(session.store, receipt)
    return asset, {} if asset else {receipt.generation.id: receipt.price_usd or Decimal(0)}


async def requests_of(session: Session, rows: Sequence[Row]) -> list[GenerationRequest]:
    """Return all requests that rows come to, as far as they are known before the pictures are made. Free."""
    api = session.client.base_url

    async def requests_of_row(row: Row) -> list[GenerationRequest]:
        if row.motion is None:
            return [row.request]
        # What a clip costs doesn't depend on its picture; whether it was bought does.
        picture = await stored_asset(session, row.request) or placeholder_image(row.request.receipt_key(api))
        return [row.request, row.motion_request(picture)]

    return [request for requests in await each(rows, requests_of_row) for request in requests]


async def _check_rows(session: Session, rows: Sequence[Row]) -> Decimal:
    await session.store.check()
    await _check_against_catalogue(session, rows)
    plan = await make_plan(session, await requests_of(session, rows))
    if plan.total_usd == 0 and plan.certainty is Certainty.EXACT:
        return plan.total_usd  # what is bought already is to be had whatever the caps and the balance are now
    for budget in plan.budgets:
        if plan.certainty is Certainty.UNKNOWN:
            nameless = ", ".join(sorted({item.request.model for item in plan.items if item.usd is None}))
            raise BudgetExceeded.without_a_price(nameless)
        if plan.total_usd > budget.left_usd:
            raise BudgetExceeded(
                f"The campaign would cost {in_usd(plan.total_usd)} more, and the budget {budget.budget!r} of "
                f"{in_usd(budget.cap_usd)} has {in_usd(max(budget.left_usd, Decimal(0)))} left",
                wanted_usd=plan.total_usd,
                left_usd=budget.left_usd,
                cap_usd=budget.cap_usd,
            )
    if plan.balance_usd is not None and plan.total_usd > plan.balance_usd:
        raise InsufficientBalance(
            f"The campaign would cost {in_usd(plan.total_usd)} more, and the account holds {in_usd(plan.balance_usd)}",
            required_usd=plan.total_usd,
            balance_usd=plan.balance_usd,
        )
    return plan.total_usd


async def _check_against_catalogue(session: Session, rows: Sequence[Row]) -> None:
    problems: list[str] = []
    unknown: dict[str, str] = {}  # asked for once, not once a row
    for number, row in enumerate(rows, start=1):
        parts = [("", row.request)]
        if row.motion is not None:
            parts.append((MOTION, row.motion_request(placeholder_image())))
        for prefix, request in parts:
            try:
                if request.model not in unknown:
                    await priced(session, request)
            except InvalidRequest as error:
                problems += [f"row {number} ({row.id}): {prefix}{problem}" for problem in error.problems]
            except ChangeTheRequest as error:
                unknown[request.model] = error.message
            if request.model in unknown:
                problem = f"model: {unknown[request.model]} (got {request.model!r})"
                problems.append(f"row {number} ({row.id}): {prefix}{problem}")
    if problems:
        raise InvalidManifest(problems)


async def _make_assets(session: Session, row: Row, timeout_seconds: float | None) -> CampaignItem:
    assets = [await _asset(session, row.request, timeout_seconds)]
    if row.motion is not None:
        assets.append(await _asset(session, row.motion_request(assets[0]), timeout_seconds))
    price = sum((asset.price_usd or Decimal(0) for asset in assets), Decimal(0))
    return CampaignItem(row.id, ItemStatus.OK, tuple(assets), price)


async def _asset(session: Session, request: GenerationRequest, timeout_seconds: float | None) -> Asset:
    purchase = await buy(session, request)
    generation = await wait(session, purchase.generation, timeout_seconds)
    return (await deliver(session, generation)).asset


async def stored_asset(session: Session, request: GenerationRequest) -> Asset | None:
    """Return the asset of a request if it is in the store, intact. Free."""
    entry = await session.ledger.read(request.receipt_key(session.client.base_url))
    return None if entry is None else await intact_asset(session.store, entry.receipt)
