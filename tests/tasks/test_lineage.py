"""Lineage: which asset was made of which."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prefect import flow, get_client

from prefect_veogen import Asset, GenerationRequest, generate
from prefect_veogen.sandbox import Sandbox

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")


async def test_the_lineage_leads_from_the_prompt_to_the_picture_and_from_the_picture_to_the_clip(
    sandbox: Sandbox,
) -> None:
    @flow
    async def clip() -> tuple[Asset, Asset]:
        picture = await generate(CAT)
        moves = GenerationRequest(model="veo-3.1-fast", prompt="it runs", image_urls=[picture])
        return picture, await generate(moves)

    for _ in range(2):  # what is reused is no new material, but what is made of it has it in its line
        picture, video = await clip()
    made = await materializations(picture.uri, video.uri)
    assert {uri: len(events) for uri, events in made.items()} == {picture.uri: 1, video.uri: 1}
    of_picture, of_video = made[picture.uri][0], made[video.uri][0]
    (prompt,) = related(of_picture)
    assert prompt.startswith("veogen://prompts/")
    (own_prompt,) = related(of_video) - {picture.uri}
    assert own_prompt != prompt
    assert picture.uri in related(of_video)
    assert of_video["payload"] == {
        "model": "veo-3.1-fast",
        "take": "1",
        "price_usd": f"{video.price_usd}",
        "sha256": video.sha256,
        "generation_id": video.generation_id,
    }


def related(event: dict[str, Any]) -> set[str]:
    return {one["prefect.resource.id"] for one in event["related"] if one["prefect.resource.role"] == "asset"}


async def materializations(*uris: str) -> dict[str, list[dict[str, Any]]]:
    """Return the server's materialization events of assets, by asset, once each has one."""
    deadline = time.monotonic() + 60
    async with get_client() as client:
        while True:
            wanted = {
                "event": {"name": ["prefect.asset.materialization.succeeded"]},
                "resource": {"id": list(uris)},
            }
            response = await client._client.post("/events/filter", json={"filter": wanted, "limit": 50})
            found = response.json()["events"]
            by_asset = {uri: [one for one in found if one["resource"]["prefect.resource.id"] == uri] for uri in uris}
            if all(by_asset.values()):
                return by_asset
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.2)
