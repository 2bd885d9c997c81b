"""A scheduled run that an outage ended is run again by itself, and so is one whose rows it kept from being made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled

from flows.campaign import campaign
from flows.daily_content import daily_content
from prefect_veogen import GenerationRequest, generate
from prefect_veogen.errors import ServiceUnavailable
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.tasks.maintenance import ON_STOP
from tests.support.runs import execute, run_of

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("no_schedule_stays"), pytest.mark.timeout(300)]

PAUSES = [timedelta(minutes=5), timedelta(minutes=15), timedelta(minutes=45)]
SLOT = "{scheduled:%Y-%m-%dT%H-%M-%S}"
ROWS = [{"id": name, "model": "gpt-4o-image", "prompt": f"a {name}"} for name in ("lamp", "chair")]


@flow(**ON_STOP)
async def lamp(take: str) -> str:
    request = GenerationRequest(model="gpt-4o-image", prompt="a lamp", take=take_of_slot(take))
    return (await generate.with_options(retries=0)(request)).uri


def pause_of(state: State[Any]) -> timedelta:
    again_at = state.state_details.scheduled_time
    assert isinstance(again_at, datetime)
    pause: timedelta = again_at - datetime.now(UTC)
    return pause


async def test_a_scheduled_run_that_an_outage_ends_is_run_again_after_5_15_and_45_minutes_and_then_stays_failed(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fault("model-500", times=None)
    run = await run_of(lamp, take="1")
    for pause in PAUSES:
        state = await execute(lamp, run)
        assert state.name == "AwaitingRetry"
        assert pause - timedelta(minutes=1) < pause_of(state) <= pause
    assert (await execute(lamp, run)).is_failed()
    assert "The trouble is not over after 3 retries" in caplog.text


async def test_the_run_after_the_outage_buys_what_its_slot_is_for_once(sandbox: Sandbox) -> None:
    run = await run_of(daily_content, manifest=ROWS, take=SLOT, timeout_seconds=0.5)
    sandbox.speed = 1  # a picture takes longer than the wait
    assert (await execute(daily_content, run)).name == "AwaitingRetry"
    sandbox.speed = 100
    sandbox.advance(600)
    assert (await execute(daily_content, run)).is_completed()
    assert len(sandbox.bill) == len(ROWS)
    slot = f"{run.expected_start_time:%Y-%m-%dT%H-%M-%S}"
    (report,) = await last_result(run)
    assert (report.name, report.counts) == (f"daily-{slot}", {"ok": len(ROWS)})
    assert {item.take for item in report.items} == {slot}


@flow(**ON_STOP)
async def nightly() -> str:
    return await lamp(SLOT)


async def test_a_subflow_of_a_run_that_is_run_again_has_the_slot_of_that_run_and_buys_nothing_more(
    sandbox: Sandbox,
) -> None:
    run = await run_of(nightly)
    sandbox.fault("media-503", times=None)
    assert (await execute(nightly, run)).name == "AwaitingRetry"
    sandbox.clear_faults()
    assert (await execute(nightly, run)).is_completed()
    assert len(sandbox.bill) == 1


async def cancel(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    async with get_client() as client:
        await client.set_flow_run_state(flow_run.id, Cancelled(), force=True)


@flow(on_failure=[cancel, *ON_STOP["on_failure"]])
async def given_up() -> None:
    raise ServiceUnavailable("The service is down")


async def test_a_failed_run_that_somebody_has_cancelled_meanwhile_stays_cancelled(sandbox: Sandbox) -> None:
    assert (await execute(given_up, await run_of(given_up))).is_cancelled()


async def last_result(run: FlowRun) -> Any:
    async with get_client() as client:
        state = (await client.read_flow_run(run.id)).state
    assert state is not None
    return await state.aresult()


async def test_a_campaign_whose_rows_are_kept_waiting_ends_as_its_table_says_once_it_was_run_again_three_times(
    sandbox: Sandbox,
) -> None:
    sandbox.speed = 1
    sandbox.fault("stuck", times=None)
    run = await run_of(campaign, manifest=ROWS, name="stuck", timeout_seconds=0.5)
    names = [(await execute(campaign, run)).name for _ in range(4)]
    assert names == ["AwaitingRetry"] * 3 + ["Completed"]
    assert (await last_result(run)).counts == {"unknown": len(ROWS)}
    assert len(sandbox.bill) == len(ROWS)


async def test_rows_that_time_does_not_heal_end_a_scheduled_run_well(sandbox: Sandbox) -> None:
    sandbox.fault("failed", prompt="a chair")
    run = await run_of(campaign, manifest=ROWS, name="failed")
    assert (await execute(campaign, run)).is_completed()
    assert (await last_result(run)).counts == {"ok": 1, "failed": 1}


@pytest.mark.parametrize("pipeline", [lamp, campaign])
async def test_whoever_starts_a_run_of_a_deployment_gets_its_end_at_once(
    pipeline: Flow[Any, Any], sandbox: Sandbox
) -> None:
    if pipeline is lamp:
        sandbox.fault("model-500", times=None)
        run = await run_of(pipeline, scheduled=False, take="1")
        assert (await execute(pipeline, run)).is_failed()
    else:
        sandbox.speed = 1
        run = await run_of(pipeline, scheduled=False, manifest=ROWS, name="by-hand", timeout_seconds=0.5)
        assert (await execute(pipeline, run)).is_completed()
        assert (await last_result(run)).counts == {"unknown": len(ROWS)}
