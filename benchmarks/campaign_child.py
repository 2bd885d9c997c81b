"""The process that makes rows, in one of the ways, and measures itself: `WAY ROWS PLACE AT_ONCE RESULT`."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from benchmarks.peer import by_hand
from flows.campaign import campaign
from prefect_veogen import GenerationRequest, generate


@flow(name="chained")
async def chained(rows: Sequence[dict[str, Any]], at_once: int) -> dict[str, str | None]:
    """Make every row with the task for single generations, which has three tasks inside."""
    places = asyncio.Semaphore(at_once)

    async def make(row: dict[str, Any]) -> str:
        async with places:
            return (await generate(GenerationRequest(**{name: row[name] for name in row if name != "id"}))).uri

    made = await asyncio.gather(*(make(row) for row in rows), return_exceptions=True)
    return {row["id"]: uri if isinstance(uri, str) else None for row, uri in zip(rows, made, strict=True)}


async def run(way: str, rows: list[dict[str, Any]], place: str, at_once: int) -> dict[str, Any]:
    """Return what making the rows took this process, and where each row's file is."""
    work: Awaitable[State[Any]]
    match way:
        case "campaign":
            work = campaign(rows, at_once=at_once, return_state=True)
        case "chained":
            work = chained(rows, at_once, return_state=True)
        case "peer":
            work = by_hand(rows, place, at_once, return_state=True)
        case _:
            raise ValueError(f"{way!r} is not a way to make rows")
    finished = _Finished()
    logging.getLogger("prefect.task_runs").addHandler(finished)
    before, began = _cpu_seconds(), time.monotonic()
    state = await work
    wall_seconds, ended_at, cpu_seconds = time.monotonic() - began, time.time(), _cpu_seconds() - before
    stored: Any = await state.aresult()
    if way == "campaign":
        stored = {item.id: item.asset.uri if item.asset else None for item in stored.items}
    return {
        "flow_run_id": str(state.state_details.flow_run_id),
        "wall_seconds": wall_seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "ended_at": ended_at,
        "task_runs": finished.count,
        "stored": stored,
    }


class _Finished(logging.Handler):
    """Counts the task runs that end, by what Prefect logs of each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("Finished in state")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    chosen, manifest, where, concurrency, result = sys.argv[1:]
    Path(where).mkdir(parents=True, exist_ok=True)
    measured = asyncio.run(run(chosen, json.loads(Path(manifest).read_text()), where, int(concurrency)))
    Path(result).write_text(json.dumps(measured))
