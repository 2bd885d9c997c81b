"""A run that ends in doubt goes back on the schedule for the end of the doubt, and buys once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from flows.image_then_animate import image_then_animate
from prefect_veogen import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.prefect_processes import (
    DeployedTree,
    copy_deployable,
    running_deployments,
    running_worker,
    wait_until,
)
from tests.support.runs import execute

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

DEPLOYMENT = "image-then-animate/by-hand"
PROMPTS = {"image_prompt": "a lighthouse at dusk", "motion_prompt": "the beam turns"}
WAITED_FOR_SECONDS = 45.0
"""A doubt of this length is longer than a call waits for by itself, so that its run ends."""
MAX_RETRIES = 3


class Deployed(DeployedTree):
    """The flow image-then-animate, deployed on a Prefect server of its own."""

    def start(self) -> FlowRun:
        with self.client() as client:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
            return client.create_flow_run_from_deployment(deployment.id, parameters=PROMPTS)

    def state(self, run: FlowRun) -> State[Any]:
        with self.client() as client:
            state = client.read_flow_run(run.id).state
        assert state is not None
        return state

    def names_of_states(self, run: FlowRun) -> list[str | None]:
        with self.client() as client:
            states = client.read_flow_run_states(run.id)
        return [state.name for state in sorted(states, key=lambda state: state.timestamp)]

    def times_postponed(self, run: FlowRun) -> int:
        return self.names_of_states(run).count("AwaitingRetry")


@pytest.fixture
def deployed(sandbox: Sandbox, tmp_path: Path) -> Iterator[Deployed]:
    tree = copy_deployable(tmp_path / "tree")
    with running_deployments(tree, tmp_path / "prefect") as environment:
        yield Deployed(environment, tree)


def buy_another_picture() -> None:
    """Buy what each reading of the service's list has to recognise before its silence proves anything."""
    request = GenerationRequest(model="gpt-4o-image", prompt="a shell on the beach")
    asyncio.run(on_io(buy(open_session(), request)))


def bought_pictures(sandbox: Sandbox) -> int:
    return sum(generation.prompt == PROMPTS["image_prompt"] for generation in sandbox.generations)


@pytest.mark.slow
def test_a_run_of_a_deployment_that_ends_in_doubt_is_run_again_when_the_doubt_ends_and_buys_once(
    deployed: Deployed, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(deployed.environment, "VEOGEN_IN_DOUBT_SECONDS", str(WAITED_FOR_SECONDS))
    sandbox.speed = 1  # the service's clock decides when the doubt ends
    buy_another_picture()
    sandbox.fault("503-before-charge", prompt=PROMPTS["image_prompt"])
    run = deployed.start()
    with running_worker(deployed.environment, deployed.tree) as log:
        wait_until(lambda: deployed.times_postponed(run) == 1, "the run waits for the end of its doubt", log)
        waits_until = deployed.state(run).state_details.scheduled_time
        assert waits_until is not None
        assert timedelta(0) < waits_until - datetime.now(UTC) < timedelta(seconds=WAITED_FOR_SECONDS + 5)
        assert bought_pictures(sandbox) == 0
        sandbox.speed = 100
        wait_until(lambda: deployed.state(run).is_final(), "the worker has run it again", log)
        assert datetime.now(UTC) > waits_until
        assert deployed.state(run).is_completed(), log.read_text()
    assert deployed.times_postponed(run) == 1
    assert bought_pictures(sandbox) == 1
    assert len(sandbox.bill) == 3  # the other picture, the picture, the clip


# ---------------------------------------------------------------- in this process, as a worker would run it


async def run_of_a_deployment() -> FlowRun:
    deployment_id = await (await image_then_animate.ato_deployment("in-doubt")).aapply()
    async with get_client() as client:
        return await client.create_flow_run_from_deployment(deployment_id, parameters=PROMPTS)


@pytest.mark.usefixtures("prefect_server")
async def test_a_run_goes_back_on_the_schedule_at_most_three_times(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "100000")
    sandbox.fault("503-before-charge")
    run = await run_of_a_deployment()
    for _ in range(MAX_RETRIES):
        assert (await execute(image_then_animate, run)).name == "AwaitingRetry"
    assert (await execute(image_then_animate, run)).is_failed()
    assert f"still in doubt after {MAX_RETRIES} retries" in caplog.text
    assert bought_pictures(sandbox) == 0


@pytest.mark.usefixtures("prefect_server")
async def test_a_run_that_only_a_person_can_help_stays_failed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("503-before-charge")
    assert (await execute(image_then_animate, await run_of_a_deployment())).is_failed()


@pytest.mark.usefixtures("prefect_server")
async def test_a_run_by_hand_that_ends_in_doubt_stays_failed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "100000")
    sandbox.fault("503-before-charge")
    ended: Any = await image_then_animate(**PROMPTS, return_state=True)
    assert "UnknownSubmission" in str(ended.message)
    async with get_client() as client:
        names = [state.name for state in await client.read_flow_run_states(ended.state_details.flow_run_id)]
    assert names[-1] == "Failed"
    assert "AwaitingRetry" not in names
