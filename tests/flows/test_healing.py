"""What `prefect-veogen setup` heals: worker and process killed, the same run completes by itself and buys once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.events.schemas.automations import EventTrigger
from prefect.states import Running

from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.automations import healing_automations
from tests.support.prefect_processes import (
    DeployedTree,
    copy_deployable,
    deploy_all,
    environment_for,
    kill_worker,
    running_server,
    running_worker,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.kill, pytest.mark.timeout(600)]

DEPLOYMENT = "image-then-animate/by-hand"
SOMEBODY_ELSES = "image-then-animate/daily"
PROMPTS = {"image_prompt": "a lighthouse at dusk", "motion_prompt": "the beam turns"}
DEADLY = """
import os, signal
from prefect import flow

@flow
def deadly():
    os.kill(os.getpid(), signal.SIGKILL)
"""
BEGINS_LATE = """
import os, time
from pathlib import Path
from prefect import flow

taken = Path({mark!r})
if "PREFECT__FLOW_RUN_ID" in os.environ and not taken.exists():
    taken.touch()
    time.sleep(600)

@flow
def begins_late():
    pass
"""
MAX_HEALED = 3
HEARTBEAT_SECONDS = 30  # what setup has the runs of its pool send, unless told otherwise
SHORT_SECONDS = 20
PATIENCE_SECONDS = 180.0


class Deployed(DeployedTree):
    """The flow image-then-animate on a Prefect server of its own, which `prefect-veogen setup` has prepared."""

    def start(self, name: str, **parameters: str) -> FlowRun:
        with self.client() as client:
            deployment = client.read_deployment_by_name(name)
            return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def shorten(self, *names: str) -> None:
        """Let automations act after some seconds, where `setup` waits for minutes."""
        with self.client() as client:
            for automation in healing_automations(HEARTBEAT_SECONDS):
                if automation.name in names:
                    assert isinstance(automation.trigger, EventTrigger)
                    automation.trigger.within = timedelta(seconds=SHORT_SECONDS)
                    (found,) = client.read_automations_by_name(automation.name)
                    client.update_automation(found.id, automation)

    def set_running(self, run: FlowRun) -> None:
        with self.client() as client:
            client.set_flow_run_state(run.id, Running(), force=True)

    def names_of_states(self, run: FlowRun) -> list[str | None]:
        with self.client() as client:
            states = client.read_flow_run_states(run.id)
        return [state.name for state in sorted(states, key=lambda state: state.timestamp)]

    def heartbeats(self, run: FlowRun) -> int:
        with self.client() as client:
            resource = {"id": [f"prefect.flow-run.{run.id}"]}
            wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": resource}}
            return int(client._client.post("/events/filter", json=wanted).json()["total"])


@pytest.fixture
def deployed(sandbox: Sandbox, tmp_path: Path) -> Iterator[Deployed]:
    tree = copy_deployable(tmp_path / "tree")
    remove_tags(tree, SOMEBODY_ELSES.partition("/")[2])
    add_deployment(tree, "deadly", DEADLY)
    add_deployment(tree, "begins_late", BEGINS_LATE.format(mark=str(tmp_path / "taken")))
    with running_server(tmp_path / "prefect") as api_url:
        environment = environment_for(api_url, tmp_path / "prefect")
        subprocess.run([sys.executable, "-m", "prefect_veogen.cli", "setup"], env=environment, cwd=tmp_path, check=True)
        deploy_all(tree, environment)
        yield Deployed(environment, tree)


def remove_tags(tree: Path, name: str) -> None:
    path = tree / "deployments" / "prefect.yaml"
    described = yaml.safe_load(path.read_text())
    (deployment,) = [item for item in described["deployments"] if item["name"] == name]
    del deployment["tags"]
    path.write_text(yaml.safe_dump(described))


def add_deployment(tree: Path, name: str, source: str) -> None:
    """Let the tree hold one more deployment: of the flow `name` in a file of that name, with the tag."""
    (tree / "flows" / f"{name}.py").write_text(source)
    path = tree / "deployments" / "prefect.yaml"
    described = yaml.safe_load(path.read_text())
    (model, *_) = described["deployments"]
    described["deployments"].append(
        {
            "name": "by-hand",
            "entrypoint": f"flows/{name}.py:{name}",
            "tags": ["veogen"],
            "work_pool": model["work_pool"],
        }
    )
    path.write_text(yaml.safe_dump(described))


def test_a_run_whose_worker_and_process_are_killed_completes_by_itself_and_buys_nothing_twice(
    deployed: Deployed, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.speed = 0.01  # what is bought is not ready before the kill
    run, other = deployed.start(DEPLOYMENT, **PROMPTS), deployed.start(SOMEBODY_ELSES)
    server_log = tmp_path / "prefect" / "server.log"
    with running_worker(deployed.environment, deployed.tree, limit=2) as log:
        wait_until(lambda: all(map(deployed.heartbeats, (run, other))), "both runs are heard of", log)
        wait_until(lambda: len(sandbox.generations) == 2, "both wait for their pictures", log)
        kill_worker(deployed.tree)
        killed_at = time.monotonic()
    sandbox.speed = 100
    with running_worker(deployed.environment, deployed.tree, limit=2) as log:
        wait_until(lambda: deployed.names_of_states(run)[-1] == "Completed", "it completes", server_log, log)
    took = time.monotonic() - killed_at
    names = deployed.names_of_states(run)
    assert names.index("Crashed") < names.index("AwaitingRetry"), names  # on a busy machine a crash is reported twice
    assert deployed.names_of_states(other)[-1] == "Running", "a deployment without the tag is not touched"
    assert len(sandbox.bill) == len(sandbox.generations) == 3  # the picture and the clip; the other's picture
    assert took < PATIENCE_SECONDS, f"{took:.1f} s"


def test_a_run_whose_worker_dies_before_it_begins_or_before_its_first_heartbeat_completes_by_itself(
    deployed: Deployed, tmp_path: Path
) -> None:
    deployed.shorten("veogen-silent-run-crashed", "veogen-unstarted-run-again")
    taken = deployed.start("begins-late/by-hand")
    with running_worker(deployed.environment, deployed.tree) as log:
        wait_until((tmp_path / "taken").exists, "its process begins", log)
        kill_worker(deployed.tree)
    silent = deployed.start("begins-late/by-hand")
    deployed.set_running(silent)
    with running_worker(deployed.environment, deployed.tree) as log:

        def are_completed() -> bool:
            return [deployed.names_of_states(run)[-1] for run in (taken, silent)] == ["Completed", "Completed"]

        wait_until(are_completed, "both complete", tmp_path / "prefect" / "server.log", log)
    assert "Running" not in (before := names_before(deployed.names_of_states(taken), "AwaitingRetry")), before
    assert names_before(deployed.names_of_states(silent), "AwaitingRetry")[-2:] == ["Running", "Crashed"]


def names_before(names: list[str | None], name: str) -> list[str | None]:
    return names[: names.index(name)]


def test_a_run_that_kills_its_process_each_time_is_given_up_in_the_end(deployed: Deployed, tmp_path: Path) -> None:
    run = deployed.start("deadly/by-hand")

    def is_given_up() -> bool:
        names = deployed.names_of_states(run)
        return names.count("Running") == MAX_HEALED + 1 and names[-1] == "Crashed"

    with running_worker(deployed.environment, deployed.tree) as log:
        wait_until(is_given_up, "it is given up", tmp_path / "prefect" / "server.log", log)
        time.sleep(15)  # a crash is answered within a second; the worker reports it once more after some
    assert is_given_up(), deployed.names_of_states(run)
