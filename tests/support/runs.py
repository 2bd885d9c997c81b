"""Runs as the Prefect server has recorded them."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

TIMEOUT_SECONDS = 120.0


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


def start_of(run: TaskRun) -> datetime:
    assert run.start_time is not None
    return run.start_time
