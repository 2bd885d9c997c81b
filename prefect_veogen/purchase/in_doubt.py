"""Purchases whose response was lost: reconciled with the service's list, proven absent, or left to a person.

Nothing here buys, and nothing is guessed. The assumptions under which an absence is proven: within
`VEOGEN_IN_DOUBT_SECONDS` the service has dropped, or accepted and listed, what was sent to it (pending generations
included), and a list which shows other purchases of this ledger shows all of them. All times are the service's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect_veogen.api.client import MAX_PER_PAGE
from prefect_veogen.errors import UnknownSubmission, VeogenError
from prefect_veogen.ledger.receipt import READINGS_NEEDED, EventName, Reading, Receipt, State
from prefect_veogen.models import Generation, Kind, in_usd
from prefect_veogen.purchase.matching import could_be, differences, looks_like

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.api.responses import Page
    from prefect_veogen.ledger import Entry
    from prefect_veogen.session import Session

# The service's clock may be behind ours by so much and its generations still be recognised as newer than the receipt.
_CLOCK_TOLERANCE = timedelta(minutes=2)
# A candidate may be older than the sending by so much: clocks and queues, generously.
_CANDIDATE_AGE = timedelta(hours=1)
_SEARCHED_FOR = timedelta(days=7)
_MAY_TURN_UP = timedelta(days=1)
_SHARED_SPAN = timedelta(minutes=10)
_DATE_RESOLUTION = timedelta(seconds=1)
_ROUNDING = timedelta(seconds=2)  # a `Date` has no fractions, on either end
_RETRY_LATER = timedelta(seconds=10)
_INTERVALS_OF_READINGS = 10


# ---------------------------------------------------------------- how long


@dataclass(frozen=True, slots=True)
class Doubt:
    """How long a purchase stays in doubt, by the service's clock; `ends_at` is `None` where time proves nothing."""

    ends_at: datetime | None
    delay: timedelta
    offset: timedelta
    why_never: str | None = None

    @classmethod
    def of(cls, session: Session, receipt: Receipt) -> Doubt:
        """Return how long a receipt in doubt stays so, with this session's settings."""
        delay = session.settings.in_doubt_seconds
        if delay == "never":
            return cls(None, timedelta(0), timedelta(0), "VEOGEN_IN_DOUBT_SECONDS=never leaves it to a person")
        if receipt.clock_offset_seconds is None or receipt.sent_at is None:
            reason = "the service's clock was not known when it was sent, so that time proves nothing"
            return cls(None, timedelta(seconds=delay), timedelta(0), reason)
        offset = timedelta(seconds=receipt.clock_offset_seconds)
        return cls(receipt.sent_at - offset + timedelta(seconds=delay), timedelta(seconds=delay), offset)

    @property
    def interval(self) -> timedelta:
        """How far apart two readings are at least."""
        return self.delay / _INTERVALS_OF_READINGS

    @property
    def outlook(self) -> str:
        """What will become of it, for a receipt."""
        if self.ends_at is None:
            return f"a person decides: {self.why_never}"
        return f"in doubt until {self.ends_at:%Y-%m-%d %H:%M:%S} UTC at the service, then bought again if proven absent"

    def left(self, session: Session) -> timedelta:
        """Return how long it still lasts; negative when it is over."""
        assert self.ends_at is not None
        return self.ends_at - self._now(session)

    def proves_absence(self, receipt: Receipt) -> bool:
        """Tell whether enough readings have shown no candidate."""
        return len(self._counted(receipt)) >= READINGS_NEEDED

    def accepts(self, receipt: Receipt, reading: Reading) -> bool:
        """Tell whether a reading counts: after the delay, and apart from the one before, with another `Date`."""
        if self.ends_at is None or reading.began_at < self.ends_at:
            return False
        counted = self._counted(receipt)
        # One that was made before the last one shows that the service's clock was wrong, then or now: start anew.
        return not counted or reading.began_at < counted[-1].began_at or self._is_apart(counted[-1], reading)

    def _counted(self, receipt: Receipt) -> tuple[Reading, ...]:
        """Return the latest readings of a receipt that were made after the delay, and each after the one before."""
        counted: tuple[Reading, ...] = ()
        for reading in receipt.readings:
            if self.ends_at is not None and reading.began_at >= self.ends_at:
                counted = (*counted, reading) if counted and self._is_apart(counted[-1], reading) else (reading,)
        return counted

    def _is_apart(self, first: Reading, second: Reading) -> bool:
        return second.began_at >= first.ended_at + max(self.interval, _DATE_RESOLUTION)

    def _next_reading_at(self, receipt: Receipt) -> datetime:
        assert self.ends_at is not None
        counted = self._counted(receipt)
        return counted[-1].ended_at + max(self.interval, _DATE_RESOLUTION) if counted else self.ends_at

    def seconds_to_next_reading(self, session: Session, receipt: Receipt) -> float:
        """Return how long to wait for it, at most the distance of two readings: a `Date` may jump."""
        left = self._next_reading_at(receipt) - self._now(session)
        return min(max(left, timedelta(0)), self.interval + _ROUNDING).total_seconds()

    def _now(self, session: Session) -> datetime:
        return datetime.now(UTC) - (session.client.clock_offset or self.offset)

    def retry_at(self, session: Session) -> datetime | None:
        """Return when running again may end the doubt, by our clock; `None` if only a person can."""
        if self.ends_at is None:
            return None
        left = self.left(session)
        wait = left + _ROUNDING if left > timedelta(0) else max(_RETRY_LATER, self.interval)
        return datetime.now(UTC) + wait


async def note_doubt(session: Session, entry: Entry, reason: str) -> Entry:
    """Note that nobody heard the response to a purchase, and until when it is in doubt."""
    return await session.ledger.doubt(entry, f"{reason}; {Doubt.of(session, entry.receipt).outlook}")


# ---------------------------------------------------------------- searching


@dataclass(frozen=True, slots=True)
class Search:
    """What searching for a purchase in doubt brought."""

    found: Generation | None = None
    candidates: tuple[str, ...] = ()
    wait: bool = False

    @property
    def reason(self) -> str:
        """Why nothing was found, for a person."""
        if self.candidates:
            return f"{len(self.candidates)} generations could be it, and none can be told from the others"
        return "the service does not list it"


async def search(session: Session, receipt: Receipt) -> Search:
    """Search the service's generations for the one that a receipt in doubt paid for. Free.

    Only a generation which no receipt has claimed, and which no other unsettled receipt could mean, is taken.
    """
    since = _sent_at(session, receipt) - _CLOCK_TOLERANCE
    kind = await _kind_of(session, receipt)
    shared_since = _floor(since)
    listed = await session.shared_reads.get(
        ("search", session.store, kind, shared_since), lambda: _listed_since(session, kind, shared_since)
    )
    return await _judge(session, receipt, [item for item in listed if _is_since(item, since)], since)


async def adopt_found(session: Session, entry: Entry) -> Entry:
    """Return a receipt in doubt as bought, after one search.

    Raises:
        UnknownSubmission: it isn't listed, or can't be told from others; nothing changed.
    """
    outcome = await search(session, entry.receipt)
    adopted = None if outcome.found is None else await write_down(session, entry, outcome.found, EventName.ADOPTED)
    if adopted is None:
        raise still_in_doubt(session, entry.receipt, outcome.reason, outcome.candidates)
    return adopted


async def search_lost_attempts(session: Session, entry: Entry) -> Entry | None:
    """Return a receipt with what has turned up of an attempt that was given up; `None` if nothing has. Free.

    What turns up was charged although it had been proven absent: the assumption did not hold for this service.
    """
    for lost in entry.receipt.lost:
        if lost.given_up_at < datetime.now(UTC) - _SEARCHED_FOR:
            continue
        outcome = await search(session, entry.receipt.as_in_doubt(lost))
        if outcome.found is not None:
            return await write_down(session, entry, outcome.found, EventName.ADOPTED)
    return None


async def _judge(session: Session, receipt: Receipt, listed: Sequence[Generation], since: datetime) -> Search:
    listed = [item for item in listed if item.id not in receipt.known_ids]
    matching = [item for item in listed if looks_like(receipt, item)]
    # The rivals before the claims: whichever is no rival any more by now has made its claim before.
    rivals = []
    if matching:
        rivals = [
            entry.receipt
            for entry in await session.ledger.family(receipt, since - _CANDIDATE_AGE)
            if entry.receipt.state in (State.SENDING, State.IN_DOUBT)
        ]
    free = []
    for generation in matching:
        claimant = await session.ledger.claimant(receipt.api, generation.id)
        if claimant == receipt.key:
            return Search(found=generation)
        if claimant is None:
            free.append(generation)
    if not free:
        # A service that stores inputs at links of its own echoes those: that is no proof of absence.
        doubtful = [item.id for item in listed if receipt.links.keys() >= {*differences(receipt, item)}]
        return Search(
            candidates=tuple([name for name in doubtful if not await session.ledger.claimant(receipt.api, name)])
        )
    if any(rival.state is State.SENDING and not rival.is_abandoned for rival in rivals):
        return Search(candidates=tuple(generation.id for generation in free), wait=True)
    return _chosen(receipt, free, rivals)


def _chosen(receipt: Receipt, free: Sequence[Generation], rivals: Sequence[Receipt]) -> Search:
    strangers = [rival for rival in rivals if rival.content != receipt.content]
    twins = len(rivals) - len(strangers)
    mine = [generation for generation in free if not any(looks_like(stranger, generation) for stranger in strangers)]
    # Twins ask for the same thing, so that any of theirs will do; but what is left over was bought by somebody else.
    if mine and len(mine) <= 1 + twins:
        return Search(
            found=min(mine, key=lambda generation: (generation.created_at or datetime.now(UTC), generation.id))
        )
    return Search(candidates=tuple(generation.id for generation in free))


async def _listed_since(session: Session, kind: Kind | None, since: datetime) -> list[Generation]:
    """Return the generations of a kind created since a time, through as many pages as needed."""
    # The list of all kinds is documented to be newest first (/api-reference/generations/list), but has one page only.
    found = {item.id: item for item in (await session.client.list_generations()).items}
    for listed_kind in [kind] if kind is not None else list(Kind):
        page = 1
        while True:
            answer = await session.client.list_generations(listed_kind, page=page)
            is_new = any(item.id not in found for item in answer.items)
            found.update((item.id, item) for item in answer.items)
            # Nor is it documented that a page says whether there are more.
            may_go_on = answer.has_more or len(answer.items) >= MAX_PER_PAGE
            if not may_go_on or _is_past(answer.items, since) or (page > 1 and not is_new):
                break
            page += 1
    return [item for item in found.values() if _is_since(item, since)]


def _is_past(page: Sequence[Generation], since: datetime) -> bool:
    """Tell whether all pages behind are older: only if this one is seen to be newest first, which nobody promises."""
    times = [item.created_at for item in page if item.created_at is not None]
    is_newest_first = len(times) == len(page) and times == sorted(times, reverse=True) and len(set(times)) > 1
    return is_newest_first and times[-1] < since


# ---------------------------------------------------------------- proving an absence


class VoidReading(Exception):
    """A reading of the service's list that proves nothing; the text says why."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """Everything of a kind that the service lists since a time, and a purchase of this ledger's recognised in it."""

    generations: tuple[Generation, ...]
    reading: Reading


async def read_list(session: Session, receipt: Receipt) -> tuple[Search, Reading]:
    """Return what one complete reading of the service's list says about a purchase in doubt. Free.

    A search without candidates means that the reading shows nothing that could be the purchase: see `could_be`.

    Raises:
        VoidReading: the reading proves nothing.
        VeogenError: the service could not be asked.
    """
    kind = await _kind_of(session, receipt)
    if kind is None:
        raise VoidReading("whether its model makes images or videos is not known, so that no list can be read")
    private = bool(receipt.request.private)
    since = _sent_at(session, receipt) - _CANDIDATE_AGE
    shared_since = _floor(since)
    listing = await session.shared_reads.get(
        ("reading", session.store, kind, private, shared_since),
        lambda: _read_pages(session, kind, shared_since, private=private),
    )
    listed = [item for item in listing.generations if _is_since(item, since)]
    recent = _sent_at(session, receipt) - _CLOCK_TOLERANCE
    outcome = await _judge(session, receipt, [item for item in listed if _is_since(item, recent)], recent)
    if outcome.found is None:
        outcome = Search(candidates=await _candidates(session, receipt, listed))
    return outcome, listing.reading


async def _candidates(session: Session, receipt: Receipt, listed: Sequence[Generation]) -> tuple[str, ...]:
    possible = [item.id for item in listed if could_be(receipt, item) and item.id not in receipt.known_ids]
    claimants = {name: await session.ledger.claimant(receipt.api, name) for name in possible}
    return tuple(name for name in possible if claimants[name] in (None, receipt.key))


async def _read_pages(session: Session, kind: Kind, since: datetime, *, private: bool) -> _Listing:
    """Read a kind's list from its top to `since` or to its end, and on until a purchase of ours is recognised."""
    found: dict[str, Generation] = {}
    recognised: str | None = None
    began_at: datetime | None = None
    oldest: datetime | None = None
    last_page = 0
    for page in itertools.count(1):
        answer = await session.client.list_generations(kind, page=page, uncached=True)
        if answer.at is None:
            raise VoidReading("the service does not say when it answered")
        began_at = began_at or answer.at
        last_page = max(last_page, answer.last_page or 0)
        _check_page(answer, page, last_page)
        new = [item for item in answer.items if item.id not in found]
        oldest = _oldest(new, oldest)
        found.update((item.id, item) for item in new)
        recognised = recognised or await _first_of_ours(session, new, private=private)
        if _is_last(answer, page, is_new=bool(new)) or (recognised and oldest is not None and oldest < since):
            break
    if recognised is None:
        which = "private " if private else ""
        raise VoidReading(
            f"the list shows no {which}{kind.value} that this store has bought: its silence proves nothing"
        )
    assert began_at is not None
    assert answer.at is not None
    reading = Reading(began_at=began_at, ended_at=answer.at, generations=len(found), recognised=recognised)
    return _Listing(tuple(found.values()), reading)


def _check_page(answer: Page[Generation], page: int, last_page: int) -> None:
    """Refuse a page that may hide a generation."""
    if answer.skipped:
        raise VoidReading(f"page {page} of the list holds records that can't be read")
    if not answer.items and 1 < page <= last_page:
        raise VoidReading(f"page {page} of the list is missing")


def _oldest(new: Sequence[Generation], before: datetime | None) -> datetime | None:
    """Return when the last item was made, if the list is newest first up to there.

    `new` leaves out what was on an earlier page already: new generations push others down to the next one.
    """
    times = [item.created_at for item in new if item.created_at is not None]
    if len(times) < len(new):
        raise VoidReading("the list does not say when its generations were made")
    ordered = times if before is None else [before, *times]
    if ordered != sorted(ordered, reverse=True):
        raise VoidReading("the list is not newest first")
    return ordered[-1] if ordered else None


def _is_last(answer: Page[Generation], page: int, *, is_new: bool) -> bool:
    if answer.last_page is not None:
        return page >= answer.last_page
    if len(answer.items) < MAX_PER_PAGE:
        return True
    if not is_new:
        raise VoidReading("the pages of the list repeat themselves")
    return False


async def _first_of_ours(session: Session, listed: Sequence[Generation], *, private: bool) -> str | None:
    """Return a listed generation that this ledger bought, recognised by the comparison that candidates are found by."""
    for item in listed:
        key = await session.ledger.claimant(session.client.base_url, item.id)
        entry = None if key is None else await session.ledger.read(key)
        if entry is None or item.id not in entry.receipt.known_ids or not could_be(entry.receipt, item):
            continue
        if not private or entry.receipt.request.private:
            return item.id
    return None


# ---------------------------------------------------------------- what was found


async def write_down(session: Session, entry: Entry, generation: Generation, event: EventName) -> Entry | None:
    """Return the receipt with the generation it paid for, claimed and settled; `None` if another receipt has it."""
    if generation.type is None:  # the newer shape of the response doesn't say
        generation = generation.model_copy(update={"type": await _kind_of(session, entry.receipt)})
    bought = await session.ledger.buy(entry, generation, event)
    if bought is None:
        return None
    receipt = bought.receipt
    if not receipt.is_about(generation):
        session.log.warning(
            "Generation %s was bought as well for %s: the service was slower than VEOGEN_IN_DOUBT_SECONDS allows. "
            "It was claimed and counted; raise VEOGEN_IN_DOUBT_SECONDS if this happens again",
            generation.id,
            receipt.key,
        )
    elif receipt.price_usd is not None and receipt.quote_usd is not None and receipt.price_usd > receipt.quote_usd:
        session.log.warning(
            "%s cost %s, more than the %s that its model object promised",
            receipt.key,
            in_usd(receipt.price_usd),
            in_usd(receipt.quote_usd),
        )
    return bought


def still_in_doubt(
    session: Session, receipt: Receipt, reason: str, candidates: Sequence[str] = ()
) -> UnknownSubmission:
    """Return the error of a purchase in doubt: until when that lasts, what happens then, and how to decide now."""
    doubt = Doubt.of(session, receipt)
    retry_at = None if candidates else doubt.retry_at(session)
    adopt = f"`prefect-veogen receipts adopt {receipt.key} GENERATION_ID`"
    release = f"`prefect-veogen receipts release {receipt.key}`"
    if retry_at is None:
        step = (
            f"Look at the account's generations. If one of them is it: {adopt}. If it was never made: {release}, then "
            "run it again. Until then nothing is bought for this request."
        )
    else:
        step = (
            f"Run it again after {retry_at:%Y-%m-%d %H:%M:%S} UTC: if the service has listed it by then, it is used; "
            f"if it is proven absent, it is bought again. To decide now: {adopt}, or, if it was never made, {release}."
        )
    if doubt.why_never and not candidates:
        reason = f"{reason}; {doubt.why_never}"
    return UnknownSubmission(
        f"A purchase of {receipt.request.model} was sent at {receipt.sent_at:%Y-%m-%d %H:%M:%S} UTC, its response was "
        f"lost, and {reason}",
        next_step=step,
        receipt=receipt.key,
        candidates=candidates,
        doubt_until=retry_at,
    )


def needs_reading(receipt: Receipt) -> bool:
    """Tell whether one more reading has to come before the next purchase: an earlier attempt may yet turn up."""
    return bool(receipt.lost) and receipt.lost[-1].given_up_at > datetime.now(UTC) - _MAY_TURN_UP


def _sent_at(session: Session, receipt: Receipt) -> datetime:
    """Return when a receipt was sent, by the earlier of both clocks: the service's may only widen a search."""
    offset = session.client.clock_offset or timedelta(0)
    if receipt.clock_offset_seconds is not None:
        offset = max(offset, timedelta(seconds=receipt.clock_offset_seconds))
    return (receipt.sent_at or receipt.history[0].at) - max(offset, timedelta(0))


def _is_since(generation: Generation, since: datetime) -> bool:
    return generation.created_at is None or generation.created_at >= since


def _floor(moment: datetime) -> datetime:
    """Return a moment a little earlier which many purchases have in common, so that one listing serves them all."""
    return moment - (moment - datetime.min.replace(tzinfo=UTC)) % _SHARED_SPAN


async def _kind_of(session: Session, receipt: Receipt) -> Kind | None:
    try:
        return (await session.catalogue.model(receipt.request.model)).type
    except VeogenError:
        return None
