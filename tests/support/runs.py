"""Runs as the Prefect server has recorded them, and runs executed in this process."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flow_engine import run_flow_async
from prefect.states import Scheduled

TIMEOUT_SECONDS = 120.0
SCHEDULED = "nightly"
"""The name of the deployments of `run_of`."""


async def task_runs(run_id: UUID, at_least: int = 1) -> list[TaskRun]:
    """Return a flow run's task runs in the order they began, once the server has recorded how they ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    async with get_client() as client:
        while True:
            runs = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
            if len(runs) >= at_least and all(run.state is not None and run.state.is_final() for run in runs):
                return sorted(runs, key=start_of)
            assert time.monotonic() < deadline, runs
            await asyncio.sleep(0.1)


async def until_recorded(task_run_id: UUID) -> None:
    """Wait until the server has recorded how a task run ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    async with get_client() as client:
        while (state := (await client.read_task_run(task_run_id)).state) is None or not state.is_final():
            assert time.monotonic() < deadline, state
            await asyncio.sleep(0.1)


def start_of(run: TaskRun) -> datetime:
    assert run.start_time is not None
    return run.start_time


async def run_of(pipeline: Flow[Any, Any], *, scheduled: bool = True, **parameters: Any) -> FlowRun:
    """Return a run of a deployment that its schedule, or a person, has made."""
    deployment = await pipeline.ato_deployment(SCHEDULED, parameters=parameters, interval=3600)
    deployment_id = await deployment.aapply()
    async with get_client() as client:
        if not scheduled:
            return await client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
        response = await client._client.post(f"/deployments/{deployment_id}/schedule", json={"min_runs": 1})
        response.raise_for_status()
        this = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
        runs = await client.read_flow_runs(deployment_filter=this, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    return next(run for run in runs if run.auto_scheduled and run.state is not None and run.state.is_scheduled())


async def execute(flow: Flow[Any, Any], run: FlowRun) -> State[Any]:
    """Run it at once, as a worker would, whenever it is scheduled for; return the state the server has for it then."""
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Scheduled(), force=True)
        run = await client.read_flow_run(run.id)
        await run_flow_async(flow, flow_run=run, parameters=run.parameters, return_type="state")
        state = (await client.read_flow_run(run.id)).state
    assert state is not None
    return state
