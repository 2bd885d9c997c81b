"""What assets leave in Prefect to be looked at."""

from __future__ import annotations

import re
from uuid import UUID

import httpx
import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run

from prefect_veogen import GenerationRequest, generate
from prefect_veogen.sandbox import Sandbox

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")


async def test_every_asset_leaves_a_readable_artifact_and_a_reused_one_says_what_it_saved(sandbox: Sandbox) -> None:
    @flow
    async def one_picture() -> UUID:
        await generate(CAT)
        return UUID(flow_run.id)

    (bought,), (reused,) = [await artifacts_of(await one_picture()) for _ in range(2)]
    assert bought.key == reused.key == "gpt-4o-image-a-cat"
    for card in map(str, (bought.data, reused.data)):
        assert "data:image/jpeg;base64," in card
        assert "a cat" in card
        assert "gpt-4o-image · take 1 · " in card
    assert "· $0.02 ·" in str(bought.data)
    assert "reused: $0.00 (bought before for $0.02)" in str(reused.data)
    link = re.search(r"\[open at the service\]\(<([^>]+)>\)", str(bought.data))
    assert link is not None
    async with httpx.AsyncClient() as browser:
        assert (await browser.get(link[1])).content.startswith(b"\x89PNG")


async def artifacts_of(run_id: UUID) -> list[Artifact]:
    async with get_client() as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        return [artifact for artifact in await client.read_artifacts(artifact_filter=mine) if artifact.key]
