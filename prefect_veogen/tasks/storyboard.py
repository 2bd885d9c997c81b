"""What a storyboard flow is made of: read, check, make the shots, join them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, get_args

from prefect import task
from prefect.artifacts import acreate_markdown_artifact

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.campaign.items import CampaignItem
from prefect_veogen.campaign.options import Carry, RowOptions
from prefect_veogen.campaign.reading import rows_of
from prefect_veogen.campaign.records import Manifest, read_records
from prefect_veogen.campaign.references import placeholder_image
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.campaign.results import RESULTS, campaign_key
from prefect_veogen.campaign.rows import Row, Rows
from prefect_veogen.campaign.run import describe_failure, for_row, item_blocked_by, picture_of
from prefect_veogen.campaign.storyboard import (
    Chain,
    Shots,
    Storyboard,
    as_shots,
    check_shots,
    clip_of,
    clip_row,
    plan_rest,
    shot_item,
)
from prefect_veogen.download.film import extract_last_frame, make_film
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import Asset, Delivery, in_usd, plain_name
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.session import Session
from prefect_veogen.tasks.artifacts import courtesy, showing
from prefect_veogen.tasks.campaign import campaign_cap, make_campaign, make_whatever_happens
from prefect_veogen.tasks.generation import open_task_session
from prefect_veogen.tasks.markdown import literal
from prefect_veogen.tasks.requests import InputsParameter
from prefect_veogen.tasks.runs import name_task_run, shorten
from prefect_veogen.tasks.steps import FREE
from prefect_veogen.tasks.stores import StoreParameter, store_for

__all__ = ["Chain", "Shots", "Storyboard", "check_storyboard", "join_film", "make_shots", "read_shots"]


async def read_shots(
    shots: Manifest,
    chain: Chain = "none",
    *,
    image_model: str,
    video_model: str,
    aspect_ratio: str | None = None,
    resolution: str | None = None,
    reference_images: InputsParameter | None = None,
    take: int | str = 1,
    labels: Mapping[str, str] | None = None,
    carry: Carry = (),
    store: StoreParameter | None = None,
) -> Shots:
    """Return the shots of a manifest, in its order, with all takes filled in by `take_of_slot`. Free.

    A shot is a row of a campaign with an `id`, a `prompt` and a `motion_prompt`. What it doesn't say itself is as the
    options say. `reference_images` are put before the shot's own `image_urls`.

    Raises:
        InvalidManifest: rows are wrong; all of them are named. Nothing was bought.
        ConfigurationError: an option is wrong, there is no such file, or it can't be read.
    """
    if chain not in get_args(Chain):
        raise ConfigurationError(
            f"chain={chain!r} is not valid",
            next_step=f"Nothing was bought. Give one of {', '.join(map(repr, get_args(Chain)))}.",
        )
    defaults = {"model": image_model, "motion_model": video_model, "aspect_ratio": aspect_ratio}
    read = await on_io(read_records(shots, await store_for(shots, store)))
    records = as_shots(read, defaults | {"motion_resolution": resolution}, reference_images or ())
    options = RowOptions(take=take_of_slot(take), take_of=take_of_slot, labels=labels or {}, carry=carry)
    # Of a table of results nothing is left out: what ended well is found in the ledger, and the film needs all of it.
    return Shots(Rows(iter(rows_of(records, options))), chain)


@task(
    name="check storyboard",
    task_run_name=name_task_run("check", lambda of: f"{shorten(of['name'])}: {_counted(of['shots'].rows)}"),
    description="Validates and prices all shots before the first purchase.",
    **FREE,
)
async def check_storyboard(
    shots: Shots,
    *,
    name: str,
    join: bool = False,
    budget_usd: Decimal | float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> Decimal:
    """Return what is still to be paid for a storyboard, in USD, if all of it can be. Free, and safe to repeat.

    Raises:
        InvalidManifest: shots ask for what their models don't offer, or can't be joined; all of them are named.
        ConfigurationError: PyAV is missing, or the store is a directory, from which nothing can be chained.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    session = await open_task_session(credentials, store, campaign_cap(name, budget_usd))
    left_to_pay = await on_io(check_shots(session, shots, join=join))
    session.log.info("%s, %s to pay", _counted(shots.rows), in_usd(left_to_pay))
    return left_to_pay


async def make_shots(
    shots: Shots,
    *,
    name: str,
    budget_usd: Decimal | float | None = None,
    timeout_seconds: float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> CampaignReport:
    """Return how all shots ended, after making their keyframes and then their clips. COSTS MONEY.

    One shot's failure stops no other, but in a chain those behind it. Safe to repeat: only what is missing is bought.
    After each stage the price of the rest is logged, and shown in the artifact `storyboard-<name>`.

    Raises:
        InvalidManifest, ConfigurationError: a row or an option is wrong; nothing was bought.
    """
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    money: dict[str, Any] = {"budget_usd": budget_usd, "timeout_seconds": timeout_seconds}
    session = await open_task_session(credentials, store, campaign_cap(name, budget_usd))
    making = _Making(session, shots, name, {**money, **where})
    await making.make_keyframes()
    await (making.make_clips() if shots.chain == "none" else making.make_chain())
    return CampaignReport.of(name, making.items, session.store.uri(campaign_key(name, RESULTS)))


class _Making:
    """The shots of a storyboard while they are made: what there is of each, and what the rest will cost."""

    def __init__(self, session: Session, shots: Shots, name: str, options: Mapping[str, Any]) -> None:
        self._session, self._shots, self._name, self._options = session, shots, name, options
        self._where = {"credentials": options["credentials"], "store": options["store"]}
        self._parts: dict[str, list[CampaignItem]] = {row.id: [] for row in shots.rows}

    @property
    def items(self) -> list[CampaignItem]:
        """How the shots ended, in their order."""
        return [shot_item(row, *self._parts[row.id]) for row in self._shots.rows if self._parts[row.id]]

    async def make_keyframes(self) -> None:
        await self._make(self._shots.keyframes)
        await self._tell_rest("The keyframes are made")

    async def make_clips(self) -> None:
        """Make all clips, each from its own keyframe, at the same time."""
        pictures = {identity: picture_of(part) for identity, (part,) in self._parts.items()}
        rows = [(row, picture) for row in self._shots.rows if (picture := pictures[row.id]) is not None]
        await self._make(Rows(clip_row(row, picture) for row, picture in rows))
        await self._tell_rest("The clips are made")

    async def make_chain(self) -> None:
        """Make one clip after the other, each from the last frame of the one before."""
        first, *_ = self._shots.rows
        begins = picture_of(self._parts[first.id][0])
        before: CampaignItem | None = None
        for row in self._shots.rows:
            if before is not None:
                begins = await self._take_last_frame(row, before)
            if begins is not None:
                clip = clip_row(row, begins)
                made = await make_whatever_happens(self._session, clip, {}, name=self._name, **self._options)
                self._parts[row.id].append(made)
                await self._tell_rest(f"Shot {row.id} is {made.status.value}")
            before = self._parts[row.id][-1]

    async def _take_last_frame(self, row: Row, before: CampaignItem) -> Asset | None:
        """Return what a shot begins with; `None` if that can't be had, which is then how the shot ended."""
        session = for_row(self._session, row, self._name)
        if (clip := clip_of(before)) is None:
            self._parts[row.id].append(item_blocked_by(session, row, before, "last frame"))
            return None
        try:
            frame: Asset = await take_last_frame(clip, **self._where)
        except Exception as error:  # noqa: BLE001 - whatever it was, the shots that are finished stay
            unknown = clip_row(row, placeholder_image())  # of which nothing is bought
            self._parts[row.id].append(await on_io(describe_failure(session, unknown, {}, error)))
            return None
        return frame

    async def _make(self, rows: Rows) -> None:
        if rows:
            report = await make_campaign(rows, name=self._name, **self._options)
            for item in report.items:
                self._parts[item.id].append(item)

    async def _tell_rest(self, stage: str) -> None:
        """Log and show what the rest will cost."""
        async with courtesy(self._session):
            plan = await on_io(plan_rest(self._session, self._shots))
            left = sum(not item.already_bought for item in plan.items)
            said = f"{stage}. Left to pay: {plan.price} for {left} of {len(plan.items)} purchases"
            self._session.log.info(said)
            lines = [_line(row, self._parts[row.id]) for row in self._shots.rows]
            text = "\n".join([literal(said), "", "| shot | status | paid |", "|---|---|---|", *lines])
            await acreate_markdown_artifact(text, key=f"storyboard-{plain_name(self._name)}", description=literal(said))


@task(
    name="take last frame",
    task_run_name=name_task_run("last frame of", lambda of: of["clip"].uri.rpartition("/")[2]),
    description="Keeps the last frame of a clip, with which the next shot begins.",
    **FREE,
)
async def take_last_frame(
    clip: Asset, *, credentials: VeogenCredentials | str | None = None, store: StoreParameter | None = None
) -> Asset:
    """Return a clip's last frame as a picture in the store. Free, and safe to repeat."""
    session = await open_task_session(credentials, store)
    return await on_io(extract_last_frame(session.store, clip))


def _line(row: Row, parts: Sequence[CampaignItem]) -> str:
    status = parts[-1].status.value if parts else "to be made"
    cell = literal(row.id).replace("|", r"\|")
    return f"| {cell} | {status} | {in_usd(sum((part.price_usd for part in parts), Decimal(0)))} |"


@task(
    name="join film",
    task_run_name=name_task_run("join", lambda of: shorten(of["report"].name)),
    description="Joins the clips of a storyboard into one film, without encoding them again.",
    **FREE,
)
async def join_film(
    report: CampaignReport,
    *,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> Asset | None:
    """Return the film of all shots in their order, in the store; `None` if one of them is not made. Free.

    The streams are copied as they are. The same clips give the same key, and are joined once. Safe to repeat.

    Raises:
        ConfigurationError: a clip differs from the first one, so that they can't be joined.
        PersonNeeded: a clip is gone, or has changed.
    """
    session = await open_task_session(credentials, store)
    clips = {item.id: clip_of(item) for item in report.items}
    if missing := [name for name, clip in clips.items() if clip is None]:
        session.log.warning("The film is not joined: missing are %s", ", ".join(missing))
        return None
    film, was_there = await on_io(
        make_film(session.store, {name: clip for name, clip in clips.items() if clip is not None})
    )
    session.log.info("%s %s", "Already joined:" if was_there else "Joined", film.uri)
    async with showing(session) as shown:
        shown.delivered(Delivery(film, was_there, prompt=f"the film of {report.name}"))
    return film


def _counted(rows: Sequence[Row]) -> str:
    return f"{len(rows)} shot{'' if len(rows) == 1 else 's'}"
