"""What a client of the sandbox sends: purchases, polls and downloads, as plain HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from prefect_veogen.sandbox import Sandbox

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
VIDEO = {"model": "veo-3.1-fast", "prompt": "waves"}
LONG_ENOUGH = 200.0
"""Sandbox seconds after which every generation has ended."""


def client_of(sandbox: Sandbox) -> httpx.Client:
    """Return a client with the sandbox's token."""
    headers = {"Authorization": f"Bearer {sandbox.token}"}
    return httpx.Client(base_url=sandbox.base_url, headers=headers, timeout=30)


def buy(api: httpx.Client, **request: Any) -> dict[str, Any]:
    """Buy a generation and return it as the response shows it."""
    response = api.post("/generations", json=request)
    assert response.status_code == 201, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


def poll(api: httpx.Client, generation_id: str) -> dict[str, Any]:
    """Return a generation as a poll shows it."""
    data: dict[str, Any] = api.get(f"/generations/{generation_id}").json()["data"]
    return data


def finish(sandbox: Sandbox, **request: Any) -> dict[str, Any]:
    """Buy a generation, let enough time pass, and return it as a poll shows it."""
    with client_of(sandbox) as api:
        generation = buy(api, **request)
        sandbox.advance(LONG_ENOUGH)
        return poll(api, generation["id"])


def output_url(sandbox: Sandbox, **request: Any) -> str:
    """Return where the finished output of a new generation is served."""
    url: str = finish(sandbox, **request)["output"]["url"]
    return url
