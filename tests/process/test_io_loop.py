"""Work on the process's I/O loop is put away by whoever is stopped, and many pieces of work end together."""

from __future__ import annotations

import asyncio

import pytest

from prefect_veogen.process.io_loop import Places, each, on_io, uninterrupted


async def test_who_is_cancelled_again_and_again_still_waits_for_what_is_put_away() -> None:
    put_away: list[str] = []
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            put_away.append("all of it")

    working = asyncio.create_task(on_io(work()))
    await begun.wait()
    while not working.done():
        working.cancel()  # as Prefect's timeouts do it, at every turn
        await asyncio.sleep(0.01)
    assert (working.cancelled(), put_away) == (True, ["all of it"])


async def test_what_must_not_be_interrupted_ends_before_its_cancellation_is_heard() -> None:
    ended: list[bool] = []

    async def work() -> None:
        await asyncio.sleep(0.1)
        ended.append(True)

    working = asyncio.create_task(uninterrupted(work()))
    await asyncio.sleep(0.01)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended == [True]


async def test_each_does_so_many_at_once_and_keeps_the_order() -> None:
    busy = most = 0

    async def work(number: int) -> int:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.001 * (5 - number % 5))
        busy -= 1
        return number * 2

    assert await each(range(40), work, 7) == [number * 2 for number in range(40)]
    assert most == 7
    assert await each([], work) == []


async def test_the_first_failure_ends_all_the_work() -> None:
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(0.01)
        if number == 3:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        await each(range(1000), work, 4)
    ended_at = len(begun)
    await asyncio.sleep(0.1)
    assert len(begun) == ended_at < 100


async def test_places_are_as_many_as_said() -> None:
    places, busy, seen = Places(2), 0, []

    async def work(_: int) -> None:
        nonlocal busy
        async with places():
            busy += 1
            seen.append(busy)
            await asyncio.sleep(0.001)
            busy -= 1

    await each(range(20), work)
    assert max(seen) == 2
