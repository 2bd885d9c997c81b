"""Maintenance in Prefect: a run that stops reports what goes on, and the sweep shows what it did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import State as FlowState
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled

from flows.sweep import sweep as sweep_flow
from prefect_veogen import submit_generation, wait_for_generation
from prefect_veogen.ledger import State
from prefect_veogen.models import plain_name
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.tasks.maintenance import report_unfinished
from prefect_veogen.upkeep.sweep import Swept
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.upkeep import bought, picture, until


async def logged(flow_run_id: UUID, part: str) -> list[str]:
    """Return the lines of a run's log that hold a text, as soon as the server has any."""
    found: list[str] = []

    async def there_are_some() -> bool:
        await APILogHandler.aflush()
        async with get_client() as client:
            lines = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
        found[:] = [line.message for line in lines if part in line.message]
        return bool(found)

    await until(there_are_some)
    return found


@asynccontextmanager
async def stopped(ends: Callable[[], Awaitable[None]], **options: Any) -> AsyncIterator[FlowState[Any]]:
    """Run a flow which buys a generation that never ends, and then ends as it is asked to."""

    @flow(on_failure=[report_unfinished], on_crashed=[report_unfinished], **options)
    async def buyer() -> None:
        generation = await submit_generation(picture("stuck"))
        await asyncio.gather(wait_for_generation(generation), ends())

    state: FlowState[Any] = await buyer(return_state=True)
    yield state


async def fail() -> None:
    raise ValueError("something else went wrong")


async def never() -> None:
    await asyncio.sleep(60)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "ends", "options"), [("TimedOut", never, {"timeout_seconds": 15}), ("Failed", fail, {})]
)
async def test_a_flow_that_stops_reports_what_runs_on(
    name: str, ends: Callable[[], Awaitable[None]], options: dict[str, Any], sandbox: Sandbox, prefect_server: None
) -> None:
    sandbox.fault("stuck", times=None)
    async with stopped(ends, **options) as state:
        assert state.name == name
        assert state.state_details.flow_run_id is not None
        (line,) = await logged(state.state_details.flow_run_id, f"{name}: ")
    assert line.startswith(f"{name}: {sandbox.generations[0].id} of gpt-4o-image goes on")
    assert "it costs $0.02" in line
    assert "adopts it and pays nothing" in line


@pytest.mark.slow
@pytest.mark.server
async def test_a_cancelled_flow_reports_its_own_purchases_alone(sandbox: Sandbox, prefect_server: None) -> None:
    damaged, _ = await bought(picture("damaged")), await bought(picture("somebody else's"))
    await on_io(open_session().store.put(f"receipts/{damaged}.json", b"{", "application/json"))

    @flow
    async def buyer() -> None:
        await submit_generation(picture("its own"))

    state = await buyer(return_state=True)
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    async with get_client() as client:
        await report_unfinished(buyer, await client.read_flow_run(flow_run_id), Cancelled())
    assert len(await logged(flow_run_id, "goes on at the service")) == 1


@pytest.mark.slow
@pytest.mark.server
async def test_a_store_that_cannot_be_asked_does_not_break_the_hook(
    sandbox: Sandbox, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow
    async def nothing() -> None: ...

    state = await nothing(return_state=True)
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    monkeypatch.setenv("VEOGEN_STORE", "ftp://nowhere")
    async with get_client() as client:
        await report_unfinished(nothing, await client.read_flow_run(flow_run_id), Cancelled())
    assert await logged(flow_run_id, "report what this run left running")


@pytest.mark.slow
@pytest.mark.server
async def test_the_sweep_flow_finishes_compares_and_shows_it(sandbox: Sandbox, prefect_server: None) -> None:
    key = await bought(picture())
    sandbox.advance(60)
    state: FlowState[Sequence[Swept]] = await sweep_flow(return_state=True)
    (swept,) = await state.aresult()
    assert (swept.key, swept.after) == (key, State.STORED)
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    (line,) = await logged(flow_run_id, "they add up")
    assert line == "1 receipts of $0.02, 1 charges of $0.02: they add up"
    async with get_client() as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        made = {item.key: item for item in await client.read_artifacts(artifact_filter=mine) if item.key}
    assert set(made) == {"veogen-sweep", "veogen-reconciliation", plain_name(f"gpt-4o-image {picture().prompt}")}
    assert key in str(made["veogen-sweep"].data)
    assert not any(sandbox.token in str(artifact) for artifact in made.values())


@pytest.mark.server
async def test_a_prefect_server_that_takes_no_artifacts_fails_no_sweep(sandbox: Sandbox, prefect_server: None) -> None:
    key = await bought(picture())
    sandbox.advance(60)
    server = PREFECT_API_URL.value()
    assert server is not None

    def respond(request: Request) -> Reply:
        return Reply(500) if "/artifacts" in request.path else relayed(server, request)

    with serving(respond) as origin, temporary_settings({PREFECT_API_URL: f"{origin}/api"}):
        (swept,) = await sweep_flow()
    assert (swept.key, swept.after) == (key, State.STORED)
