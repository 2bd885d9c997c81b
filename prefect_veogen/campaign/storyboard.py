"""A storyboard's shots as rows of a campaign: each with a keyframe, or each beginning where the one before ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from prefect_veogen.campaign.columns import MOTION
from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.kinds import Kinds
from prefect_veogen.campaign.manifest import find_problems_of_the_rest
from prefect_veogen.campaign.references import placeholder_image
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.campaign.rows import Row, Rows
from prefect_veogen.campaign.run import check_rows, fields_of, find_stored_asset, plan_rows
from prefect_veogen.download.clips import check_pyav
from prefect_veogen.download.film import find_last_frame
from prefect_veogen.errors import ConfigurationError, InvalidManifest
from prefect_veogen.models import Asset, Kind, named_by_the_package, place_of
from prefect_veogen.models.generation import Value
from prefect_veogen.store import LocalStore

if TYPE_CHECKING:
    from decimal import Decimal

    from prefect_veogen.campaign.records import Record
    from prefect_veogen.purchase.plan import Plan
    from prefect_veogen.session import Session

Chain = Literal["none", "last_frame"]
"""What a shot begins with: "none", a keyframe of its own; "last_frame", the last frame of the shot before it."""

# What makes streams differ so that one can't be put behind the other.
_ALIKE = ("model", "aspect_ratio", "resolution")


@named_by_the_package
class Storyboard(Value):
    """How the shots of a storyboard ended, and the film that they were joined into.

    `items` gives the shots in their order; `report` is that of the campaign which they are.
    """

    report: CampaignReport
    """The shots in numbers, with what they have cost."""
    film: Asset | None = None
    """All clips in one file; `None` if it was not asked for, or a shot is missing."""

    @property
    def items(self) -> Sequence[CampaignItem]:
        """The shots, in the manifest's order. Free: read from the store, unless this process has just made them.

        Raises:
            ConfigurationError, StoreUnavailable, StoreRefused: as `CampaignReport.items`.
        """
        return self.report.items


def as_shots(records: Iterable[Record], defaults: Mapping[str, Any], references: Sequence[Any]) -> Iterator[Record]:
    """Give a manifest's records as shots: with defaults for what is not set, and references beside their own images."""
    known = {name: value for name, value in defaults.items() if value is not None}
    for record in records:
        fields = {**known, **record.fields}
        own = fields.get("image_urls", [])
        if references and isinstance(own, list | tuple):
            fields["image_urls"] = _with_references(own, references)
        yield replace(record, fields=fields)


def _with_references(own: Sequence[Any], references: Sequence[Any]) -> list[Any]:
    """Return a shot's images with the references that it has not; as a reference is given, its link is signed anew."""
    # A table of results has them already, but as it writes an Asset, a path or a signed link.
    there = {place_of(one) for one in own}
    given = {place_of(one): one for one in references}
    added = (one for one in references if place_of(one) not in there)
    return [*added, *(given.get(place_of(one), one) for one in own)]


@dataclass(frozen=True, slots=True)
class Shots:
    """The shots of a storyboard in their order, and how they follow each other."""

    rows: Rows
    chain: Chain

    @property
    def keyframes(self) -> Rows:
        """The pictures that are bought: one per shot, or in a chain that of the first alone. Free."""
        begun = self.rows[:1] if self.chain == "last_frame" else self.rows
        return Rows(replace(row, motion=None) for row in begun)


def clip_row(row: Row, image: Asset) -> Row:
    """Return the row that makes nothing but a shot's clip, beginning with a picture."""
    return replace(row, request=row.motion_request(image), motion=None, where=f"{row.where}, its clip")


def shot_item(row: Row, *parts: CampaignItem) -> CampaignItem:
    """Return how a shot ended, given how its keyframe and its clip did, as far as they were made."""
    paid = [part.reused for part in parts if part.reused is not None]
    steps = tuple(step for part in parts for step in part.steps)
    return replace(parts[-1], steps=steps, reused=all(paid) if paid else None, fields=fields_of(row))


def clip_of(item: CampaignItem) -> Asset | None:
    """Return the clip of a shot that ended well."""
    return item.asset if item.status is ItemStatus.OK else None


# ---------------------------------------------------------------- before the first purchase


async def check_shots(session: Session, shots: Shots, *, join: bool) -> Decimal:
    """Validate that all shots can be bought, chained and joined; return what is still to be paid, in USD. Free.

    Raises:
        InvalidManifest: shots ask for what their models don't offer, or can't be joined; all of them are named.
        ConfigurationError: PyAV is missing, or the store is one whose frames the service can't read.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    if shots.chain == "last_frame" or join:
        check_pyav()
    if shots.chain == "last_frame" and isinstance(session.store, LocalStore):
        raise ConfigurationError(
            "A chain's frames can't be read by the service in a store that is a directory",
            next_step="Nothing was bought. Use a bucket as VEOGEN_STORE (s3://bucket/prefix), or chain='none'.",
        )
    linked = await _link_what_is_known(session, shots)
    if problems := [*_problems_of(shots, join=join), *await _check_chained_models(session, shots)]:
        raise InvalidManifest([*problems, *await find_problems_of_the_rest(session, linked)])
    return await check_rows(session, linked)


async def plan_rest(session: Session, shots: Shots) -> Plan:
    """Return what is still to be paid for shots, purchase by purchase, as far as they are made now. Free."""
    return await plan_rows(session, await _link_what_is_known(session, shots), itemised=True)


def _problems_of(shots: Shots, *, join: bool) -> Iterator[str]:
    first, seen = shots.rows[0], set[str]()
    for row in shots.rows:
        if row.id in seen:
            yield f"{row.where}: variants: a storyboard makes each shot once; give another take a storyboard of its own"
        seen.add(row.id)
        if join:
            yield from _not_alike(row, first)
    if shots.chain == "last_frame" and first.uses:
        yield f"{first.where}: image_urls: in a chain no other shot has a picture that it could use"


def _not_alike(row: Row, first: Row) -> Iterator[str]:
    """Give what keeps a clip from being copied behind that of the first shot."""
    assert row.motion is not None
    assert first.motion is not None
    for name in _ALIKE:
        value, wanted = row.motion.get(name), first.motion.get(name)
        if value != wanted:
            yield f"{row.where}: {MOTION}{name}: {value!r} can't be joined with {wanted!r}, that of the first shot"


async def _check_chained_models(session: Session, shots: Shots) -> list[str]:
    """Return which shots behind the first have a model that makes no clips: in a chain their rows are their clips."""
    kinds, behind = Kinds(session), shots.rows[1:] if shots.chain == "last_frame" else ()
    models = [(row, row.motion["model"]) for row in behind if row.motion is not None]
    found = [(row, await kinds.find_problem(model, Kind.VIDEO)) for row, model in models]
    return [f"{row.where}: {MOTION}model: {problem}" for row, problem in found if problem is not None]


async def _link_what_is_known(session: Session, shots: Shots) -> Rows:
    """Return the rows that the shots are for a plan: what is bought of a chain depends on the frames that are known."""
    if shots.chain == "none":
        return shots.rows
    first, *others = shots.rows
    picture = await find_stored_asset(session, first.request)
    clip = await find_stored_asset(session, first.motion_request(picture)) if picture else None
    links = Rows([first])
    for row in others:
        frame = await find_last_frame(session.store, clip) if clip else None
        link = clip_row(row, frame or placeholder_image(f"the shot before {row.id}"))
        clip = await find_stored_asset(session, link.request) if frame else None
        links.append(link)
    return links
