"""Turns: when the next request of this process may go out, buying before looking, nobody starved.

Requests are paced evenly with a tiny burst, so that no window of 60 seconds, however the service counts, sees more than
the limit (/authentication: 120 requests a minute; the kind of window is not documented).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SPARED_SHARE = 0.02
_MOST_AT_ONCE = 3
# While purchases are not answered, the next one waits for so many turns, for twice as many after each.
_TURNS_HELD = 2
_MOST_DOUBLINGS = 5
# After so many purchases in a row a waiting look goes first: looks get at most 1 in 15 turns while there is buying.
_PURCHASES_BEFORE_A_LOOK = 14


class Lane(IntEnum):
    """What a request is for."""

    BUYING = 0
    LOOKING = 1


def pace(requests_per_minute: int) -> tuple[int, float]:
    """Return how many requests may go out at once, and the seconds between them after that."""
    spared = max(1, round(requests_per_minute * _SPARED_SHARE))
    return min(spared, _MOST_AT_ONCE), 60 / max(requests_per_minute - spared, 1)


class Limiter:
    """Hands out turns to the requests of one account in this process; belongs to one event loop."""

    def __init__(self, requests_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        burst, self._interval = pace(requests_per_minute)
        self._ahead = (burst - 1) * self._interval
        self._clock = clock
        self._earliest = 0.0
        self._paused_until = 0.0
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}
        self._purchases_in_a_row = 0
        self._unanswered_in_a_row = 0
        self._purchases_held_until = 0.0
        self._runner: asyncio.Task[None] | None = None
        self.join: Callable[[], Awaitable[None]] | None = None
        """Waits for a turn among all workers, after the process's own one; raises nothing."""

    async def turn(self, lane: Lane) -> None:
        """Return when a request may go out."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Return a turn that was not used."""
        self._earliest -= self._interval

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long; what many requests were told at once is one pause."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def answered(self, *, clearly: bool) -> None:
        """Take note of how a purchase was answered: of a service in trouble not everybody should become a victim.

        A purchase whose outcome is unknown may be left to a person, so that the others hold back for a while.
        """
        if clearly:
            self._unanswered_in_a_row = 0
            self._purchases_held_until = 0.0
        else:
            turns = _TURNS_HELD * 2 ** min(self._unanswered_in_a_row, _MOST_DOUBLINGS)
            self._unanswered_in_a_row += 1
            self._purchases_held_until = self._clock() + turns * self._interval

    async def _run(self) -> None:
        while any(self._waiting.values()):
            if self._are_purchases_held() and not self._waiting[Lane.LOOKING]:
                await asyncio.sleep(self._interval)  # a look may come
                continue
            await self._somebody_may_go()
            # Chosen last: meanwhile purchases may have come, and others have gone.
            turn = self._next()
            if turn is not None:
                self._earliest = max(self._earliest, self._clock()) + self._interval
                turn.set_result(None)
                # Let the holder go before the next turn is worked out: he may pause everybody.
                await asyncio.sleep(0)

    async def _somebody_may_go(self) -> None:
        joined = False
        while True:
            delay = max(self._paused_until, self._earliest - self._ahead) - self._clock()
            if delay > 0:
                # After a pause the turn among all is taken anew: many workers' old ones would all be used at once.
                joined = False
                await asyncio.sleep(delay)
            elif self.join is None or joined:
                return
            else:
                await self.join()
                joined = True

    def _next(self) -> asyncio.Future[None] | None:
        for lane in self._order():
            while self._waiting[lane]:
                turn = self._waiting[lane].popleft()
                if not turn.done():
                    self._purchases_in_a_row = self._purchases_in_a_row + 1 if lane is Lane.BUYING else 0
                    return turn
        return None

    def _are_purchases_held(self) -> bool:
        return self._clock() < self._purchases_held_until

    def _order(self) -> tuple[Lane, ...]:
        if self._are_purchases_held():
            return (Lane.LOOKING,)
        if self._purchases_in_a_row >= _PURCHASES_BEFORE_A_LOOK:
            return Lane.LOOKING, Lane.BUYING
        return Lane.BUYING, Lane.LOOKING
