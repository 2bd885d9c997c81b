"""What a campaign flow is made of: read, check, make, publish; and a check of requests for flows of your own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect import Flow, get_run_logger, task
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from pydantic.json_schema import SkipJsonSchema

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.campaign.contact_sheet import make_tiles, page
from prefect_veogen.campaign.manifest import Row, placeholder_image
from prefect_veogen.campaign.manifest import read_manifest as _read_manifest
from prefect_veogen.campaign.records import Manifest
from prefect_veogen.campaign.report import CampaignItem, CampaignReport, ItemStatus
from prefect_veogen.campaign.run import (
    campaign_name,
    check_ids,
    check_rows,
    item_of_failure,
    make_assets,
    stored_asset,
)
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import Asset, GenerationRequest, in_usd, without_secrets
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.plan import is_bought, priced
from prefect_veogen.purchase.wait import check_timeout
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.session import Session
from prefect_veogen.tasks.generation import FREE, KeepsItsKind, check_is_request, is_retryable, session_for_task
from prefect_veogen.tasks.markdown import code, image, literal
from prefect_veogen.tasks.runs import name_flow_run, name_task_run, request_name, shorten

__all__ = [
    "CampaignItem",
    "CampaignReport",
    "ItemStatus",
    "LocalPath",
    "Manifest",
    "Row",
    "campaign_flow",
    "campaign_name",
    "check_campaign",
    "check_requests",
    "make_campaign",
    "placeholder_of",
    "publish_campaign",
    "read_manifest",
]

LocalPath = SkipJsonSchema[Path]
"""A `Path` that a flow takes where it takes a string; a deployment's form asks for the string alone."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_REPORTED_EVERY_SECONDS = 2.0
_LOGGED_EVERY_SECONDS = 15.0
_MAX_TABLE_ROWS = 1000
_MAX_PICTURES = 12
_MAX_KEPT_CHARACTERS = 256 * 1024
_MAX_NAME_CHARACTERS = 80


class _CampaignFlow(KeepsItsKind, Flow[Parameters, Result]):
    """A flow which runs with a list of any length, though Prefect keeps no more than half a megabyte of parameters."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        kept = super().serialize_parameters(parameters)
        rows = kept.get("manifest")
        if isinstance(rows, list) and len(json.dumps(rows)) > _MAX_KEPT_CHARACTERS:
            kept["manifest"] = f"{len(rows)} rows, too many to be kept here"
        return kept


def campaign_flow(**options: Any) -> Callable[[Callable[Parameters, Result]], Flow[Parameters, Result]]:
    """Return Prefect's `flow` decorator for a flow with a `manifest`, which may then be a list of thousands of rows.

    Of a list of more than 256 KB Prefect's record of the run keeps only the length, so that such a run can't be started
    again from there; one with a file or a link can.
    """
    options.setdefault("flow_run_name", name_flow_run(_name_of_campaign_run))
    return lambda function: _CampaignFlow(function, **options)


def _name_of_campaign_run(parameters: Mapping[str, Any]) -> str:
    manifest = parameters["manifest"]
    if parameters.get("name"):
        what = shorten(parameters["name"])
    elif isinstance(manifest, str | Path):
        what = shorten(without_secrets(str(manifest)).rstrip("/").rpartition("/")[2])
    else:
        what = _counted(manifest)
    return f"{what} (take {parameters.get('take', 1)})"


def _counted(rows: Sequence[Any]) -> str:
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}"


async def read_manifest(manifest: Manifest, take: int | str = 1) -> list[Row]:
    """Return the rows of a manifest, with all takes filled in by `take_of_slot`; see `campaign.manifest`."""
    return await _read_manifest(manifest, take, take_of_slot)


@task(
    name="check campaign",
    task_run_name=name_task_run("check", lambda of: f"{shorten(of['name'])}: {_counted(of['rows'])}"),
    description="Validates and prices all rows before the first purchase.",
    **FREE,
)
async def check_campaign(
    rows: Sequence[Row],
    *,
    name: str,
    budget_usd: Decimal | float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: str | Path | None = None,
) -> Decimal:
    """Return what is still to be paid for a campaign, in USD, if all of it can be. Free, and safe to repeat.

    Raises:
        InvalidManifest: rows ask for what their models don't offer; all of them are named.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    session = await session_for_task(credentials, store, _cap(name, budget_usd))
    left_to_pay = await check_rows(session, rows)
    session.log.info("%d rows, %s to pay", len(rows), in_usd(left_to_pay))
    return left_to_pay


@task(
    name="check requests",
    task_run_name=name_task_run("check", lambda of: _name_of_requests(of["requests"])),
    description="Validates and prices requests before the first of them is bought.",
    **FREE,
)
async def check_requests(
    *requests: GenerationRequest,
    credentials: VeogenCredentials | str | None = None,
    store: str | Path | None = None,
) -> None:
    """Validate and price requests before the first of them is bought. Free, and safe to repeat.

    For an input which another of the requests makes, give `placeholder_of` that request: it isn't made yet. What was
    bought before is not validated again.

    Raises:
        ChangeTheRequest: a model does not offer what a request asks for, so that not all of them could be bought.
    """
    for request in requests:
        check_is_request(request)
    await on_io(_check_requests(await session_for_task(credentials, store), requests))


def placeholder_of(request: GenerationRequest) -> Asset:
    """Return what stands for a request's picture while it isn't made yet: an input for `check_requests`. Free."""
    return placeholder_image(request.receipt_key(""))


async def _check_requests(session: Session, requests: Sequence[GenerationRequest]) -> None:
    makers = {placeholder_of(request).sha256: request for request in requests}
    for request in requests:
        known = await _with_stored_images(session, request, makers)
        if not await is_bought(session, known.receipt_key(session.client.base_url)):
            await priced(session, known)


async def _with_stored_images(
    session: Session, request: GenerationRequest, makers: Mapping[str, GenerationRequest]
) -> GenerationRequest:
    """Return the request with the stored picture for each placeholder: whether it was bought depends on that."""
    inputs = []
    for given in request.image_urls or ():
        maker = makers.get(given.sha256) if isinstance(given, Asset) else None
        inputs.append((await stored_asset(session, maker) if maker else None) or given)
    return request.model_copy(update={"image_urls": tuple(inputs)}) if inputs else request


def _name_of_requests(requests: Sequence[GenerationRequest]) -> str:
    more = f" and {len(requests) - 1} more" if len(requests) > 1 else ""
    return f"{request_name(requests[0])}{more}"


@task(
    name="make row",
    task_run_name=name_task_run("", lambda of: of["row"].id),
    description="Submits, waits and downloads for one row of a campaign.",
    retries=5,
    retry_delay_seconds=[2, 5, 15, 30, 60],
    retry_condition_fn=is_retryable,
    cache_policy=NO_CACHE,  # the ledger knows better what there is
)
async def make_row(
    row: Row,
    *,
    name: str,
    budget_usd: Decimal | float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: str | Path | None = None,
    timeout_seconds: float | None = None,
) -> CampaignItem:
    """Return one row's assets, buying what is missing. COSTS MONEY; safe to repeat.

    One task run for the whole row, not one per step: at hundreds of rows, recording runs is what costs.
    """
    session = await session_for_task(credentials, store, _cap(name, budget_usd))
    return await make_assets(session, row, timeout_seconds)


async def make_campaign(
    rows: Sequence[Row],
    *,
    name: str,
    budget_usd: Decimal | float | None = None,
    at_once: int = 300,
    credentials: VeogenCredentials | str | None = None,
    store: str | Path | None = None,
    timeout_seconds: float | None = None,
) -> CampaignReport:
    """Return how all rows ended, after making them, at most `at_once` at the same time. COSTS MONEY.

    One row's failure stops no other. Safe to repeat: only what is missing is bought.
    """
    if at_once < 1:
        raise ConfigurationError(f"at_once={at_once} makes nothing", next_step="Nothing was bought. Give 1 or more.")
    check_timeout(timeout_seconds)
    check_ids(rows)
    items: dict[str, CampaignItem] = {}

    async def make(row: Row) -> None:
        try:
            items[row.id] = await make_row(
                row,
                name=name,
                budget_usd=budget_usd,
                credentials=credentials,
                store=store,
                timeout_seconds=timeout_seconds,
            )
        except Exception as error:  # noqa: BLE001 - whatever it was, Prefect's own trouble too: it fails one row only
            items[row.id] = await item_of_failure(await session_for_task(credentials, store), row, error)

    async with _progress(name, len(rows), items):
        await map_bounded(rows, make, min(at_once, len(rows)))
    return CampaignReport(name, tuple(items[row.id] for row in rows))


@task(
    name="publish campaign",
    task_run_name=name_task_run("publish", lambda of: shorten(of["report"].name)),
    description="Writes the report and the contact sheet.",
    **FREE,
)
async def publish_campaign(
    report: CampaignReport,
    *,
    credentials: VeogenCredentials | str | None = None,
    store: str | Path | None = None,
) -> str:
    """Return where the contact sheet lies, after writing it and the run's artifacts (a table, some pictures). Free."""
    session = await session_for_task(credentials, store)
    tiles = await make_tiles(session, report.by_need)
    key = f"campaigns/{_plain(report.name)}/contact-sheet.html"
    await on_io(session.store.put(key, page(report, tiles).encode(), "text/html; charset=utf-8"))
    sheet = session.store.uri(key)
    summary = literal(str(report))
    await acreate_table_artifact(_table(report), key=f"campaign-{_plain(report.name)}", description=summary)
    pictures = [image(tile.item.id, picture) for tile in tiles for picture in tile.pictures[-1:]]
    markdown = f"# {summary}\n\nContact sheet: {code(sheet)}\n\n{' '.join(pictures[:_MAX_PICTURES])}\n"
    await acreate_markdown_artifact(markdown, key=f"campaign-{_plain(report.name)}-pictures")
    session.log.info("%s. Contact sheet: %s", report, sheet)
    return sheet


def _table(report: CampaignReport) -> list[dict[str, str]]:
    return [
        {
            "id": literal(item.id),
            "status": item.status.value,
            "price_usd": str(item.price_usd),
            "assets": literal(" ".join(asset.uri for asset in item.assets)),
            "error": literal((item.error or "").partition("\nWhat to do")[0]),
        }
        for item in report.by_need[:_MAX_TABLE_ROWS]
    ]


@asynccontextmanager
async def _progress(name: str, total: int, items: Mapping[str, CampaignItem]) -> AsyncIterator[None]:
    """Report how far a campaign is while it runs: a progress artifact in the UI, a line in the log now and then."""
    artifact = await acreate_progress_artifact(0.0, key=f"campaign-{_plain(name)}-progress", description=literal(name))
    reporting = asyncio.create_task(_report_progress(artifact, total, items))
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        await _update_progress(artifact, total, items)


async def _report_progress(artifact: UUID, total: int, items: Mapping[str, CampaignItem]) -> None:
    log, reported, logged_at = get_run_logger(), -1, time.monotonic()
    while True:
        await asyncio.sleep(_REPORTED_EVERY_SECONDS)
        if len(items) == reported:
            continue
        reported = len(items)
        await _update_progress(artifact, total, items)
        if time.monotonic() - logged_at >= _LOGGED_EVERY_SECONDS:
            logged_at = time.monotonic()
            log.info(_summary(total, items))


async def _update_progress(artifact: UUID, total: int, items: Mapping[str, CampaignItem]) -> None:
    # Progress is a courtesy: a server that can't take it must not end a campaign.
    with contextlib.suppress(Exception):
        await aupdate_progress_artifact(artifact, 100 * len(items) / total, _summary(total, items))


def _summary(total: int, items: Mapping[str, CampaignItem]) -> str:
    found = Counter(item.status.value for item in items.values())
    counts = ", ".join(f"{count} {status}" for status, count in found.items())
    return f"{len(items)} of {total} rows are done{f': {counts}' if counts else ''}"


def _cap(name: str, budget_usd: Decimal | float | None) -> Cap | None:
    """Return the cap which all runs of a campaign share."""
    return Cap.of(f"campaign-{name}", budget_usd)


def _plain(name: str) -> str:
    """Return a name as Prefect's artifacts and file systems want it; what differs in more than punctuation stays so."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if name.isascii() and plain and len(plain) <= _MAX_NAME_CHARACTERS:
        return plain
    return f"{plain[:_MAX_NAME_CHARACTERS]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".strip("-")
