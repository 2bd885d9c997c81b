"""Schedules on a Prefect server of its own: they fire, a worker runs their slots, and each slot is bought once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun

from prefect_veogen.sandbox import Sandbox
from tests.support.prefect_processes import (
    DeployedTree,
    copy_deployable,
    prefect,
    running_deployments,
    running_worker,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(600)]

TO_THE_SECOND = "%Y-%m-%dT%H:%M:%S"
MODELS = ("gpt-4o-image", "veo-3.1-fast")
DAILY = "image-then-animate/daily"


class Deployed(DeployedTree):
    """The daily deployment on a server of its own, with a schedule of some seconds."""

    def runs(self) -> list[FlowRun]:
        """Return its flow runs, the earliest slot first."""
        with self.client() as client:
            it = DeploymentFilter(id=DeploymentFilterId(any_=[client.read_deployment_by_name(DAILY).id]))
            return sorted(client.read_flow_runs(deployment_filter=it, limit=200), key=slot_of)

    def completed(self) -> list[FlowRun]:
        return [run for run in self.runs() if run.state is not None and run.state.is_completed()]

    def underway(self) -> list[FlowRun]:
        return [run for run in self.runs() if run.state is None or not run.state.is_final()]

    def stop_the_schedule(self) -> None:
        """Remove the schedule and what it has put on the calendar; a run that has begun goes on."""
        prefect(self.environment, "deployment", "schedule", "clear", "--accept-yes", DAILY)
        with self.client() as client:
            for run in self.runs():
                if run.state is not None and run.state.is_scheduled():
                    client.delete_flow_run(run.id)


@pytest.fixture
def scheduled(sandbox: Sandbox, tmp_path: Path) -> Iterator[Deployed]:
    tree = copy_deployable(tmp_path / "tree")
    schedule_every(tree, seconds=15)
    with running_deployments(tree, tmp_path / "prefect") as environment:
        yield Deployed(environment, tree)


def schedule_every(tree: Path, seconds: int) -> None:
    """Let the daily flow run every few seconds, as a user would who edits the file."""
    path = tree / "deployments" / "prefect.yaml"
    described = yaml.safe_load(path.read_text())
    (daily,) = [item for item in described["deployments"] if item["name"] == "daily"]
    daily["schedules"] = [{"interval": seconds, "active": True}]
    daily["parameters"]["take"] = f"{{scheduled:{TO_THE_SECOND}}}"
    path.write_text(yaml.safe_dump(described))


def slot_of(run: FlowRun) -> str:
    assert run.expected_start_time is not None
    return run.expected_start_time.strftime(TO_THE_SECOND)


def bought_takes(store: Path) -> list[tuple[str, str]]:
    """Return the take and the model of each purchase the ledger holds."""
    receipts = [json.loads(path.read_text()) for path in (store / "receipts").rglob("*.json")]
    return sorted((receipt["take"], receipt["request"]["model"]) for receipt in receipts)


def test_a_schedule_fires_and_each_slot_is_bought_once_even_when_it_is_run_again(
    scheduled: Deployed, sandbox: Sandbox, tmp_path: Path
) -> None:
    server_log = tmp_path / "prefect" / "server.log"
    with running_worker(scheduled.environment, scheduled.tree, limit=2) as log:
        wait_until(lambda: len(scheduled.completed()) >= 2, "two scheduled runs are completed", server_log, log)
        assert {run.auto_scheduled for run in scheduled.completed()} == {True}
        scheduled.stop_the_schedule()
        wait_until(lambda: scheduled.underway() == [], "the last slot's run is over", log)
        again = scheduled.completed()[0]
        prefect(scheduled.environment, "flow-run", "retry", str(again.id))
        wait_until(lambda: scheduled.underway() == [], "the slot is run again", log)
    runs = scheduled.completed()
    assert next(run for run in runs if run.id == again.id).run_count == again.run_count + 1
    slots = [slot_of(run) for run in runs]
    assert bought_takes(tmp_path / "store") == [(slot, model) for slot in slots for model in MODELS]
    assert len(sandbox.bill) == len(sandbox.generations) == 2 * len(slots)
