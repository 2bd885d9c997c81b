"""flows/approve_then_animate.py as a deployment: suspended, resumed, killed and timed out, each purchase made once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import AwaitingRetry

from prefect_veogen import Approved
from prefect_veogen.sandbox import Sandbox
from tests.support.prefect_processes import (
    DeployedTree,
    copy_deployable,
    running_deployments,
    running_worker,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.kill, pytest.mark.timeout(600)]

PICTURE, CLIP = "gpt-4o-image", "veo-3.1-fast"
PROMPTS: dict[str, Any] = {"image_prompt": "a lighthouse at dusk", "motion_prompt": "the beam turns", "variants": 2}


class Deployed(DeployedTree):
    """The deployment on a server of its own, and what a person does to its runs."""

    def start(self, **parameters: Any) -> UUID:
        with self.client() as client:
            found = client.read_deployment_by_name("approve-then-animate/with-approval")
            return client.create_flow_run_from_deployment(found.id, parameters=PROMPTS | parameters).id

    def run(self, run_id: UUID) -> FlowRun:
        with self.client() as client:
            return client.read_flow_run(run_id)

    def is_in(self, run_id: UUID, name: str) -> bool:
        state = self.run(run_id).state
        return state is not None and state.name == name

    def question(self, run_id: UUID) -> str | None:
        """Return which question a suspended run has asked, its form being there."""
        state = self.run(run_id).state
        if state is None or state.name != "Suspended":
            return None
        with self.client() as client:
            schema = (state.state_details.run_input_keyset or {})["schema"]
            return state.state_details.pause_key if client.filter_flow_run_input(run_id, schema, 1, set()) else None

    def said_above_the_form(self, run_id: UUID) -> str:
        """Return the text above the form that a suspended run shows."""
        with self.client() as client:
            state = client.read_flow_run(run_id).state
            assert state is not None
            keyset = state.state_details.run_input_keyset or {}
            (text,) = client.filter_flow_run_input(run_id, keyset["description"], 1, set())
            return str(text.decoded_value)

    def is_completed_by_healing(self, run_id: UUID) -> bool:
        """Tell whether a run is completed, after putting it back on the schedule for as long as it is crashed.

        As the automation does: unforced, upon which Prefect forgets what the run has asked. The worker reports a crash
        a second time, some seconds later, and would undo a single retry before that.
        """
        if self.is_in(run_id, "Crashed"):
            with self.client() as client:
                client.set_flow_run_state(run_id, AwaitingRetry(scheduled_time=datetime.now(UTC)))
        assert not self.is_in(run_id, "Suspended"), "it asks once more"
        return self.is_in(run_id, "Completed")

    def decide(self, run_id: UUID, **decision: Any) -> SetStateStatus:
        with self.client() as client:
            return client.resume_flow_run(run_id, run_input=decision).status


@pytest.fixture
def deployed(sandbox: Sandbox, tmp_path: Path) -> Iterator[Deployed]:
    tree = copy_deployable(tmp_path / "tree")
    with running_deployments(tree, tmp_path / "prefect") as environment:
        yield Deployed(environment, tree)


def bought(sandbox: Sandbox) -> list[str]:
    return [purchase.model for purchase in sandbox.bill]


def test_suspended_resumed_killed_and_timed_out_each_purchase_is_made_once(
    deployed: Deployed, sandbox: Sandbox, tmp_path: Path
) -> None:
    with running_worker(deployed.environment, deployed.tree, limit=2) as log:
        run = deployed.start()
        forgotten = deployed.start(approval_timeout_seconds=1)
        wait_until(lambda: deployed.question(run) == "approval-1-1", "the run asks", log)
        wait_until(lambda: deployed.is_in(forgotten, "Failed"), "Prefect fails the forgotten run", log)
        assert bought(sandbox) == [PICTURE] * 2, "the two runs want the same"
        assert deployed.decide(run, decision="animate") == SetStateStatus.REJECT
        assert deployed.decide(run, decision="again") == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.question(run) == "approval-2-1", "the run asks about others", log)
        assert bought(sandbox) == [PICTURE] * 4
        sandbox.speed = 0
        assert deployed.decide(run, decision="animate", approved=[2]) == SetStateStatus.ACCEPT
        wait_until(lambda: CLIP in bought(sandbox), "the clip is bought", log)
        pid = deployed.run(run).infrastructure_pid
        assert pid is not None
        os.kill(int(pid.rpartition(":")[2]), signal.SIGKILL)
        wait_until(lambda: deployed.is_in(run, "Crashed"), "the worker notices the kill", log)
        sandbox.speed = 100
        wait_until(lambda: deployed.is_completed_by_healing(run), "run again, it does what was decided", log)
    state: Any = deployed.run(run).state
    made = state.result()
    assert isinstance(made, Approved)
    assert (len(made.images), len(made.videos), made.approved) == (2, 1, (2,))
    assert bought(sandbox) == [PICTURE] * 4 + [CLIP]


def test_a_decision_that_could_not_be_carried_out_is_not_carried_out_later_either(
    deployed: Deployed, sandbox: Sandbox, tmp_path: Path
) -> None:
    with running_worker(deployed.environment, deployed.tree) as log:
        run = deployed.start(budget_usd=0.62)
        wait_until(lambda: deployed.question(run) == "approval-1-1", "the run asks", log)
        assert deployed.decide(run, decision="animate", approved=[1, 2]) == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.question(run) == "approval-1-2", "it asks again: $0.58 is left", log)
        # From now on the money would do, as after a refund, or on the next day.
        (budget,) = (tmp_path / "store" / "budgets").glob("run-*")
        budget.unlink()
        assert deployed.decide(run, decision="stop") == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.is_in(run, "Completed"), "the run is completed", log)
    assert bought(sandbox) == [PICTURE] * 2


def test_what_has_become_dearer_than_the_form_said_is_asked_again(deployed: Deployed, sandbox: Sandbox) -> None:
    with running_worker(deployed.environment, deployed.tree) as log:
        run = deployed.start()
        wait_until(lambda: deployed.question(run) == "approval-1-1", "the run asks", log)
        sandbox.set_price(CLIP, "0.90")
        sandbox.set_price(PICTURE, "0.01")
        assert deployed.decide(run, decision="animate", approved=[2]) == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.question(run) == "approval-1-2", "it asks again", log)
        assert bought(sandbox) == [PICTURE] * 2
        said = deployed.said_above_the_form(run)
        assert "That costs $0.90 now, and $0.30 was shown" in said
        assert "$0.90 for each approved picture" in said
        assert deployed.decide(run, decision="again") == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.question(run) == "approval-2-1", "what is cheaper now is bought at once", log)
        assert deployed.decide(run, decision="animate", approved=[1]) == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.is_in(run, "Completed"), "the run is completed", log)
    assert bought(sandbox) == [PICTURE] * 4 + [CLIP]
    assert str(sandbox.bill.total_usd) == "0.96"


def test_pictures_that_nobody_has_seen_are_not_animated_by_a_decision_about_others(
    deployed: Deployed, sandbox: Sandbox, tmp_path: Path
) -> None:
    with running_worker(deployed.environment, deployed.tree) as log:
        run = deployed.start()
        wait_until(lambda: deployed.question(run) == "approval-1-1", "the run asks", log)
    moved = deployed.environment | {"VEOGEN_STORE": str(tmp_path / "another-store")}
    with running_worker(moved, deployed.tree) as log:
        assert deployed.decide(run, decision="animate", approved=[2]) == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.question(run) == "approval-1-2", "it asks again", log)
        assert "The pictures are others by now" in deployed.said_above_the_form(run)
        assert deployed.decide(run, decision="stop") == SetStateStatus.ACCEPT
        wait_until(lambda: deployed.is_in(run, "Completed"), "the run is completed", log)
    assert CLIP not in bought(sandbox)
