"""No Python block of the documentation escapes: each runs on the sandbox, or says which test runs it, or why not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType

from flows.approve_then_animate import approve_then_animate
from prefect_veogen.sandbox import Sandbox
from tests.support.examples import PAGES, ROOT, Example, examples_of, run_example

EXAMPLES = [example for page in PAGES for example in examples_of(page)]
RUN_HERE = [page for page in PAGES if any(example.order == "run" for example in examples_of(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_block_of_python_is_found() -> None:
    fences = sum(len(re.findall(r"^ *```py", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert len(EXAMPLES) == fences >= 25


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_block_is_run_or_says_why_not(example: Example) -> None:
    match example.order:
        case "run":
            assert example.said or not example.only_defines, "nothing calls what it defines"
        case "run by":
            assert example.page.name in (ROOT / example.said).read_text()
        case _:
            assert len(example.said.split()) > 3


@pytest.fixture
def no_blocks(prefect_server: None) -> None:
    """A server without blocks: a program saves one under a name that is new to its reader's server."""
    with get_client(sync_client=True) as client:
        for document in client.read_block_documents():
            client.delete_block_document(document.id)


@pytest.mark.server
@pytest.mark.usefixtures("no_blocks")
@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_a_pages_programs_run_in_their_order(page: Path, sandbox: Sandbox) -> None:
    names: dict[str, Any] = {"__name__": "example", "decide": decide}
    for example in examples_of(page):
        if example.order == "run":
            run_example(example, names)


async def decide(approve: Callable[[UUID], Awaitable[None]]) -> None:
    """Run the flow, and let a function of the documentation decide."""
    running = asyncio.create_task(approve_then_animate("a lighthouse at dusk", "the beam turns", variants=3))
    await approve(await _paused_run())
    made = await running
    assert (len(made.images), made.approved, len(made.videos)) == (3, (1, 3), 2)


async def _paused_run() -> UUID:
    # Of all runs of the tests' server, a page shows any two hundred.
    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    async with get_client() as client:
        for _ in range(600):
            for run in await client.read_flow_runs(flow_run_filter=paused):
                state = run.state
                if state is not None and state.is_paused():
                    keyset = state.state_details.run_input_keyset or {}
                    if await client.filter_flow_run_input(run.id, keyset["schema"], 1, set()):
                        return run.id
            await asyncio.sleep(0.1)
    raise AssertionError("no run waits for a decision")
