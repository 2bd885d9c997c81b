"""The peer: the same three steps as a Prefect user who knows both libraries writes them by hand.

It honours `Retry-After`, shares its connections, bounds its concurrency, caches what it submitted, retries every
task, streams downloads and makes a file visible only when it is complete. What it lacks is what takes a library: one
poll for many generations, requests paced below the rate limit, a ledger, and a check that a download is valid media.
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

_FINAL = frozenset({"completed", "failed"})


@task(retries=3, retry_delay_seconds=[1, 2, 4], cache_policy=INPUTS - "api", persist_result=True)
async def submit(api: httpx.AsyncClient, row: Mapping[str, Any]) -> str:
    """Buy one generation and return its id."""
    body = {name: value for name, value in row.items() if name != "id"}
    response = await _request(api, "POST", "generations", json=body)
    return str(response.json()["data"]["id"])


@task(retries=3, retry_delay_seconds=[1, 2, 4], cache_policy=NO_CACHE)
async def wait(api: httpx.AsyncClient, generation_id: str, poll_seconds: float) -> dict[str, Any]:
    """Poll one generation until it has ended."""
    while True:
        await asyncio.sleep(poll_seconds)
        generation: dict[str, Any] = (await _request(api, "GET", f"generations/{generation_id}")).json()["data"]
        if generation["status"] in _FINAL:
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
    async with media.stream("GET", link) as response:
        response.raise_for_status()
        with unfinished.open("wb") as file:
            async for chunk in response.aiter_bytes(1024 * 1024):
                file.write(chunk)
    unfinished.replace(target)
    return str(target)


@flow(name="by hand")
async def by_hand(rows: Sequence[Mapping[str, Any]], folder: str, at_once: int) -> dict[str, str | None]:
    """Return the path of each row's file, or None for a row that could not be made."""
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


async def _request(api: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request, again while the response is 429, and return the response."""
    while True:
        response = await api.request(method, path, **options)
        if response.status_code != 429:
            response.raise_for_status()
            return response
        # Jitter, as all other requests got the same Retry-After.
        await asyncio.sleep(float(response.headers.get("Retry-After", 1)) + random.uniform(0, 0.25))
