"""Never more requests than the limit in any minute, almost the limit in every minute, purchases first, none starved.

Everything runs on an event loop whose time jumps to the next scheduled call, so minutes take milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_veogen.api.rate_limit import Lane, RateLimiter, burst_and_interval

BUYING, READING = Lane.BUYING, Lane.READING


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits."""

    moment = 1000.0

    def time(self) -> float:
        return self.moment

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.moment = max(self.moment, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(story)


def now() -> float:
    return asyncio.get_running_loop().time() - JumpingLoop.moment


def limiter_of(requests_per_minute: int) -> RateLimiter:
    return RateLimiter(requests_per_minute, clock=asyncio.get_running_loop().time)


def assert_no_minute_holds_more(times: list[float], requests_per_minute: int) -> None:
    times.sort()
    for first, one_too_many in zip(times, times[requests_per_minute:], strict=False):
        assert one_too_many - first > 60 - 1e-6


@pytest.mark.parametrize("rate", [2, 3, 10, 33, 34, 120, 1000])
def test_no_minute_sees_more_than_the_limit_and_none_much_less(rate: int) -> None:
    times: list[float] = []

    async def story() -> None:
        limiter = limiter_of(rate)

        async def use() -> None:
            await limiter.acquire(READING)
            times.append(now())

        await asyncio.gather(*(use() for _ in range(3 * rate)))

    run(story())
    assert_no_minute_holds_more(times, rate)
    assert sum(moment < 60.01 for moment in times) >= 0.96 * rate
    assert sum(60.01 <= moment < 120.01 for moment in times) >= int(0.96 * rate)


def test_after_a_rest_the_limit_holds_too() -> None:
    times: list[float] = []

    async def story() -> None:
        limiter = limiter_of(120)
        for rest in (0, 0.3, 5, 61, 600, 0):
            await asyncio.sleep(rest)
            for _ in range(70):
                await limiter.acquire(BUYING)
                times.append(now())

    run(story())
    assert_no_minute_holds_more(times, 120)


VISITORS = st.lists(
    st.tuples(
        st.floats(0, 150),  # arrives
        st.sampled_from(Lane),
        st.none() | st.floats(0, 20),  # times out after so long
        st.none() | st.floats(0, 30),  # gets a pause of so long
    ),
    max_size=120,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    visitors=VISITORS,
    rate=st.sampled_from([2, 10, 40, 120]),
    others=st.none() | st.floats(0, 5),  # the shared limit takes so long
)
def test_no_mix_of_arrivals_timeouts_and_pauses_breaks_the_limit_or_leaves_a_request_waiting(
    visitors: list[tuple[float, Lane, float | None, float | None]], rate: int, others: float | None
) -> None:
    granted: list[float] = []
    ends: list[str] = []

    async def story() -> None:
        limiter = limiter_of(rate)
        limiter.acquire_shared = None if others is None else lambda: asyncio.sleep(others)

        async def visit(arrives: float, lane: Lane, patience: float | None, pause: float | None) -> None:
            await asyncio.sleep(arrives)
            try:
                async with asyncio.timeout(patience):
                    await limiter.acquire(lane)
            except TimeoutError:
                ends.append("gave up")
                return
            granted.append(now())
            ends.append("went")
            if pause is not None:
                limiter.pause(pause)

        await asyncio.gather(*(visit(*visitor) for visitor in visitors))
        assert all(permit.done() for permits in limiter._waiting.values() for permit in permits)

    run(story())
    assert len(ends) == len(visitors)
    assert_no_minute_holds_more(granted, rate)


def test_purchases_go_before_reads() -> None:
    order: list[Lane] = []

    async def story() -> None:
        limiter = limiter_of(120)

        async def use(lane: Lane) -> None:
            await limiter.acquire(lane)
            order.append(lane)

        lanes = [READING] * 5 + [BUYING] * 5
        await asyncio.gather(*(use(lane) for lane in lanes))

    run(story())
    assert order == [BUYING] * 5 + [READING] * 5


def test_reads_are_not_starved_and_purchases_keep_fourteen_of_fifteen_requests() -> None:
    order: list[Lane] = []

    async def story() -> None:
        limiter = limiter_of(120)

        async def use(lane: Lane) -> None:
            await limiter.acquire(lane)
            order.append(lane)

        await asyncio.gather(*(use(lane) for lane in [BUYING] * 140 + [READING] * 40))

    run(story())
    while_buying = order[:150]
    assert while_buying.count(READING) == 10
    assert all(READING in while_buying[start : start + 15] for start in range(135))


def test_while_purchases_are_in_doubt_the_next_waits_longer_each_time_and_reads_go_on() -> None:
    bought: list[float] = []
    read_at: list[float] = []

    async def story() -> None:
        limiter = limiter_of(120)

        async def read() -> None:
            while True:
                await limiter.acquire(READING)
                read_at.append(now())

        reading = asyncio.create_task(read())
        for _ in range(9):
            await limiter.acquire(BUYING)
            bought.append(now())
            limiter.report_purchase(in_doubt=True)
        reading.cancel()

    run(story())
    interval = burst_and_interval(120)[1]
    waited = [round((later - earlier) / interval) for earlier, later in pairwise(bought)]
    assert waited == pytest.approx([2, 4, 8, 16, 32, 64, 64, 64], abs=2)
    assert len(read_at) >= 0.9 * (bought[-1] / interval - len(bought))


def test_without_reads_held_purchases_go_as_soon_as_they_may() -> None:
    times: list[float] = []

    async def story() -> None:
        limiter = limiter_of(120)
        await limiter.acquire(BUYING)
        for _ in range(3):
            limiter.report_purchase(in_doubt=True)
        for _ in range(5):
            await limiter.acquire(BUYING)
            times.append(now())
            limiter.report_purchase(in_doubt=False)

    run(story())
    interval = burst_and_interval(120)[1]
    assert 8 * interval <= times[0] <= 10 * interval
    assert times[-1] - times[0] <= 4 * interval + 1e-6


def test_without_purchases_reads_use_the_whole_limit() -> None:
    times: list[float] = []

    async def story() -> None:
        limiter = limiter_of(120)
        for _ in range(120):
            await limiter.acquire(READING)
            times.append(now())

    run(story())
    assert times[-1] <= 1.04 * 60


def test_a_cancelled_request_uses_up_nothing() -> None:
    times: dict[str, list[float]] = {"alone": [], "among quitters": []}

    async def story(name: str, quitters: int) -> None:
        limiter = limiter_of(10)
        await limiter.acquire(BUYING)
        leaving = [asyncio.create_task(limiter.acquire(BUYING)) for _ in range(quitters)]
        staying = [asyncio.create_task(limiter.acquire(BUYING)) for _ in range(3)]
        await asyncio.sleep(0.1)
        for task in leaving:
            task.cancel()
        for task in staying:
            await task
            times[name].append(now())

    run(story("alone", 0))
    run(story("among quitters", 50))
    assert times["alone"] == times["among quitters"]


def test_the_next_request_is_chosen_after_the_shared_limit_is_acquired() -> None:
    order: list[tuple[str, float]] = []

    async def story() -> None:
        limiter = limiter_of(120)
        limiter.acquire_shared = lambda: asyncio.sleep(10)

        async def use(name: str, lane: Lane) -> None:
            await limiter.acquire(lane)
            order.append((name, round(now())))

        reads = [asyncio.create_task(use("read", READING)) for _ in range(20)]
        await asyncio.sleep(5)
        purchase = asyncio.create_task(use("purchase", BUYING))
        reads.pop(0).cancel()
        await asyncio.gather(purchase, reads[0])

    run(story())
    assert order == [("purchase", 10), ("read", 20)]


def test_a_pause_holds_requests_that_wait_for_the_shared_limit_too() -> None:
    times: list[float] = []

    async def story() -> None:
        limiter = limiter_of(120)
        limiter.acquire_shared = lambda: asyncio.sleep(1)

        async def use() -> None:
            await limiter.acquire(READING)
            times.append(now())

        waiting = asyncio.gather(*(use() for _ in range(20)))
        await asyncio.sleep(0.5)
        limiter.pause(30)
        await waiting

    run(story())
    # What was acquired of the shared limit during the pause is not kept for its end.
    assert min(times) == pytest.approx(30.5 + 1, abs=0.01)


def test_the_shared_limit_acquired_for_a_cancelled_request_is_harmless() -> None:
    async def story() -> None:
        limiter = limiter_of(2)
        limiter.acquire_shared = lambda: asyncio.sleep(10)
        gone = asyncio.create_task(limiter.acquire(BUYING))
        await asyncio.sleep(1)
        gone.cancel()
        await asyncio.sleep(20)
        assert limiter._runner is not None
        assert limiter._runner.done()
        await limiter.acquire(BUYING)
        assert now() == pytest.approx(1 + 20 + 10, abs=0.01)

    run(story())


def test_a_pause_holds_all_requests() -> None:
    times: list[float] = []

    async def story() -> None:
        limiter = limiter_of(120)

        async def use(lane: Lane) -> None:
            await limiter.acquire(lane)
            times.append(now())
            if len(times) <= 3:
                limiter.pause(20)

        await asyncio.gather(*(use(lane) for lane in [BUYING, READING] * 30))

    run(story())
    assert sum(moment < 20 for moment in times) == 1
    assert_no_minute_holds_more(times, 120)


def test_overlapping_pauses_are_one_pause() -> None:
    async def story() -> None:
        limiter = limiter_of(120)
        for seconds in (3, 7, 5):
            limiter.pause(seconds)
        await limiter.acquire(READING)
        assert now() == pytest.approx(7, abs=0.01)

    run(story())


@pytest.mark.parametrize("rate", [2, 10, 120, 1000])
def test_the_pace_of_the_shared_limit_keeps_the_limit_as_well(rate: int) -> None:
    burst, interval = burst_and_interval(rate)
    assert burst >= 1
    assert burst + 60 / interval <= rate + 1e-9
