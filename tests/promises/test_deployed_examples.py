"""The programs of docs/deployments.md and docs/calling.md which call a deployment: a real server, a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_veogen.sandbox import Sandbox
from tests.support.examples import ROOT, examples_of, run_example
from tests.support.prefect_processes import (
    DeployedTree,
    copy_deployable,
    prefect,
    running_deployments,
    running_worker,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(600)]

ANNOUNCE = """
from prefect import flow

@flow
def announce(uri: str) -> None:
    print(uri)
"""


@pytest.fixture
def deployed(sandbox: Sandbox, tmp_path: Path) -> Iterator[DeployedTree]:
    tree = copy_deployable(tmp_path / "tree")
    (tree / "announce.py").write_text(ANNOUNCE)
    with running_deployments(tree, tmp_path / "prefect") as environment:
        here = temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]})
        with here, running_worker(environment, tree, limit=3):
            yield DeployedTree(environment, tree)


def run_examples(page: str) -> dict[str, Any]:
    """Run a page's programs that are left to this file, and return their names."""
    names: dict[str, Any] = {"__name__": "example"}
    for example in examples_of(ROOT / "docs" / page):
        if example.order == "run by" and "run_deployment" in example.source:
            run_example(replace(example, said=""), names)
    return names


def runs_of(deployed: DeployedTree, flow: str) -> list[FlowRun]:
    with deployed.client() as client:
        return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))


def test_a_caller_gets_the_result_a_key_finds_its_run_and_an_event_starts_a_deployment(
    deployed: DeployedTree, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    run_examples("deployments.md")
    assert capsys.readouterr().out.splitlines()[-1].endswith(".mp4")
    names = run_examples("calling.md")
    first = capsys.readouterr().out.splitlines()[-1]
    assert "/the-pages-turn-" in first
    assert names["newsletter"]("2026-W48") == first
    assert len(runs_of(deployed, "image-then-animate")) == 2
    assert [purchase.model for purchase in sandbox.bill] == ["gpt-4o-image", "veo-3.1-fast"] * 2

    prefect(deployed.environment, "deploy", "announce.py:announce", "-n", "each", "-p", "veogen", cwd=deployed.tree)
    run_event_example("announce/each")
    prefect(deployed.environment, "deployment", "run", "generate-media/any-model", "-p", "prompt=a lighthouse")
    log = deployed.tree / "worker.log"
    wait_until(lambda: any(run.state_name == "Completed" for run in runs_of(deployed, "announce")), "it is told", log)
    (run,) = runs_of(deployed, "announce")
    assert str(run.parameters["uri"]).endswith(".png")


def run_event_example(deployment: str) -> None:
    """Run the program which makes an automation, for a deployment."""
    (example,) = [it for it in examples_of(ROOT / "docs" / "calling.md") if "EventTrigger" in it.source]
    run_example(replace(example, said=f"await announce_what_is_stored({deployment!r})"), {})
