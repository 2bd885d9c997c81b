"""One of several workers that share a limit: sends requests from a given time on, `WAY FROM SECONDS`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable

import httpx
from prefect.concurrency.asyncio import rate_limit

from prefect_veogen.session import open_session
from prefect_veogen.tasks.shared_limit import use_shared_limit

LIMIT_BY_HAND = "by-hand"


async def ours(send: Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]) -> None:
    """Send requests as every task of ours does."""
    session = open_session()
    await use_shared_limit(session)
    await send(session.client.get_account)


async def by_hand(send: Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]) -> None:
    """Send requests as Prefect's documentation has it: `rate_limit` before each."""
    headers = {"Authorization": f"Bearer {os.environ['VEOGEN_API_TOKEN']}"}
    async with httpx.AsyncClient(base_url=os.environ["VEOGEN_BASE_URL"], headers=headers) as api:

        async def request() -> None:
            await rate_limit(LIMIT_BY_HAND, strict=True)
            await api.get("account")

        await send(request)


async def _run(way: str, begins_at: float, seconds: float) -> None:
    async def send(request: Callable[[], Awaitable[object]]) -> None:
        await asyncio.sleep(begins_at - time.time())
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            await request()

    await {"ours": ours, "peer": by_hand}[way](send)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], *map(float, sys.argv[2:])))
