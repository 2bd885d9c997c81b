"""What a daily flow is made of: its slots, what is made in each, and where consumers find it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import PurePosixPath
from typing import Any

from prefect import get_run_logger, task

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.campaign.items import ItemStatus
from prefect_veogen.campaign.records import Manifest
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.campaign.rows import Rows
from prefect_veogen.download.publication import publish
from prefect_veogen.errors import ConfigurationError, VeogenError
from prefect_veogen.models import Asset, Kind
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.schedule import scheduled_run, scheduled_start, take_of_slot
from prefect_veogen.tasks.campaign import (
    Only,
    keep_results,
    make_campaign,
    publish_campaign,
    read_manifest,
)
from prefect_veogen.tasks.generation import open_task_session
from prefect_veogen.tasks.run_again import run_again_for_rows
from prefect_veogen.tasks.runs import name_task_run
from prefect_veogen.tasks.slots import Slot, check_kinds, check_names, kind_of_ending, templates_of
from prefect_veogen.tasks.steps import FREE
from prefect_veogen.tasks.stores import StoreParameter

__all__ = ["Slot", "is_late", "make_slot", "make_slots", "publish_asset", "read_slots"]

_MAX_SLOTS = 366


def is_late(late_after_seconds: float) -> bool:
    """Tell whether the flow run began so long after its scheduled start. Free.

    A retry of a run that began in time is not late.
    """
    run = scheduled_run()
    if run is None or run.expected_start_time is None:
        return False
    began = run.start_time or datetime.now(UTC)
    is_it = (began - run.expected_start_time).total_seconds() > late_after_seconds
    if is_it:
        get_run_logger().warning("Its slot was %s: too late, nothing is made", run.expected_start_time)
    return is_it


async def read_slots(
    manifest: Manifest,
    take: int | str,
    *,
    name: str,
    start: date | None = None,
    end: date | None = None,
    publish_as: str | None = None,
    latest: str | None = None,
    only: Only | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    **options: Any,
) -> list[Slot]:
    """Return the slots from `start` to `end`, a day each, or the run's own, with the rows of each. Free.

    `options` are those of `read_manifest`. The slot of the take T is the campaign NAME-T; with `only="failed"`, what
    ended well in it is left out.

    Raises:
        InvalidManifest, ConfigurationError: rows or options are wrong, two would be published under one name, or one
            under the name of another kind of media.
    """
    if isinstance(manifest, Iterator):
        manifest = list(manifest)  # it is read once per slot
    if (publish_as or latest) and take_of_slot(take, datetime.min.replace(tzinfo=UTC)) == take:
        raise ConfigurationError(
            f"take={take!r} is not a slot's, so that it can't be published under a slot's name",
            next_step='Nothing was bought. Leave take="{scheduled:%Y-%m-%d}", and give a day as both start and end to '
            "make it again; or leave out publish_as and latest.",
        )
    templates = templates_of(publish_as, latest)
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    slots = []
    for scheduled in _days(take, start, end) or [scheduled_start() or datetime.now(UTC)]:
        filled = take_of_slot(take, scheduled)
        rows = await read_manifest(manifest, take, scheduled=scheduled, **where, **options)
        slots.append(Slot(scheduled, f"{name}-{filled}", rows, publish_as, latest, filled))
        await keep_results(rows, only, name=slots[-1].name, **where)
    check_names(templates, slots)
    for option, template in templates:
        if kind_of_ending(template) is not None:
            check_kinds(option, template, slots, await _kinds_in(slots[0].rows, credentials, store))
    return slots


async def _kinds_in(
    rows: Rows, credentials: VeogenCredentials | str | None, store: StoreParameter | None
) -> dict[str, Kind]:
    models = {row.request.model for row in rows if row.motion is None}
    session = await open_task_session(credentials, store)

    async def find_kinds() -> dict[str, Kind]:
        found = {model: await session.catalogue.find_kind(model) for model in models}
        # What is wrong with an unknown model is reported with the rows.
        return {model: kind for model, kind in found.items() if kind is not None}

    return await on_io(find_kinds())


def _days(take: int | str, start: date | None, end: date | None) -> list[datetime]:
    """Return the slots of a backfill, empty if none is asked for."""
    if start is None and end is None:
        return []
    problem = ""
    if start is None or end is None:
        problem = "a backfill needs both"
    elif not 0 <= (end - start).days < _MAX_SLOTS:
        problem = f"that is not 1 to {_MAX_SLOTS} days"
    else:
        days = [datetime.combine(start + timedelta(number), time(), UTC) for number in range((end - start).days + 1)]
        takes = [take_of_slot(take, day) for day in days]
        if len({*takes}) == len(days) and takes == [take_of_slot(take, day + timedelta(hours=23.9)) for day in days]:
            return days
        problem = f"take={take!r} is not another one each day, and the same all day"
    raise ConfigurationError(
        f"start={start}, end={end}: {problem}",
        next_step='Nothing was bought. Give the first and the last day, and take="{scheduled:%Y-%m-%d}".',
    )


async def make_slot(
    slot: Slot,
    *,
    run_again: bool = False,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    **options: Any,
) -> CampaignReport:
    """Return how the rows of a slot ended, after making and publishing them. COSTS MONEY; safe to repeat.

    `run_again` is that of `publish_campaign`, `options` are those of `make_campaign`. Rows that failed leave what was
    published before as it is. What can't be published, such as an asset that is gone, is raised when all others are,
    and the table of results is written.
    """
    report, failures = await _make_slot(slot, run_again=run_again, credentials=credentials, store=store, **options)
    if failures:
        raise failures[0]
    return report


async def make_slots(slots: Sequence[Slot], **options: Any) -> list[CampaignReport]:
    """Return how the rows of each slot ended, after making one slot after the other. COSTS MONEY; safe to repeat.

    `options` are those of `make_slot`. A scheduled run in which an outage kept rows from being made ends by
    `run_again_for_rows`. What can't be published is raised when all slots are made.
    """
    made = [await _make_slot(slot, run_again=True, **options) for slot in slots]
    await run_again_for_rows(*(report for report, _ in made))
    failures = [failure for _, of_slot in made for failure in of_slot]
    if failures:
        raise failures[0]
    return [report for report, _ in made]


async def _make_slot(
    slot: Slot,
    *,
    run_again: bool,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    **options: Any,
) -> tuple[CampaignReport, list[VeogenError]]:
    """Return how the rows of a slot ended, and why some could not be published."""
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    report = await make_campaign(slot.rows, name=slot.name, **options, **where)
    failures: list[VeogenError] = []
    for item in report.items:
        if item.status is ItemStatus.OK and (asset := item.asset) is not None:
            for key, scheduled in slot.keys_of(item.id, item.take, PurePosixPath(asset.uri).suffix).items():
                try:
                    await publish_asset(asset, key, scheduled=scheduled, take=slot.take, **where)
                except VeogenError as failure:
                    failures.append(failure)
    await publish_campaign(report, run_again=run_again, **where)
    return report, failures


@task(
    name="publish asset",
    task_run_name=name_task_run("publish", lambda of: str(of["key"])),
    description="Copies an asset to a stable place in the store.",
    **FREE,
)
async def publish_asset(
    asset: Asset,
    key: str,
    *,
    scheduled: datetime | None = None,
    take: int | str | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> str:
    """Return where a copy of an asset lies: at `key` in the store, replaced whole, with a sidecar `<key>.json`. Free.

    The bytes are verified while they are copied, in constant memory. With `scheduled`, what is there of a later slot
    stays, unless it was published for the same `take`. Safe to repeat.

    Raises:
        ConfigurationError: the key belongs to the store itself, is not valid (it is taken as it is, so braces are not)
            or has the ending of another kind of media, or the asset is in another store.
        PersonNeeded: the asset is gone, or changed.
    """
    session = await open_task_session(credentials, store)
    is_there = await on_io(publish(session.store, asset, key, scheduled, take))
    uri = session.store.uri(key)
    kept = "Kept what is there, of a later slot or published meanwhile:"
    session.log.info("%s %s", "Published" if is_there else kept, uri)
    return uri
