"""One watcher answers all waits of an account in this process, with as few requests as will do.

One list request tells of up to 100 generations, so each look is the request which can tell most: the page on which the
most overdue generations are expected. Single looks are for what the lists don't show, and for when they are broken. A
failed look never fails a generation. With nobody waiting, nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from prefect_veogen.api.client import MAX_PER_PAGE
from prefect_veogen.errors import (
    AuthenticationError,
    OutputMissing,
    PersonNeeded,
    StillRunning,
    TryAgainLater,
    UnexpectedAnswer,
    VeogenError,
)
from prefect_veogen.models import Generation, Kind, Status, in_usd

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_veogen.api.client import VeogenClient

_log = logging.getLogger("prefect_veogen")

DEFAULT_TIMEOUT_SECONDS = {Kind.IMAGE: 600.0, Kind.VIDEO: 1800.0, None: 1800.0}
_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_SERVICE_IN_TROUBLE = (TryAgainLater, UnexpectedAnswer, AuthenticationError)
# Some eight seconds: a gateway that stumbles refuses everybody for a moment, a token that was revoked does so for ever.
_REFUSALS_BELIEVED = 5
_NOT_FOUNDS_BELIEVED = 5
# A look that keeps failing is made again after twice as many polls each time, up to so many.
_LONGEST_REST_POLLS = 32
# Where the lists are broken, this many are looked at in the time of one poll, however many wait.
_SINGLES_PER_POLL = 4
_LOOKS_FOR_AN_OUTPUT = 8
_MOST_SINGLES_IN_A_ROW = 16
_DURATIONS_REMEMBERED = 50
_BIRTHS_REMEMBERED = 1000
# Generations of a model have been taking at least so long: looking much earlier is a wasted request.
_EARLIEST_SHARE = 0.8
_NOWHERE = 10**9
# With so many of a kind waiting, a look at them all takes several requests.
_MANY = 60
# For a single generation which they don't show, a look at it tells sooner than any more pages.
_MOST_PAGES_FOR_ONE = 2
# A list may keep telling old news. Hardly a generation takes longer than so many looks (/api-reference/generations/get:
# images 15 s, videos 120 s), so that the generation itself is asked then, and again after twice the time.
_LOOKS_BELIEVED = 50


@dataclass(eq=False)
class _Awaited:
    """One generation somebody waits for, and what is known of where to look for it."""

    generation: Generation
    born: float | None
    due_at: float
    looked_at: float
    doubt_at: float
    believed_seconds: float
    place: dict[Kind | None, int] = field(default_factory=dict)
    placed_after: dict[Kind | None, int] = field(default_factory=dict)
    singles_left: int = 0
    times_missing: int = 0
    times_failed: int = 0
    times_not_found: int = 0
    looks_without_output: int = 0
    confirmed: set[str | None] = field(default_factory=set)
    waiters: list[tuple[asyncio.Future[Generation], Callable[[Generation], None]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Look:
    """One request: a page of a list, or a single generation."""

    kind: Kind | None = None
    page: int = 1
    single: str | None = None


class Watcher:
    """Looks for all waits of one account; belongs to the I/O loop."""

    def __init__(
        self,
        client: VeogenClient,
        image_poll_seconds: float,
        video_poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._poll_seconds = {Kind.IMAGE: image_poll_seconds, Kind.VIDEO: video_poll_seconds, None: image_poll_seconds}
        self._clock = clock
        self._awaited: dict[str, _Awaited] = {}
        self._births: dict[str, float] = {}
        self._born: Counter[Kind | None] = Counter()
        self._durations: dict[str | None, deque[float]] = {}
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._failures = 0
        self._refusals = 0
        self._resting: dict[_Look, tuple[int, float]] = {}
        self._failed_in_a_row: set[_Look] = set()
        self._after_a_single = False

    def bought(self, generation: Generation) -> None:
        """Take note of a generation that was bought just now: it is on top of the lists, and not finished yet."""
        self._births[generation.id] = self._clock()
        if len(self._births) > _BIRTHS_REMEMBERED:  # nobody in this process waits for the oldest
            del self._births[next(iter(self._births))]
        self._born[None] += 1
        if generation.type is not None:
            self._born[generation.type] += 1

    async def until_over(
        self, generation: Generation, timeout_seconds: float | None, on_change: Callable[[Generation], None]
    ) -> Generation:
        """Return the generation once it is completed (with an output) or failed.

        Raises:
            StillRunning: it was not over in time; it goes on, and waiting again costs nothing.
            OutputMissing: it is completed, and the service keeps naming no output.
            PersonNeeded: the service keeps knowing no such generation.
            AuthenticationError: the token is refused, again and again.
        """
        if timeout_seconds is None:
            timeout_seconds = DEFAULT_TIMEOUT_SECONDS[generation.type]
        awaited = self._awaited.get(generation.id) or self._new(generation)
        waiter: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        entry = (waiter, on_change)
        awaited.waiters.append(entry)
        self._wake.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(timeout_seconds):
                told = await waiter
        except TimeoutError:
            raise _still_running(awaited.generation, generation, timeout_seconds) from None
        finally:
            awaited.waiters.remove(entry)
            if not awaited.waiters:
                self._forget(awaited)
                self._wake.set()
        # Others who wait for it may know less of it, or have another receipt.
        own = {"receipt": generation.receipt, "price_usd": generation.price_usd or told.price_usd}
        return told.model_copy(update=own)

    def _forget(self, awaited: _Awaited) -> None:
        # Somebody else may wait for the same generation anew, under a record of its own.
        if self._awaited.get(awaited.generation.id) is awaited:
            del self._awaited[awaited.generation.id]

    # ------------------------------------------------------------ when to look

    def _new(self, generation: Generation) -> _Awaited:
        now = self._clock()
        born = self._births.pop(generation.id, None)
        earliest = now if born is None else max(now, born + self._earliest_after(generation))
        due_at = earliest if born is None else self._tick_after(earliest, generation.type)
        believed = self._longest_usual(generation)
        awaited = _Awaited(
            generation, born, due_at, looked_at=born or now, doubt_at=now + believed, believed_seconds=believed
        )
        for kind in self._lists_of(generation):
            awaited.place[kind] = 0
            awaited.placed_after[kind] = self._born[kind]
        self._awaited[generation.id] = awaited
        return awaited

    def _earliest_after(self, generation: Generation) -> float:
        known = self._durations.get(generation.model)
        poll = self._poll_seconds[generation.type]
        return max(poll, min(known) * _EARLIEST_SHARE) if known else poll

    def _longest_usual(self, generation: Generation) -> float:
        known = self._durations.get(generation.model)
        return max(self._poll_seconds[generation.type] * _LOOKS_BELIEVED, 2 * max(known) if known else 0.0)

    def _tick_after(self, moment: float, kind: Kind | None) -> float:
        """Return the next time to look at such generations: the same for all of them, so that one request does."""
        poll = self._poll_seconds[kind]
        if sum(awaited.generation.type is kind for awaited in self._awaited.values()) > _MANY:
            # The documentation's slower pace (/api-reference/generations/get: videos every 5 to 10 seconds).
            poll *= 2
        return math.ceil(moment / poll) * poll

    async def _run(self) -> None:
        while self._awaited:
            now = self._clock()
            due = [awaited for awaited in self._awaited.values() if awaited.due_at <= now]
            if not due:
                await self._sleep(min(awaited.due_at for awaited in self._awaited.values()) - now)
                continue
            look = self._most_telling(due, now)
            self._after_a_single = look.single is not None
            try:
                if look.single is not None:
                    self._told_one(look.single, await self._client.get_generation(look.single))
                else:
                    await self._look_at_a_page(look)
            except VeogenError as error:
                await self._after_failure(look, error)
            except Exception as error:  # whatever it was, the waits must not hang on it unheard
                self._end_all(VeogenError(f"Waiting broke down: {error!r}", next_step="Run it again, and report this."))
                raise
            else:
                if self._failures:
                    _log.info("The service answers again")
                self._failures = self._refusals = 0
                self._failed_in_a_row.clear()
                self._resting.pop(look, None)

    async def _sleep(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _after_failure(self, look: _Look, error: VeogenError) -> None:
        if isinstance(error, AuthenticationError):
            self._refusals += 1
            if self._refusals >= _REFUSALS_BELIEVED:
                self._end_all(error)
                return
        if not self._failures:
            _log.warning("A look at running generations failed and will be repeated: %s", error.message)
        in_trouble = isinstance(error, _SERVICE_IN_TROUBLE)
        pause = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)] if in_trouble else 0.0
        if look.single is None:
            times, _ = self._resting.get(look, (0, 0.0))
            self._resting[look] = (times + 1, self._rest_over(look.kind, times + 1, pause))
            self._failed_in_a_row.add(look)
        elif look.single in self._awaited:
            self._not_told(self._awaited[look.single], error, pause)
        if in_trouble:
            self._failures += 1
            await asyncio.sleep(pause)

    def _rest_over(self, kind: Kind | None, times_failed: int, pause: float) -> float:
        return self._clock() + pause + self._poll_seconds[kind] * min(2.0**times_failed, _LONGEST_REST_POLLS)

    # ------------------------------------------------------------ where to look

    def _most_telling(self, due: list[_Awaited], now: float) -> _Look:
        gain: dict[_Look, float] = {}
        for awaited in due:
            for look in self._looks_for(awaited):
                gain[look] = gain.get(look, 0.0) + 0.001 + now - awaited.looked_at
        # However many can only be looked at singly, those whom a list can tell of don't wait for them all.
        pages = [look for look in gain if look.single is None]
        return max(pages if pages and self._after_a_single else gain, key=lambda look: gain[look])

    def _looks_for(self, awaited: _Awaited) -> list[_Look]:
        if awaited.singles_left:
            return [_Look(single=awaited.generation.id)]
        pages = [page for page in self._pages_for(awaited) if not self._rests(page)]
        return pages or [_Look(single=awaited.generation.id)]

    def _rests(self, page: _Look) -> bool:
        # However long the pauses are: when the lists have failed one after the other, it is the singles' turn.
        return page in self._failed_in_a_row or self._clock() < self._resting.get(page, (0, 0.0))[1]

    def _pages_for(self, awaited: _Awaited) -> list[_Look]:
        pages = []
        for kind in self._lists_of(awaited.generation):
            page = self._place(awaited, kind) // MAX_PER_PAGE + 1
            # Without a kind the service shows nothing behind the first page.
            if page == 1 or (kind is not None and page < _NOWHERE // MAX_PER_PAGE):
                pages.append(_Look(kind, page))
        return pages

    def _lists_of(self, generation: Generation) -> tuple[Kind | None, ...]:
        return (None,) if generation.type is None else (None, generation.type)

    def _place(self, awaited: _Awaited, kind: Kind | None) -> int:
        """Return how many generations are newer in a list, as far as we know."""
        if kind not in awaited.place:
            return 0
        return awaited.place[kind] + self._born[kind] - awaited.placed_after[kind]

    def _put(self, awaited: _Awaited, kind: Kind | None, place: int) -> None:
        awaited.place[kind] = place
        awaited.placed_after[kind] = self._born[kind]

    # ------------------------------------------------------------ what a look tells

    async def _look_at_a_page(self, look: _Look) -> None:
        expected = [awaited for awaited in self._awaited.values() if look in self._looks_for(awaited)]
        answer = await self._client.list_generations(look.kind, page=look.page)
        shown = {generation.id: position for position, generation in enumerate(answer.items)}
        for generation in answer.items:
            awaited = self._awaited.get(generation.id)
            if awaited is not None:
                self._put(awaited, look.kind, (look.page - 1) * MAX_PER_PAGE + shown[generation.id])
                awaited.times_missing = 0
                doubted, due_at, looked_at = awaited.singles_left, awaited.due_at, awaited.looked_at
                self._told(awaited, generation)
                if doubted:
                    # The list does not put off the look at the generation itself, however often it is read.
                    awaited.due_at, awaited.looked_at = due_at, looked_at
        missing = [awaited for awaited in expected if awaited.generation.id not in shown]
        pays = answer.has_more and (len(missing) > 1 or look.page < _MOST_PAGES_FOR_ONE)
        for awaited in missing:
            self._missing(awaited, look, next_page_pays=pays)

    def _missing(self, awaited: _Awaited, look: _Look, *, next_page_pays: bool) -> None:
        if look.kind is None and awaited.generation.type is not None:
            self._put(awaited, None, _NOWHERE)
        elif look.kind is not None and next_page_pays:
            self._put(awaited, look.kind, look.page * MAX_PER_PAGE)
        else:
            self._look_singly(awaited)

    def _look_singly(self, awaited: _Awaited) -> None:
        """Ask for this one by its id for a while, then give the lists another chance."""
        awaited.singles_left = min(2**awaited.times_missing, _MOST_SINGLES_IN_A_ROW)
        awaited.times_missing += 1

    def _told_one(self, generation_id: str, told: Generation) -> None:
        awaited = self._awaited.get(generation_id)
        if awaited is None:
            return
        instead_of_a_list = not awaited.singles_left
        self._looked_singly(awaited)
        awaited.confirmed.add(told.status_text)
        self._told(awaited, told)
        if instead_of_a_list:
            # Hundreds who are looked at one by one would take every turn there is.
            poll = self._poll_seconds[awaited.generation.type]
            pace = len(self._awaited) / _SINGLES_PER_POLL * poll
            awaited.due_at = max(awaited.due_at, self._clock() + pace)

    def _looked_singly(self, awaited: _Awaited) -> None:
        if awaited.singles_left:
            awaited.singles_left -= 1
            if not awaited.singles_left:
                for kind in self._lists_of(awaited.generation):
                    self._put(awaited, kind, 0)

    def _not_told(self, awaited: _Awaited, error: VeogenError, pause: float) -> None:
        if pause and self._failures:
            # Nothing is answered at all: neither the lists are to blame for that, nor this generation.
            self._resting.clear()
            self._failed_in_a_row.clear()
        else:
            awaited.times_failed += 1
        awaited.looked_at = self._clock()
        awaited.due_at = self._rest_over(awaited.generation.type, awaited.times_failed, pause)
        if error.http_status == HTTPStatus.NOT_FOUND:
            awaited.times_not_found += 1
            self._looked_singly(awaited)
            if awaited.times_not_found >= _NOT_FOUNDS_BELIEVED:
                self._end(awaited, _not_found(awaited.generation, error))

    def _told(self, awaited: _Awaited, told: Generation) -> None:
        before, now = awaited.generation, self._clock()
        # A service may write an id otherwise; here it goes by the one it is awaited under.
        known = {"id": before.id, "receipt": before.receipt, "price_usd": before.price_usd or told.price_usd}
        known |= {"type": told.type or before.type, "model": told.model or before.model}
        awaited.generation = told.model_copy(update=known)
        awaited.looked_at = now
        awaited.times_failed = awaited.times_not_found = 0
        kind = awaited.generation.type
        awaited.due_at = self._tick_after(now + self._poll_seconds[kind] / 2, kind)
        if told.status != before.status:
            for _, on_change in awaited.waiters:
                on_change(awaited.generation)
        if told.status is Status.FAILED or (told.status is Status.COMPLETED and told.output is not None):
            self._over(awaited)
        elif told.status is Status.COMPLETED:
            awaited.looks_without_output += 1
            awaited.singles_left = max(awaited.singles_left, 1)
            if awaited.looks_without_output > _LOOKS_FOR_AN_OUTPUT:
                message = f"Generation {told.id} is completed, but the service names no output for it"
                self._end(awaited, OutputMissing(message, generation_id=told.id))
        elif told.status is Status.UNRECOGNISED and told.status_text not in awaited.confirmed:
            # A list that contradicts the documentation: see, once, whether the generation itself does.
            awaited.singles_left = max(awaited.singles_left, 1)
        elif now >= awaited.doubt_at:
            awaited.believed_seconds *= 2
            awaited.doubt_at = now + awaited.believed_seconds
            awaited.singles_left = max(awaited.singles_left, 1)

    def _over(self, awaited: _Awaited) -> None:
        if awaited.born is not None:
            known = self._durations.setdefault(awaited.generation.model, deque(maxlen=_DURATIONS_REMEMBERED))
            known.append(self._clock() - awaited.born)
        self._forget(awaited)
        for waiter, _ in awaited.waiters:
            if not waiter.done():
                waiter.set_result(awaited.generation)

    def _end(self, awaited: _Awaited, error: VeogenError) -> None:
        self._forget(awaited)
        for waiter, _ in awaited.waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _end_all(self, error: VeogenError) -> None:
        for awaited in list(self._awaited.values()):
            self._end(awaited, error)


def _still_running(last: Generation, asked: Generation, timeout_seconds: float) -> StillRunning:
    status = last.status_text or last.status.value
    price = f", paid {in_usd(asked.price_usd)}" if asked.price_usd is not None else ""
    return StillRunning(
        f"Generation {asked.id} is still {status} after {timeout_seconds:g} s{price}", generation_id=asked.id
    )


def _not_found(generation: Generation, error: VeogenError) -> PersonNeeded:
    return PersonNeeded(
        f"The service keeps saying that it knows no generation {generation.id}",
        next_step="Check the id, and whether VEOGEN_API_TOKEN and VEOGEN_BASE_URL (or the block's) are those it was "
        "bought with; then run it again: it buys nothing.",
        generation_id=generation.id,
        http_status=error.http_status,
        service_text=error.service_text,
    )
