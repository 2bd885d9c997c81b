"""The rate limiter: when the next request of this process may be sent, purchases before reads, neither starved.

Requests are paced evenly with a tiny burst, so that no window of 60 seconds, however the service counts, sees more than
the limit (/authentication: 120 requests a minute; the kind of window is not documented).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING

from prefect_veogen.process.concurrency import backoff_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SPARED_SHARE = 0.02
_MAX_BURST = 3
# After a purchase in doubt the next one is held for this many intervals, for twice as many after each further one.
_INTERVALS_HELD = 2
_MAX_INTERVALS_HELD = 64
# After this many purchases in a row a waiting read goes first: reads get at most 1 in 15 requests during purchases.
_MAX_PURCHASES_IN_A_ROW = 14


class Lane(IntEnum):
    """What a request is for, in order of priority; every poll is a read."""

    BUYING = 0
    READING = 1


def burst_and_interval(requests_per_minute: int) -> tuple[int, float]:
    """Return how many requests may be sent at once, and the seconds between them after that."""
    spared = max(1, round(requests_per_minute * _SPARED_SHARE))
    return min(spared, _MAX_BURST), 60 / max(requests_per_minute - spared, 1)


class RateLimiter:
    """Paces the requests of one account in this process; belongs to one event loop."""

    def __init__(self, requests_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        burst, self._interval = burst_and_interval(requests_per_minute)
        self._ahead = (burst - 1) * self._interval
        self._clock = clock
        self._next_at = 0.0
        self._paused_until = 0.0
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}
        self._purchases_in_a_row = 0
        self._in_doubt_in_a_row = 0
        self._purchases_held_until = 0.0
        self._runner: asyncio.Task[None] | None = None
        self.acquire_shared: Callable[[], Awaitable[None]] | None = None
        """Acquires the limit shared by all workers, after this process's own; must not raise."""

    async def acquire(self, lane: Lane) -> None:
        """Return when a request may be sent; it must follow at once, or `return_unused` be called."""
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(permit)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled():
                self.return_unused()
            raise

    def return_unused(self) -> None:
        """Make up for an acquired request that was not sent."""
        self._next_at -= self._interval

    def pause(self, seconds: float) -> None:
        """Hold all requests for that long; overlapping pauses are one."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def report_purchase(self, *, in_doubt: bool) -> None:
        """Hold the next purchases while outcomes are in doubt, longer after each, until the first clear response.

        A purchase in doubt may need manual review, so a service in trouble should get few of them.
        """
        if in_doubt:
            self._in_doubt_in_a_row += 1
            intervals = backoff_seconds(self._in_doubt_in_a_row, first=_INTERVALS_HELD, longest=_MAX_INTERVALS_HELD)
            self._purchases_held_until = self._clock() + intervals * self._interval
        else:
            self._in_doubt_in_a_row = 0
            self._purchases_held_until = 0.0

    async def _run(self) -> None:
        while any(self._waiting.values()):
            if self._are_purchases_held() and not self._waiting[Lane.READING]:
                await asyncio.sleep(self._interval)  # a read may come
                continue
            await self._wait_for_next()
            # Chosen last: purchases may have come meanwhile, and other requests been cancelled.
            permit = self._pop_next()
            if permit is not None:
                self._next_at = max(self._next_at, self._clock()) + self._interval
                permit.set_result(None)
                # Let its owner run before the next one is scheduled: it may pause all requests.
                await asyncio.sleep(0)

    async def _wait_for_next(self) -> None:
        has_shared = False
        while True:
            delay = max(self._paused_until, self._next_at - self._ahead) - self._clock()
            if delay > 0:
                # After a pause the shared limit is acquired anew: otherwise all workers would send at once.
                has_shared = False
                await asyncio.sleep(delay)
            elif self.acquire_shared is None or has_shared:
                return
            else:
                await self.acquire_shared()
                has_shared = True

    def _pop_next(self) -> asyncio.Future[None] | None:
        for lane in self._order_lanes():
            while self._waiting[lane]:
                permit = self._waiting[lane].popleft()
                if not permit.done():
                    self._purchases_in_a_row = self._purchases_in_a_row + 1 if lane is Lane.BUYING else 0
                    return permit
        return None

    def _are_purchases_held(self) -> bool:
        return self._clock() < self._purchases_held_until

    def _order_lanes(self) -> tuple[Lane, ...]:
        if self._are_purchases_held():
            return (Lane.READING,)
        if self._purchases_in_a_row >= _MAX_PURCHASES_IN_A_ROW:
            return Lane.READING, Lane.BUYING
        return Lane.BUYING, Lane.READING
