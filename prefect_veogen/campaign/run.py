"""A campaign's rows: validated and priced together before the first purchase, then made independently."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from prefect_veogen.campaign.columns import MOTION
from prefect_veogen.campaign.items import CampaignItem, ItemStatus, Step
from prefect_veogen.campaign.kinds import Kinds
from prefect_veogen.campaign.references import ROW, placeholder_image, with_pictures
from prefect_veogen.campaign.rows import Rows
from prefect_veogen.download.deliver import deliver, find_intact_asset
from prefect_veogen.errors import (
    ChangeTheRequest,
    ChangeTheSetup,
    InvalidManifest,
    InvalidRequest,
    PersonNeeded,
    StillRunning,
    VeogenError,
)
from prefect_veogen.ledger import State
from prefect_veogen.models import Asset, GenerationRequest, Kind, in_usd
from prefect_veogen.models.signed_links import without_queries
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.purchase.inputs import find_receipt_key, identify_inputs
from prefect_veogen.purchase.plan import Plan, PlanItem, Planner, ask_price, require_money
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait

if TYPE_CHECKING:
    from prefect_veogen.campaign.rows import Row
    from prefect_veogen.ledger import Receipt
    from prefect_veogen.session import Session

_BATCH = 500
Pictures = Mapping[str, Asset]
"""The pictures of rows that others use, by the rows' ids."""


def campaign_name(rows: Sequence[Row]) -> str:
    """Return a name for a campaign without one: the same rows have the same."""
    digest = hashlib.sha256()
    for number, row in enumerate(rows):
        line = f"{row.id} {row.request.unsigned()!r} {row.motion!r}"
        digest.update((f"\n{line}" if number else line).encode())
    return digest.hexdigest()[:12]


def check_ids(rows: Sequence[Row]) -> None:
    """Validate that each row has an id of its own, as the rows of a manifest have; variants share one.

    Raises:
        InvalidManifest: some share one, so that the report could not distinguish them; or one uses the picture of
            another that isn't there.
    """
    times = Counter(row.key for row in rows)
    if twice := [key for key, count in times.items() if count > 1]:
        raise InvalidManifest([f"id: {key[0]!r} is used {times[key]} times" for key in twice])
    _check_references(Rows.of(rows))


def _check_references(rows: Rows) -> None:
    if problems := rows.reference_problems():
        raise InvalidManifest(problems)


def for_row(session: Session, row: Row, campaign: str) -> Session:
    """Return the session in which a row of a campaign buys: with its labels, their caps, and what it takes along."""
    return replace(session.labelled(row.labels), campaign=campaign, carried=row.carried)


# ---------------------------------------------------------------- before the first purchase


async def check_rows(session: Session, *campaigns: Sequence[Row]) -> Decimal:
    """Validate that all rows of all campaigns can be bought, and return what is still to be paid, in USD. Free.

    Raises:
        InvalidManifest: rows ask for what their models don't offer; all of them are named.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    await session.store.check()
    given = [Rows.of(rows) for rows in campaigns]
    for rows in given:
        _check_references(rows)
        if problems := await find_problems(session, rows):
            raise InvalidManifest(problems)
    plan = await plan_rows(session, *given)
    require_money(session, plan, "The campaign")
    return plan.total_usd


async def plan_rows(session: Session, *campaigns: Sequence[Row], itemised: bool = False) -> Plan:
    """Return what the rows would cost now, as far as it is known before the pictures are made. Free."""
    planner = Planner(session)
    items = [item for rows in campaigns for item in await _add_rows(session, planner, Rows.of(rows), itemised=itemised)]
    return await planner.finish(items)


async def drop_edited(session: Session, rows: Rows) -> None:
    """Keep no outcome of a row that asks for something else now: by its receipts, so that it is made again. Free."""
    if not rows.unproven:
        return
    pictures: dict[str, Asset] = {}
    for number in rows.heroes_first:
        await asyncio.sleep(0)  # a hundred thousand take seconds, and others wait for this loop
        row = rows[number]
        item = rows.kept.get(row.key)
        if item is None:
            continue
        if row.key in rows.unproven and not await _is_outcome_of(session, item, row, pictures):
            del rows.kept[row.key]
        elif (picture := picture_of(item)) is not None and rows.lends(number):
            pictures[row.id] = picture
    rows.unproven.clear()


async def _is_outcome_of(session: Session, item: CampaignItem, row: Row, pictures: Pictures) -> bool:
    requests = [with_pictures(row.request, pictures)]
    if row.motion is not None:
        if (picture := picture_of(item)) is None:
            return False
        requests.append(row.motion_request(picture))
    try:
        return [step.receipt for step in item.steps] == [await find_receipt_key(session, each) for each in requests]
    except VeogenError:
        return item.fields == fields_of(row)  # an input is gone, or can't be read


def outcome_now(item: CampaignItem, row: Row) -> CampaignItem:
    """Return an earlier outcome of a row with what the row says of itself now: labels and columns may have changed."""
    return replace(item, fields=fields_of(row), labels=row.labels, carried=row.carried)


async def _add_rows(session: Session, planner: Planner, rows: Rows, *, itemised: bool) -> list[PlanItem]:
    items: list[PlanItem] = []
    await drop_edited(session, rows)
    pictures = await find_stored_pictures(session, rows)
    for batch in _batches(rows):
        requests = await map_bounded(batch, lambda row: _prepare_requests(session, row, pictures))
        caps = [session.labelled(row.labels).caps for row in batch]
        wanted = [(request, of_row) for of_row, made in zip(caps, requests, strict=True) for request in made]
        added = await planner.add(wanted)
        if itemised:
            where = [row.where for row, made in zip(batch, requests, strict=True) for _ in made]
            items += [replace(item, where=row) for item, row in zip(added, where, strict=True)]
    return items


async def find_stored_pictures(session: Session, rows: Rows) -> dict[str, Asset]:
    """Return the pictures that rows use of each other and that are in the store, by id. Free."""
    pictures: dict[str, Asset] = {}
    used = rows.used
    for number in rows.to_make if used else ():
        row = rows[number]
        if row.id in used and rows.lends(number):
            picture = await find_stored_asset(session, with_pictures(row.request, pictures))
            if picture is not None:
                pictures[row.id] = picture
    return pictures


async def _prepare_requests(session: Session, row: Row, pictures: Pictures) -> list[GenerationRequest]:
    request = with_pictures(row.request, pictures)
    if row.motion is None:
        return [request]
    # What a clip costs doesn't depend on its picture; whether it was bought does.
    picture = await find_stored_asset(session, request) or placeholder_image(await find_receipt_key(session, request))
    return [request, row.motion_request(picture)]


def _batches(rows: Rows) -> Iterator[list[Row]]:
    """Give the rows that are to be made, some hundreds at a time."""
    numbers = rows.to_make
    for start in range(0, len(numbers), _BATCH):
        yield [rows[number] for number in numbers[start : start + _BATCH]]


async def find_problems(session: Session, rows: Rows) -> list[str]:
    """Return what rows ask for that their models don't offer, and which of their inputs can't be used. Free."""
    await drop_edited(session, rows)
    problems: list[str] = []
    unknown: dict[str, str] = {}  # each model is requested once, not once per row
    kinds = Kinds(session)
    videos = {name for name in sorted(rows.used) if await kinds.find_kind(rows.by_id(name).request.model) is Kind.VIDEO}
    for batch in _batches(rows):
        inputs = await map_bounded(batch, lambda row: _find_input_problems(session, row))
        for row, of_inputs in zip(batch, inputs, strict=True):
            found = of_inputs + await _find_problems(session, row, unknown) + await kinds.find_problems(row)
            found += [f"image_urls: {ROW}{name} makes a video, not a picture" for name in row.uses if name in videos]
            problems += [f"{row.where}: {problem}" for problem in found]
    return problems


async def _find_input_problems(session: Session, row: Row) -> list[str]:
    """Return which of a row's own inputs can't be used."""
    try:
        await identify_inputs(session, row.request)
    except InvalidRequest as error:
        return [str(problem) for problem in error.problems]
    return []


async def _find_problems(session: Session, row: Row, unknown: dict[str, str]) -> list[str]:
    """Return what the catalogue has against a row; `unknown` keeps the models that it doesn't list."""
    problems: list[str] = []
    parts = [("", row.request)]
    if row.motion is not None:
        parts.append((MOTION, row.motion_request(placeholder_image())))
    for prefix, request in parts:
        try:
            if request.model not in unknown:
                await ask_price(session, request)
        except InvalidRequest as error:
            problems += [f"{prefix}{problem}" for problem in error.problems]
        except ChangeTheRequest as error:
            unknown[request.model] = error.message
        if request.model in unknown:
            problems.append(f"{prefix}model: {unknown[request.model]} (got {request.model!r})")
    return problems


async def _find_kind(session: Session, request: GenerationRequest) -> Kind:
    """Return what a request makes, as the catalogue says; a picture where it can't be asked."""
    return await session.catalogue.find_kind(request.model) or Kind.IMAGE


# ---------------------------------------------------------------- making one row


async def make_assets(
    session: Session, row: Row, pictures: Pictures, timeout_seconds: float | None = None
) -> CampaignItem:
    """Return a row's assets, buying what is missing. COSTS MONEY; safe to repeat.

    Raises:
        VeogenError: it could not be made; `describe_failure` turns that into the row's outcome.
    """
    request = with_pictures(row.request, pictures)
    made = [await _make(session, request, timeout_seconds)]
    if row.motion is not None:
        picture = made[0][0].asset
        assert picture is not None
        made.append(await _make(session, row.motion_request(picture), timeout_seconds))
    reused = all(is_reused for _, is_reused in made)
    return _item(session, row, ItemStatus.OK, steps=tuple(step for step, _ in made), reused=reused)


async def describe_failure(session: Session, row: Row, pictures: Pictures, error: BaseException) -> CampaignItem:
    """Return the outcome of a row that raised an error, with its assets so far and what is paid for. Free."""
    match error:
        case StillRunning() | PersonNeeded():
            status = ItemStatus.UNSETTLED
        case ChangeTheSetup():
            status = ItemStatus.BLOCKED
        case _:
            status = ItemStatus.FAILED
    failure: dict[str, Any] = {
        "error": str(error) if isinstance(error, VeogenError) else f"{type(error).__name__}: {error}",
        "error_type": type(error).__name__,
    }
    try:
        bought = await _read_purchases(session, row, pictures)
    except VeogenError:
        return _item(session, row, status, **failure)
    for step in (step for step, _ in bought if step.asset is None and step.generation_id is not None):
        status = ItemStatus.UNSETTLED
        failure["error"] += (
            f"\nGeneration {step.generation_id} is paid for ({in_usd(step.price_usd)}); the next run resumes it."
        )
    paid = [is_reused for step, is_reused in bought if step.generation_id is not None]
    steps = tuple(step for step, _ in bought)
    return _item(session, row, status, steps=steps, reused=all(paid) if paid else None, **failure)


def item_blocked_by(session: Session, row: Row, missing: CampaignItem, uses: str = "picture") -> CampaignItem:
    """Return the outcome of a row which uses the picture, or something else, of one that could not be made. Free."""
    reason = (missing.error or "").partition("\n")[0]
    return _item(
        session,
        row,
        ItemStatus.BLOCKED,
        error=f"The row {missing.id!r}, whose {uses} it uses, is {missing.status.value}: {reason}",
        error_type=missing.error_type,
    )


def _item(session: Session, row: Row, status: ItemStatus, **outcome: Any) -> CampaignItem:
    return CampaignItem(
        id=row.id,
        status=status,
        take=str(row.request.take),
        flow_run_id=session.flow_run_id,
        finished_at=datetime.now(UTC),
        fields=fields_of(row),
        labels=row.labels,
        carried=row.carried,
        **outcome,
    )


def fields_of(row: Row) -> dict[str, Any]:
    """Return a row's fields as a manifest has them; a link's query may be a secret and is left out."""
    fields = {
        name: [without_queries(item.uri if isinstance(item, Asset) else item) for item in value]
        if isinstance(value, tuple)
        else value
        for name, value in row.request.set_fields().items()
    }
    return fields | {f"{MOTION}{name}": value for name, value in (row.motion or {}).items()}


async def _make(session: Session, request: GenerationRequest, timeout_seconds: float | None) -> tuple[Step, bool]:
    """Return what was bought for a request, delivered, and whether this run paid nothing for it."""
    purchase = await buy(session, request)
    generation = await wait(session, purchase.generation, timeout_seconds)
    asset = (await deliver(session, generation)).asset
    assert purchase.generation.receipt is not None
    entry = await session.ledger.read(purchase.generation.receipt)
    assert entry is not None
    return _step(entry.receipt, asset, asset.kind), purchase.reused and not _paid_by(session, entry.receipt)


async def _read_purchases(session: Session, row: Row, pictures: Pictures) -> list[tuple[Step, bool]]:
    """Return what a row has bought so far, and for each purchase whether this run paid nothing for it."""
    request = with_pictures(row.request, pictures)
    bought = await _read_purchase(session, request)
    if bought is None or bought[0].asset is None or row.motion is None:
        return [] if bought is None else [bought]
    clip = await _read_purchase(session, row.motion_request(bought[0].asset))
    return [bought] if clip is None else [bought, clip]


async def _read_purchase(session: Session, request: GenerationRequest) -> tuple[Step, bool] | None:
    entry = await session.ledger.read(await find_receipt_key(session, request))
    if entry is None:
        return None
    receipt, asset = entry.receipt, None
    if receipt.state in (State.BOUGHT, State.STORED):
        asset = await find_intact_asset(session.store, receipt)
    kind = asset.kind if asset else await _find_kind(session, request)
    return _step(receipt, asset, kind), not _paid_by(session, receipt)


def _step(receipt: Receipt, asset: Asset | None, kind: Kind) -> Step:
    is_bought = receipt.state in (State.BOUGHT, State.STORED) and receipt.generation is not None
    return Step(
        kind=kind,
        receipt=receipt.key,
        asset=asset,
        generation_id=receipt.generation.id if is_bought and receipt.generation else None,
        price_usd=receipt.price_usd if is_bought else None,
        labels=receipt.labels if is_bought else {},
    )


def picture_of(item: CampaignItem) -> Asset | None:
    """Return the picture among what was made for a row."""
    return next((asset for asset in item.assets if asset.kind is Kind.IMAGE), None)


def _paid_by(session: Session, receipt: Receipt) -> bool:
    """Tell whether it was this flow run that bought: a task's second attempt finds what its first one paid for."""
    return session.flow_run_id is not None and receipt.flow_run_id == session.flow_run_id


async def find_stored_asset(session: Session, request: GenerationRequest) -> Asset | None:
    """Return the asset of a request if it is in the store, intact. Free."""
    entry = await session.ledger.read(await find_receipt_key(session, request))
    return None if entry is None else await find_intact_asset(session.store, entry.receipt)
