"""Concurrency is bounded and ordered, ends with the first failure, and backoff doubles."""

from __future__ import annotations

import asyncio

import pytest

from prefect_veogen.process.concurrency import ConcurrencyLimit, backoff_seconds, map_bounded, run_uninterrupted


async def test_uninterrupted_work_ends_before_the_cancellation_is_raised() -> None:
    ended: list[bool] = []

    async def work() -> None:
        await asyncio.sleep(0.1)
        ended.append(True)

    working = asyncio.create_task(run_uninterrupted(work()))
    await asyncio.sleep(0.01)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended == [True]


async def test_a_bounded_map_keeps_the_order_and_the_bound() -> None:
    busy = most = 0

    async def work(number: int) -> int:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.001 * (5 - number % 5))
        busy -= 1
        return number * 2

    assert await map_bounded(range(40), work, 7) == [number * 2 for number in range(40)]
    assert most == 7
    assert await map_bounded([], work) == []


async def test_the_first_failure_stops_a_bounded_map() -> None:
    started: list[int] = []

    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(0.01)
        if number == 3:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        await map_bounded(range(1000), work, 4)
    started_before = len(started)
    await asyncio.sleep(0.1)
    assert len(started) == started_before < 100


async def test_a_concurrency_limit_is_never_exceeded() -> None:
    limit, busy, seen = ConcurrencyLimit(2), 0, []

    async def work(_: int) -> None:
        nonlocal busy
        async with limit():
            busy += 1
            seen.append(busy)
            await asyncio.sleep(0.001)
            busy -= 1

    await map_bounded(range(20), work)
    assert max(seen) == 2


def test_backoff_doubles_up_to_its_longest() -> None:
    assert [backoff_seconds(failures) for failures in range(8)] == [0.5, 0.5, 1, 2, 4, 8, 15, 15]
    assert backoff_seconds(10**6, first=1, longest=60) == 60
