"""Purchases whose response was lost: how long they are in doubt, adopted, proven absent, or left to a person."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from prefect_veogen.errors import TryAgainLater, UnknownSubmission
from prefect_veogen.ledger.receipt import READINGS_NEEDED
from prefect_veogen.ledger.transitions import EventName
from prefect_veogen.models import in_usd
from prefect_veogen.process.concurrency import backoff_seconds
from prefect_veogen.purchase.notices import note_in_doubt
from prefect_veogen.purchase.readings import VoidReading, read_list
from prefect_veogen.purchase.search import Search, search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.ledger import Entry
    from prefect_veogen.ledger.receipt import Reading, Receipt
    from prefect_veogen.models import Generation
    from prefect_veogen.session import Session

_READING_TRIES = 5
_pause_seconds = partial(backoff_seconds, longest=5.0)
_SEARCHED_FOR = timedelta(days=7)
_MAY_TURN_UP = timedelta(days=1)
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
    """Note that the response to a purchase is lost, and until when it is in doubt."""
    reason = f"{reason}; {Doubt.of(session, entry.receipt).outlook}"
    noted = await session.ledger.doubt(entry, reason)
    note_in_doubt(session, noted.receipt, reason)
    return noted


# ---------------------------------------------------------------- proving an absence


async def prove_absent(session: Session, entry: Entry, doubt: Doubt) -> tuple[Entry, Search]:
    """Return the receipt with the readings that prove its purchase absent, or what one of them found instead.

    Raises:
        UnknownSubmission: a reading shows candidates, or proves nothing.
    """
    tries = 0
    while not doubt.proves_absence(entry.receipt):
        await asyncio.sleep(doubt.seconds_to_next_reading(session, entry.receipt))
        await session.ledger.check_current(entry)
        outcome, reading = await read_repeatedly(session, entry.receipt)
        if outcome.found is not None:
            return entry, outcome
        if outcome.candidates:
            raise still_in_doubt(session, entry.receipt, outcome.reason, outcome.candidates, may_settle=outcome.wait)
        if doubt.accepts(entry.receipt, reading):
            entry = await session.ledger.note_reading(entry, reading)
            tries = 0
            continue
        tries += 1
        if tries > _READING_TRIES:
            raise still_in_doubt(session, entry.receipt, "the service's clock does not go on")
        await asyncio.sleep(_DATE_RESOLUTION.total_seconds())
    return entry, Search()


async def read_repeatedly(session: Session, receipt: Receipt) -> tuple[Search, Reading]:
    """Return what one complete reading says, after some more tries where the service could not be asked.

    Raises:
        UnknownSubmission: it proves nothing.
    """
    for attempt in range(1, _READING_TRIES + 1):
        try:
            return await read_list(session, receipt)
        except VoidReading as void:
            raise still_in_doubt(session, receipt, f"{void}", ended_by=void.ended_by) from None
        except TryAgainLater as error:
            failure = error
        await asyncio.sleep(_pause_seconds(attempt))
    raise still_in_doubt(session, receipt, f"the service could not be asked: {failure.message}")


# ---------------------------------------------------------------- adopting


async def adopt_found(session: Session, entry: Entry) -> Entry:
    """Return a receipt in doubt as bought, after one search.

    Raises:
        UnknownSubmission: it isn't listed, or can't be distinguished from others; nothing changed.
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


# ---------------------------------------------------------------- what was found


async def write_down(session: Session, entry: Entry, generation: Generation, event: EventName) -> Entry | None:
    """Return the receipt with the generation it paid for, claimed and settled; `None` if another receipt has it."""
    if generation.type is None:  # the newer shape of the response doesn't say
        kind = await session.catalogue.find_kind(entry.receipt.request.model)
        generation = generation.model_copy(update={"type": kind})
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
    session: Session,
    receipt: Receipt,
    reason: str,
    candidates: Sequence[str] = (),
    *,
    may_settle: bool = False,
    ended_by: str | None = None,
) -> UnknownSubmission:
    """Return the error of a purchase in doubt: until when that lasts, what happens then, and how to decide now.

    `ended_by` is what has to happen first, where time alone would not end it.
    """
    doubt = Doubt.of(session, receipt)
    retry_at = None if candidates and not may_settle else doubt.retry_at(session)
    adopt = f"`prefect-veogen receipts adopt {receipt.key} GENERATION_ID`"
    release = f"`prefect-veogen receipts release {receipt.key}`"
    if retry_at is None:
        step = (
            f"Look at the account's generations. If one of them is it: {adopt}. If it was never made: {release}, then "
            "run it again. Until then nothing is bought for this request."
        )
    else:
        when = f"after {retry_at:%Y-%m-%d %H:%M:%S} UTC"
        first = f"Time alone won't end this: {ended_by}. Then run" if ended_by else "Run"
        step = (
            f"{first} it again {when}: if the service has listed it by then, it is used; if it is proven absent, it is "
            f"bought again. To decide now: {adopt}, or, if it was never made, {release}."
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
