"""Every public task and flow takes what Prefect lets a call say: `return_state`, `wait_for`, `with_options`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow, Task, flow, task
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_worker import TaskWorker

from flows.campaign import campaign
from flows.image_then_animate import image_then_animate
from flows.sweep import sweep
from prefect_veogen import (
    Animated,
    Asset,
    CampaignItem,
    CampaignReport,
    Generation,
    GenerationRequest,
    download_asset,
    generate,
    submit_generation,
    wait_for_generation,
)
from prefect_veogen.errors import BudgetExceeded, ConfigurationError, InvalidRequest
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.campaign import Row, check_campaign, make_row, publish_campaign
from prefect_veogen.tasks.maintenance import compare_with_statement, sweep_store
from prefect_veogen.tasks.requests import check_requests
from prefect_veogen.upkeep.statement import Reconciliation
from tests.support.runs import task_runs, until_recorded

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")
ROW = Row("cat", CAT)
STEPS = ["submit gpt-4o-image (take 1): a cat", "wait for gpt-4o-image ID: a cat", "download gpt-4o-image ID: a cat"]

Arguments = Callable[[], Awaitable[Any]]


def given(value: Any) -> Arguments:
    async def give() -> Any:
        return value

    return give


async def bought() -> Generation:
    return await submit_generation(CAT)


async def completed() -> Generation:
    return await wait_for_generation(await bought())


# What is public, what comes first in a call of it, the rest, and what comes out of it.
TASKS: list[tuple[Task[..., Any], Arguments | None, dict[str, Any], type]] = [
    (submit_generation, given(CAT), {}, Generation),
    (wait_for_generation, bought, {}, Generation),
    (download_asset, completed, {}, Asset),
    (generate, given(CAT), {}, Asset),
    (check_campaign, given([ROW]), {"name": "cats"}, Decimal),
    (check_requests, given(CAT), {}, type(None)),
    (make_row, given(ROW), {"name": "cats"}, CampaignItem),
    (publish_campaign, given(CampaignReport.of("cats", ())), {}, str),
    (sweep_store, None, {}, list),
    (compare_with_statement, None, {}, Reconciliation),
]
FLOWS: list[tuple[Flow[..., Any], Arguments | None, dict[str, Any], type]] = [
    (image_then_animate, given("a cat"), {"motion_prompt": "it purrs"}, Animated),
    (campaign, given([{"id": "cat", "model": "gpt-4o-image", "prompt": "a cat"}]), {}, CampaignReport),
    (sweep, None, {}, list),
]
EVERYTHING = pytest.mark.parametrize(
    ("called", "first", "options", "kind"), [*TASKS, *FLOWS], ids=lambda value: getattr(value, "name", "")
)


async def arguments(first: Arguments | None) -> list[Any]:
    return [] if first is None else [await first()]


@task
def fails() -> None:
    raise ValueError("upstream")


@EVERYTHING
async def test_with_return_state_it_gives_the_state_with_its_result(
    called: Any, first: Arguments | None, options: dict[str, Any], kind: type, sandbox: Sandbox
) -> None:
    state = await called(*await arguments(first), **options, return_state=True)
    assert isinstance(state, State)
    assert state.is_completed()
    assert isinstance(await state.aresult(), kind)


@EVERYTHING
async def test_it_waits_for_others_and_does_not_run_after_one_that_failed(
    called: Any, first: Arguments | None, options: dict[str, Any], kind: type, sandbox: Sandbox
) -> None:
    values = await arguments(first)

    @flow
    async def waiting() -> tuple[State[Any], int, Any]:
        failed = fails.submit()
        failed.wait()
        asked = len(sandbox.requests)
        refused = await called(*values, **options, wait_for=[failed], return_state=True)
        return refused, len(sandbox.requests) - asked, await called(*values, **options, wait_for=[Completed(data=1)])

    refused, asked, result = await waiting()
    assert (refused.name, asked) == ("NotReady", 0)
    assert isinstance(result, kind)


@EVERYTHING
async def test_with_options_it_is_the_same_with_other_options(
    called: Any, first: Arguments | None, options: dict[str, Any], kind: type, sandbox: Sandbox
) -> None:
    changed = called.with_options(name="other").with_options(retries=1, retry_delay_seconds=0)
    assert (type(changed), changed.name, changed.retries) == (type(called), "other", 1)
    assert called.name != "other"
    assert isinstance(await changed(*await arguments(first), **options), kind)
    assert type(changed.with_options()) is type(called)


@pytest.mark.parametrize(("called", "first", "options", "kind"), TASKS, ids=lambda value: getattr(value, "name", ""))
async def test_submitted_and_mapped_it_takes_them_too(
    called: Any, first: Arguments | None, options: dict[str, Any], kind: type, sandbox: Sandbox
) -> None:
    values = await arguments(first)

    @flow
    async def submitting() -> list[Any]:
        submitted = called.with_options(tags=["x"]).submit(*values, **options, wait_for=[Completed(data=1)])
        return [submitted.result(), await called.submit(*values, **options, return_state=True).aresult()]

    assert [type(result) for result in await submitting()] == [kind, kind]


async def test_awaited_generate_with_options_still_shows_its_three_steps_which_have_them(sandbox: Sandbox) -> None:
    heard: list[str] = []
    hooks: dict[str, Any] = {
        "on_running": [lambda task, run, state: heard.append(f"running {task.name}")],
        "on_completion": [lambda task, run, state: heard.append(f"completed {task.name}")],
    }

    @flow
    async def one_picture() -> tuple[UUID, Asset]:
        tagged = generate.with_options(tags=["poster"], retries=0, task_run_name="hero {request.take}", **hooks)
        return UUID(flow_run.id), await tagged(CAT)

    run_id, asset = await one_picture()
    runs = await task_runs(run_id, 3)
    assert [run.name.replace(asset.generation_id[:8], "ID") for run in runs] == [f"hero 1: {step}" for step in STEPS]
    assert [(run.tags, run.empirical_policy.retries) for run in runs] == [(["poster"], 0)] * 3
    assert heard == ["running submit generation", "completed download asset"]


async def test_generate_whose_result_is_cached_has_a_run_of_its_own(sandbox: Sandbox) -> None:
    @flow
    async def two_pictures() -> tuple[UUID, Asset, Asset]:
        cached = generate.with_options(cache_policy=INPUTS, result_serializer="json")
        return UUID(flow_run.id), await cached(CAT), await cached(CAT, wait_for=[Completed(data=1)])

    run_id, asset, again = await two_pictures()
    around, *steps, reused = await task_runs(run_id, 5)
    assert around.name == reused.name == "generate gpt-4o-image (take 1): a cat"
    assert [run.name.replace(asset.generation_id[:8], "ID") for run in steps] == STEPS
    assert (reused.state_name, again) == ("Cached", asset)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"budget_usd": 0.01}, BudgetExceeded),
        ({"timeout_seconds": -1}, ConfigurationError),
        ({"request": CAT.model_copy(update={"resolution": "16K"})}, InvalidRequest),
    ],
    ids=["cap", "time", "request"],
)
async def test_generate_with_return_state_gives_its_error_in_a_failed_state(
    options: dict[str, Any], error: type[Exception], sandbox: Sandbox
) -> None:
    state: Any = await generate(**{"request": CAT, **options}, return_state=True)  # type: ignore[misc]
    assert state.is_failed()
    with pytest.raises(error):
        await state.aresult()
    assert len(sandbox.bill) == 0


@pytest.mark.parametrize("called", [submit_generation, generate], ids=lambda called: called.name)
async def test_a_background_task_buys_once(called: Any, sandbox: Sandbox) -> None:
    future = called.delay(CAT)
    async with get_client() as client:
        run = await client.read_task_run(future.task_run_id)
    await TaskWorker(called).execute_task_run(run)
    await until_recorded(future.task_run_id)  # Prefect's future waits for an event that it may have missed by then
    assert (await future.result_async()).price_usd == Decimal("0.02")
    assert len(sandbox.bill) == 1


async def test_a_campaign_with_options_takes_a_list_of_any_length_too(sandbox: Sandbox) -> None:
    rows = [
        {"id": f"r{number}", "model": "gpt-4o-image", "prompt": "one picture" + " " * 1500} for number in range(400)
    ]
    assert len(json.dumps(rows)) > 600_000
    report = await campaign.with_options(name="spring campaign", retries=1)(rows)
    assert (len(report.items), len(sandbox.bill)) == (400, 1)
