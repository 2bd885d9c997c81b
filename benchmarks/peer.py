"""The peer: the same three steps as a Prefect user who knows both libraries writes them by hand.

It honours `Retry-After`, shares its connections, bounds how much is in the making, caches what it submitted, retries
every task, streams what it downloads and makes a file visible only when it is whole. What it lacks is what takes a
library: one look for many generations, a rate limit kept instead of run into, a ledger, and an eye for what media is.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from prefect import flow, task
from prefect.cache_policies import INPUTS, NO_CACHE

_SURE = frozenset({"completed", "failed"})


@task(retries=3, retry_delay_seconds=[1, 2, 4], cache_policy=INPUTS - "api", persist_result=True)
async def submit(api: httpx.AsyncClient, row: Mapping[str, Any]) -> str:
    """Buy one generation and return its id."""
    body = {name: value for name, value in row.items() if name != "id"}
    answer = await _patiently(api, "POST", "generations", json=body)
    return str(answer.json()["data"]["id"])


@task(retries=3, retry_delay_seconds=[1, 2, 4], cache_policy=NO_CACHE)
async def wait(api: httpx.AsyncClient, generation_id: str, poll_seconds: float) -> dict[str, Any]:
    """Look at one generation until it is over."""
    while True:
        await asyncio.sleep(poll_seconds)
        generation: dict[str, Any] = (await _patiently(api, "GET", f"generations/{generation_id}")).json()["data"]
        if generation["status"] in _SURE:
            break
    if generation["status"] == "failed":
        raise RuntimeError(f"generation {generation_id} failed: {generation['error']}")
    return generation


@task(retries=3, retry_delay_seconds=[1, 2, 4], cache_policy=NO_CACHE)
async def download(media: httpx.AsyncClient, generation: Mapping[str, Any], folder: str) -> str:
    """Stream the output into a file and return its path."""
    link = str(generation["output"]["url"])
    target = Path(folder) / f"{generation['id']}{Path(urlsplit(link).path).suffix}"
    unfinished = target.with_name(f"{target.name}.part")
    async with media.stream("GET", link) as answer:
        answer.raise_for_status()
        with unfinished.open("wb") as file:
            async for chunk in answer.aiter_bytes(1024 * 1024):
                file.write(chunk)
    unfinished.replace(target)
    return str(target)


@flow(name="by hand")
async def by_hand(rows: Sequence[Mapping[str, Any]], folder: str, at_once: int) -> dict[str, str | None]:
    """Return where each row's file lies, or nothing for a row that could not be made."""
    pace = {kind: float(os.environ[f"VEOGEN_{kind}_POLL_SECONDS"]) for kind in ("IMAGE", "VIDEO")}
    headers = {"Authorization": f"Bearer {os.environ['VEOGEN_API_TOKEN']}", "Accept": "application/json"}
    places = asyncio.Semaphore(at_once)
    api = httpx.AsyncClient(base_url=os.environ["VEOGEN_BASE_URL"], headers=headers, timeout=60)
    # A client of its own, so that the token goes to the API only.
    async with api, httpx.AsyncClient(timeout=60, follow_redirects=True) as media:

        async def make(row: Mapping[str, Any]) -> str:
            async with places:
                generation_id = await submit(api, row)
                poll_seconds = pace["IMAGE" if "image" in row["model"] else "VIDEO"]
                return await download(media, await wait(api, generation_id, poll_seconds), folder)

        made = await asyncio.gather(*(make(row) for row in rows), return_exceptions=True)
    return {row["id"]: path if isinstance(path, str) else None for row, path in zip(rows, made, strict=True)}


async def _patiently(api: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    """Return the answer, sending again when there were too many requests."""
    while True:
        answer = await api.request(method, path, **options)
        if answer.status_code != 429:
            answer.raise_for_status()
            return answer
        # A little apart from all others who were told the same.
        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)) + random.uniform(0, 0.25))
