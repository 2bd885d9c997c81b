"""What a campaign flow is made of: read, check, make, publish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from prefect import Flow, task
from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import WithJsonSchema

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.campaign.gallery import Tile, make_tiles, page
from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.options import Carry
from prefect_veogen.campaign.packed import Packed
from prefect_veogen.campaign.records import Manifest
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.campaign.results import RESULTS, campaign_key, read_results, write_results
from prefect_veogen.campaign.rows import Row, Rows
from prefect_veogen.campaign.run import (
    campaign_name,
    check_ids,
    check_rows,
    describe_failure,
    drop_edited,
    for_row,
    item_blocked_by,
    make_assets,
    outcome_now,
    picture_of,
)
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import Asset, in_usd, plain_name, without_secrets
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.wait import check_timeout
from prefect_veogen.session import Session
from prefect_veogen.tasks.artifacts import courtesy, showing
from prefect_veogen.tasks.events import emit
from prefect_veogen.tasks.generation import open_task_session
from prefect_veogen.tasks.manifest import read_manifest
from prefect_veogen.tasks.markdown import code, image, literal
from prefect_veogen.tasks.progress import show_progress
from prefect_veogen.tasks.run_again import find_rows_to_wait_for
from prefect_veogen.tasks.runs import name_flow_run, name_task_run, shorten
from prefect_veogen.tasks.steps import FREE, KeepsItsKind, is_retryable, reused, step
from prefect_veogen.tasks.stores import StoreParameter

__all__ = [
    "CampaignItem",
    "CampaignReport",
    "Carry",
    "ItemStatus",
    "Manifest",
    "Row",
    "Rows",
    "TableParameter",
    "campaign_flow",
    "campaign_name",
    "check_campaign",
    "keep_results",
    "make_campaign",
    "publish_campaign",
    "read_manifest",
]

TableParameter = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]})
]
"""A manifest as a flow takes it: any table; a deployment's form asks for a path, a link or a list."""

Only = Literal["failed"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

FINISHED_EVENT = "veogen.campaign.finished"

_TABLES = ("manifest", "shots")
_MAX_TABLE_ROWS = 1000
_MAX_PICTURES = 12
_MAX_KEPT_BYTES = 256 * 1024


class _CampaignFlow(KeepsItsKind, Flow[Parameters, Result]):
    """A flow which runs with a table of any length and kind, though Prefect keeps half a megabyte of JSON."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        manifest = {name: _kept_manifest(value) for name, value in parameters.items() if name in _TABLES}
        return super().serialize_parameters(parameters | manifest)


def _kept_manifest(manifest: Any) -> Any:
    """Return what Prefect's record of a run keeps of its manifest."""
    if manifest is None or isinstance(manifest, str | Path):
        return manifest
    rows = manifest.get("rows") if isinstance(manifest, Mapping) else manifest
    if not isinstance(rows, list | tuple):
        return f"{_counted(manifest)} of a {type(manifest).__name__}, which is not kept here"
    length = 0
    for row in rows:
        length += len(json.dumps(row, default=str, skipkeys=True))  # Prefect counts \u0430 as six, not as one
        if length > _MAX_KEPT_BYTES:
            return f"{len(rows)} rows, too many to be kept here"
    return manifest


def campaign_flow(**options: Any) -> Callable[[Callable[Parameters, Result]], Flow[Parameters, Result]]:
    """Return Prefect's `flow` decorator for a flow with a `manifest` or `shots`, maybe a list of thousands of rows.

    Of a list of more than 256 KB Prefect's record of the run keeps only the length, so that such a run can't be started
    again from there; one with a file or a link can.
    """
    options.setdefault("flow_run_name", name_flow_run(_name_of_campaign_run))
    return lambda function: _CampaignFlow(function, **options)


def _name_of_campaign_run(parameters: Mapping[str, Any]) -> str:
    manifest = next(parameters[table] for table in _TABLES if table in parameters)
    if parameters.get("name"):
        what = shorten(parameters["name"])
    elif isinstance(manifest, str | Path):
        what = shorten(without_secrets(str(manifest)).rstrip("/").rpartition("/")[2])
    else:
        what = _counted(manifest)
    if parameters.get("start"):
        return f"{what} ({parameters['start']} to {parameters.get('end')})"
    return f"{what} (take {parameters.get('take', 1)})"


def _counted(rows: Any) -> str:
    try:
        count = len(rows)
    except TypeError:  # a generator, a lazy frame
        return "rows"
    return f"{count} row{'' if count == 1 else 's'}"


async def keep_results(
    rows: Rows,
    only: Only | None,
    *,
    name: str,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> None:
    """With `only="failed"`, leave out the rows which ended well in the last run of the campaign called `name`. Free.

    They are reported as they ended then. A row that asks for something else now is made, and so are all rows without a
    table of results of such a run.

    Raises:
        ConfigurationError: `only` is something else, or the table can't be read.
    """
    if only not in (None, "failed"):
        raise ConfigurationError(
            f"only={only!r} is not valid", next_step='Nothing was bought. Give "failed", or None for all rows.'
        )
    if only is not None:
        session = await open_task_session(credentials, store)
        before = await on_io(read_results(session.store, campaign_key(name, RESULTS)))
        rows.keep(before or ())


@task(
    name="check campaign",
    task_run_name=name_task_run("check", lambda of: f"{shorten(of['name'])}: {_counted_all(of['campaigns'])}"),
    description="Validates and prices all rows before the first purchase.",
    **FREE,
)
async def check_campaign(
    *campaigns: Sequence[Row],
    name: str,
    budget_usd: Decimal | float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> Decimal:
    """Return what is still to be paid for a campaign, in USD, if all of it can be. Free, and safe to repeat.

    Several campaigns are priced together, under the one cap that they share by `name`.

    Raises:
        InvalidManifest: rows ask for what their models don't offer; all of them are named.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    session = await open_task_session(credentials, store, campaign_cap(name, budget_usd))
    left_to_pay = await on_io(check_rows(session, *campaigns))
    session.log.info("%s, %s to pay", _counted_all(campaigns), in_usd(left_to_pay))
    return left_to_pay


def _counted_all(campaigns: Sequence[Sequence[Row]]) -> str:
    rows = sum(map(len, campaigns))
    return _counted(range(rows)) if len(campaigns) == 1 else f"{_counted(range(rows))} in {len(campaigns)} slots"


@step(
    name="make row",
    task_run_name=name_task_run("", lambda of: _row_name(of["row"])),
    description="Submits, waits and downloads for one row of a campaign.",
    retries=5,
    retry_delay_seconds=[2, 5, 15, 30, 60],
    retry_condition_fn=is_retryable,
    cache_policy=NO_CACHE,  # the ledger knows better what there is
)
async def make_row(
    row: Row,
    pictures: Mapping[str, Asset] | None = None,
    *,
    name: str,
    budget: str | None = None,
    budget_usd: Decimal | float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    timeout_seconds: float | None = None,
) -> CampaignItem:
    """Return one row's assets, buying what is missing. COSTS MONEY; safe to repeat.

    `pictures` are those of the rows whose pictures it uses. One task run for the whole row, not one per step: at
    hundreds of rows, recording runs is what costs.
    """
    session = for_row(await open_task_session(credentials, store, campaign_cap(budget or name, budget_usd)), row, name)
    async with showing(session) as shown:
        item = await on_io(make_assets(shown, row, pictures or {}, timeout_seconds))
    before = f"Reused: bought before for {in_usd(item.price_usd)}; nothing to pay"
    return reused(item, before) if item.reused else item


def _row_name(row: Row) -> str:
    return row.id if str(row.request.take) == "1" else f"{row.id} (take {row.request.take})"


async def make_campaign(
    rows: Sequence[Row],
    *,
    name: str,
    budget: str | None = None,
    budget_usd: Decimal | float | None = None,
    at_once: int = 300,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    timeout_seconds: float | None = None,
) -> CampaignReport:
    """Return how all rows ended, after making them, at most `at_once` at the same time. COSTS MONEY.

    One row's failure stops no other, but those which use its picture. Safe to repeat: only what is missing is bought.
    Campaigns with one `budget` share its cap; unset, it has the campaign's name.
    """
    if at_once < 1:
        raise ConfigurationError(f"at_once={at_once} makes nothing", next_step="Nothing was bought. Give 1 or more.")
    check_timeout(timeout_seconds)
    rows = Rows.of(rows)
    check_ids(rows)
    session = await open_task_session(credentials, store)
    await on_io(drop_edited(session, rows))
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    limits: dict[str, Any] = {"budget": budget, "budget_usd": budget_usd, "timeout_seconds": timeout_seconds}
    items: dict[int, CampaignItem] = {}
    heroes = {identity: asyncio.get_running_loop().create_future() for identity in rows.used}

    async def make(number: int) -> None:
        row = rows[number]
        ended = {identity: await heroes[identity] for identity in row.uses}
        items[number] = await make_whatever_happens(session, row, ended, name=name, **limits, **where)
        if row.id in heroes and rows.lends(number):
            heroes[row.id].set_result(items[number])

    # A row begins after those whose pictures it uses, so that waiting for them can't take their places.
    order = rows.to_make
    async with show_progress(session, name, len(order), items):
        await map_bounded(order, make, min(at_once, max(len(order), 1)))
    ended = (items.get(number) or outcome_now(rows.kept[row.key], row) for number, row in enumerate(rows))
    return CampaignReport.of(name, Packed(ended), session.store.uri(campaign_key(name, RESULTS)))


async def make_whatever_happens(
    session: Session, row: Row, heroes: Mapping[str, CampaignItem], *, name: str, **options: Any
) -> CampaignItem:
    """Return how a row ended, whatever happened."""
    pictures: dict[str, Asset] = {}
    for identity, item in heroes.items():
        if (picture := picture_of(item)) is None:
            return item_blocked_by(session, row, item)
        pictures[identity] = picture
    try:
        made: CampaignItem = await make_row(row, pictures, name=name, **options)
    except Exception as error:  # noqa: BLE001 - whatever it was, Prefect's own trouble too: it fails one row only
        return await on_io(describe_failure(session, row, pictures, error))
    return made


@task(
    name="publish campaign",
    task_run_name=name_task_run("publish", lambda of: shorten(of["report"].name)),
    description="Writes the gallery, the artifacts and the table of results.",
    **FREE,
)
async def publish_campaign(
    report: CampaignReport,
    *,
    run_again: bool = False,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> str:
    """Return where the gallery lies, after writing it, the run's artifacts and then the table of results. Free.

    The gallery is one page, `campaigns/<name>/gallery.html`, with relative links. The artifacts are a table and some
    pictures. The table of results is written last and whole: where one of this run is, the campaign has ended.
    `run_again` says that the flow ends by `run_again_for_rows`, so that the event tells whether that is the last word.
    """
    session = await open_task_session(credentials, store)
    tiles = await on_io(make_tiles(session, report.by_need))
    gallery = campaign_key(report.name, "gallery.html")
    html = "".join(page(report, tiles, session.store)).encode()
    await on_io(session.store.put(gallery, html, "text/html; charset=utf-8"))
    summary, where = literal(str(report)), session.store.uri(gallery)
    key = f"campaign-{plain_name(report.name)}"
    pictures = [image(tile.item.id, picture) for tile in tiles for picture in tile.pictures[-1:]]
    markdown = (
        f"# {summary}\n\nResults: {code(report.results_uri)}\n\nGallery: {code(where)}\n\n"
        f"{' '.join(pictures[:_MAX_PICTURES])}\n"
    )
    async with courtesy(session):
        await acreate_table_artifact(_table(tiles), key=key, description=summary)
        await acreate_markdown_artifact(markdown, key=f"{key}-pictures")
    await on_io(write_results(session.store, report.name, report.items))
    is_run_again = run_again and bool(await find_rows_to_wait_for(report))
    finished = _finished(report, where) | {"run_again": is_run_again}
    emit(FINISHED_EVENT, f"veogen.campaign.{plain_name(report.name)}", finished)
    session.log.info("%s. Gallery: %s. Results: %s", report, where, report.results_uri)
    return where


def _finished(report: CampaignReport, gallery: str) -> dict[str, Any]:
    """Return what `veogen.campaign.finished` says."""
    known = report.model_dump(mode="json", exclude={"name"})
    return {"campaign": report.name, **known, "all_ok": report.counts.keys() <= {ItemStatus.OK}, "gallery_uri": gallery}


def _table(tiles: Sequence[Tile]) -> list[dict[str, str]]:
    return [
        {
            "id": literal(item.id),
            "status": item.status.value,
            "price_usd": str(item.price_usd),
            "assets": literal(" ".join(asset.uri for asset in item.assets)),
            "error": literal((item.error or "").partition("\nWhat to do")[0]),
        }
        for item in (tile.item for tile in tiles[:_MAX_TABLE_ROWS])
    ]


def campaign_cap(name: str, budget_usd: Decimal | float | None) -> Cap | None:
    """Return the cap which all runs of a campaign share."""
    return Cap.of(f"campaign-{name}", budget_usd)
