"""A campaign's rows: validated and priced together before the first purchase, then made independently."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from prefect_veogen.campaign.cells import MOTION
from prefect_veogen.campaign.manifest import Row, placeholder_image
from prefect_veogen.campaign.report import CampaignItem, ItemStatus
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
from prefect_veogen.models import Asset, Certainty, GenerationRequest, in_usd
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.plan import make_plan, priced
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait

if TYPE_CHECKING:
    from prefect_veogen.session import Session


def campaign_name(rows: Sequence[Row]) -> str:
    """Return a name for a campaign without one: the same rows have the same."""
    text = "\n".join(f"{row.id} {row.request.unsigned()!r} {row.motion!r}" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_ids(rows: Sequence[Row]) -> None:
    """Validate that each row has an id of its own, as the rows of a manifest have.

    Raises:
        InvalidManifest: some share one; the report could not distinguish them.
    """
    times = Counter(row.id for row in rows)
    if twice := [identity for identity, count in times.items() if count > 1]:
        raise InvalidManifest([f"id: {identity!r} is used {times[identity]} times" for identity in twice])


async def check_rows(session: Session, rows: Sequence[Row]) -> Decimal:
    """Validate that all rows can be bought, and return what is still to be paid for them, in USD. Free.

    Raises:
        InvalidManifest: rows ask for what their models don't offer; all of them are named.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    return await on_io(_check_rows(session, rows))


async def make_assets(session: Session, row: Row, timeout_seconds: float | None = None) -> CampaignItem:
    """Return a row's assets, buying what is missing. COSTS MONEY; safe to repeat.

    Raises:
        VeogenError: it could not be made; `item_of_failure` turns that into the row's outcome.
    """
    return await on_io(_make_assets(session, row, timeout_seconds))


async def item_of_failure(session: Session, row: Row, error: BaseException) -> CampaignItem:
    """Return the outcome of a row that raised an error, with its assets so far and what is paid for. Free."""
    match error:
        case StillRunning() | PersonNeeded():
            status = ItemStatus.UNSETTLED
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
        status = ItemStatus.UNSETTLED
        text += f"\nGeneration {generation_id} is paid for ({in_usd(usd)}); the next run resumes it."
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
    """Return all requests of the rows, as far as they are known before the pictures are made. Free."""
    api = session.client.base_url

    async def requests_of_row(row: Row) -> list[GenerationRequest]:
        if row.motion is None:
            return [row.request]
        # What a clip costs doesn't depend on its picture; whether it was bought does.
        picture = await stored_asset(session, row.request) or placeholder_image(row.request.receipt_key(api))
        return [row.request, row.motion_request(picture)]

    return [request for requests in await map_bounded(rows, requests_of_row) for request in requests]


async def _check_rows(session: Session, rows: Sequence[Row]) -> Decimal:
    await session.store.check()
    await _check_against_catalogue(session, rows)
    plan = await make_plan(session, await requests_of(session, rows))
    if plan.total_usd == 0 and plan.certainty is Certainty.EXACT:
        return plan.total_usd  # already-bought rows skip the caps and the balance
    for budget in plan.budgets:
        if plan.certainty is Certainty.UNPRICED:
            unpriced = ", ".join(sorted({item.request.model for item in plan.items if item.usd is None}))
            raise BudgetExceeded.without_a_price(unpriced)
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
    unknown: dict[str, str] = {}  # each model is requested once, not once per row
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
