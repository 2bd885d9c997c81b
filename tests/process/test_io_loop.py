"""A cancelled caller waits until its work on the I/O loop has cleaned up."""

from __future__ import annotations

import asyncio

from prefect_veogen.process.io_loop import on_io


async def test_a_caller_cancelled_repeatedly_still_waits_for_the_cleanup() -> None:
    cleaned_up: list[str] = []
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def work() -> None:
        loop.call_soon_threadsafe(started.set)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            cleaned_up.append("all of it")

    working = asyncio.create_task(on_io(work()))
    await started.wait()
    while not working.done():
        working.cancel()  # as Prefect's timeouts do, repeatedly
        await asyncio.sleep(0.01)
    assert (working.cancelled(), cleaned_up) == (True, ["all of it"])
