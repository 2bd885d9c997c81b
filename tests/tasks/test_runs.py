"""Runs are named for what they make: on a real server, in parallel too, and whatever a wrong argument is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.campaign import campaign
from flows.image_then_animate import image_then_animate
from flows.sweep import sweep
from prefect_veogen import Asset, Generation, GenerationRequest, generate, submit_generation
from prefect_veogen.errors import ConfigurationError, InvalidManifest
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.requests import check_requests
from prefect_veogen.tasks.runs import generation_name, name_flow_run, name_task_run, request_name, shorten
from tests.support.runs import task_runs

LONG = "A watercolour of a lighthouse at dusk, waves rolling in, in the style of an old travel poster, number "


def picture(prompt: str = "a cat", **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "gpt-4o-image", "prompt": prompt, **fields})


def frame(digest: str) -> Asset:
    return Asset(uri="file:///p.png", sha256=digest * 64, size=1, content_type="image/png", generation_id="g")


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (picture(), "gpt-4o-image (take 1): a cat"),
        (picture("a\n cat ", take="2026-11-24"), "gpt-4o-image (take 2026-11-24): a cat"),
        (picture(aspect_ratio="16:9", resolution="2K"), "gpt-4o-image 16:9 2K (take 1): a cat"),
    ],
)
def test_a_request_is_named_by_its_model_options_take_and_words(request_: GenerationRequest, name: str) -> None:
    assert request_name(request_) == name


@pytest.mark.parametrize(
    "requests",
    [
        [picture(f"{LONG}{number}") for number in range(5)],
        [picture(f"{number} {LONG}") for number in range(5)],
        [picture(f"{LONG}{number} {LONG}") for number in range(5)],
        [picture("slow zoom", image_urls=[frame(digest)]) for digest in "abcde"],
        [picture(take=take) for take in range(5)],
        [picture(aspect_ratio=ratio) for ratio in ("1:1", "16:9", "9:16")],
    ],
    ids=["end", "beginning", "middle", "picture", "take", "format"],
)
def test_requests_which_differ_have_names_which_differ_and_are_short(requests: list[GenerationRequest]) -> None:
    names = {request_name(request) for request in requests}
    assert len(names) == len(requests)
    assert max(map(len, names)) <= 110


def test_a_generation_is_named_as_far_as_it_is_known() -> None:
    assert generation_name(Generation(id="0123456789")) == "01234567"
    known = Generation(id="0123456789", model="veo-3.1-fast", prompt="slow\nzoom")
    assert generation_name(known) == "veo-3.1-fast 01234567: slow zoom"


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert (shorten("short text"), len(shorten("x" * 100))) == ("short text", 60)
    assert shorten(f"{LONG}7").endswith("number 7")
    assert shorten(LONG).startswith("A watercolour")


@pytest.mark.parametrize("wrong", [{}, {"request": {}}, {"request": None}, {"request": "a cat"}])
def test_a_wrong_argument_leaves_the_verb_for_a_name(wrong: dict[str, Any]) -> None:
    assert name_task_run("submit", lambda of: request_name(of["request"]))(parameters=wrong) == "submit"


# ---------------------------------------------------------------- on a server


async def name_of_run(run_id: Any) -> str:
    async with get_client() as client:
        return (await client.read_flow_run(run_id)).name


async def name_of(called: Any, *arguments: Any, **options: Any) -> str:
    state = await called(*arguments, **options, return_state=True)
    return await name_of_run(state.state_details.flow_run_id)


@pytest.mark.server
def test_five_prompts_in_a_map_are_five_names(sandbox: Sandbox, prefect_server: None) -> None:
    @flow
    def pictures() -> str:
        cast("Any", generate.map([picture(f"picture {number}") for number in range(5)])).result()
        return cast("str", flow_run.id)

    names = [run.name for run in asyncio.run(task_runs(UUID(pictures()), 20))]
    assert len(set(names)) == 20
    for number in range(5):
        assert f"generate gpt-4o-image (take 1): picture {number}" in names
        assert len([name for name in names if name.endswith(f": picture {number}")]) == 4


@pytest.mark.server
async def test_the_shipped_flows_runs_are_named_for_what_they_make(sandbox: Sandbox, prefect_server: None) -> None:
    both = [name_of(image_then_animate, "a lighthouse", "the beam turns", take=take) for take in (1, "{scheduled:%Y}")]
    now = datetime.now(UTC)
    pair = "a lighthouse → the beam turns (take"
    assert await asyncio.gather(*both) == [f"{pair} 1)", f"{pair} {now:%Y})"]
    rows = [{"id": "a", "model": "gpt-4o-image", "prompt": "a cat"}]
    assert await name_of(campaign, rows) == "1 row (take 1)"
    assert await name_of(campaign, rows, name="spring", take=2) == "spring (take 2)"
    assert (await name_of(sweep)).startswith(f"sweep of {now:%Y-%m-%d}")


@pytest.mark.server
async def test_a_campaigns_task_runs_are_named_by_their_rows(sandbox: Sandbox, prefect_server: None) -> None:
    rows = [{"id": identity, "model": "gpt-4o-image", "prompt": f"a {identity}"} for identity in ("hero", "tile")]
    state: Any = await campaign(rows, name="spring", return_state=True)
    names = {run.name for run in await task_runs(state.state_details.flow_run_id, 4)}
    assert names == {"check spring: 2 rows", "hero", "tile", "publish spring"}


@pytest.mark.server
async def test_a_wrong_argument_is_reported_by_the_run_and_not_by_its_name(
    sandbox: Sandbox, prefect_server: None
) -> None:
    with pytest.raises(ConfigurationError, match="A GenerationRequest is needed, not a dict"):
        await submit_generation({})  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="A GenerationRequest is needed, not a str"):
        await check_requests.with_options(retries=0)("row")  # type: ignore[call-overload]
    with pytest.raises(InvalidManifest, match="it holds dict"):
        await campaign({})


@pytest.mark.server
async def test_a_name_that_cannot_be_made_is_the_flows(prefect_server: None) -> None:
    @flow(name="lighthouses", flow_run_name=name_flow_run("{nothing} {count:%Y}"))
    async def anything(count: int = 3) -> None: ...

    @flow(flow_run_name=name_flow_run("{count} of {what}, {scheduled:%Y}"))
    async def counted(what: str, count: int = 3) -> None: ...

    assert await name_of(anything) == "lighthouses"
    assert await name_of(counted, "x" * 100) == f"3 of {shorten('x' * 100)}, {datetime.now(UTC):%Y}"
