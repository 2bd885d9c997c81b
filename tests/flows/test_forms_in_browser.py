"""Each deployed flow, started by its form in Prefect's UI, and the approval given by one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import Browser
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
)
from prefect.client.schemas.objects import Artifact, FlowRun

from prefect_veogen.sandbox import Sandbox
from tests.support.pictures import save_picture
from tests.support.prefect_processes import (
    TIMEOUT_SECONDS,
    DeployedTree,
    copy_deployable,
    prefect,
    running_deployments,
    running_worker,
)
from tests.support.prefect_ui import PrefectUi

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_MS = 60_000.0
PICTURED = ("any-model", "by-hand", "from-manifest", "every-day", "shots")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DeployedTree, Sandbox, Path]]:
    """All flows deployed on a server of their own, with a worker, a sandbox and a store."""
    folder = tmp_path_factory.mktemp("forms")
    tree = copy_deployable(folder / "tree")
    with (
        Sandbox(speed=50, tiny_media=True, requests_per_minute=None) as sandbox,
        running_deployments(tree, folder / "prefect") as environment,
    ):
        environment |= {**sandbox.environment, "VEOGEN_STORE": str(folder / "store")}
        (folder / "work").mkdir()
        with running_worker(environment, folder / "work", limit=2):
            yield DeployedTree(environment, tree), sandbox, folder


@pytest.fixture
def ui(deployed: tuple[DeployedTree, Sandbox, Path], browser: Browser) -> Iterator[PrefectUi]:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(PATIENCE_MS)
    yield PrefectUi(tab, deployed[0].environment["PREFECT_API_URL"].removesuffix("/api"))
    tab.close()


def manifest_in(folder: Path, **fields: str) -> str:
    path = folder / f"rows-{len(fields)}.json"
    row = {"model": "gpt-4o-image", **fields}
    rows = [{**row, "id": f"r{number}", "prompt": f"row {number} of the form, {len(fields)}"} for number in (1, 2)]
    path.write_text(json.dumps(rows))
    return str(path)


def run_of(deployed: DeployedTree, deployment: str, *states: str) -> FlowRun:
    """Return the only run of a deployment once it is in one of the states."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with deployed.client() as client:
        identity = next(one.id for one in client.read_deployments() if one.name == deployment)
        of_deployment = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[identity]))
        while True:
            runs = client.read_flow_runs(flow_run_filter=of_deployment)
            if len(runs) == 1 and runs[0].state_name in states:
                return runs[0]
            assert time.monotonic() < deadline, [(run.state_name, run.state and run.state.message) for run in runs]
            time.sleep(0.5)


def artifacts_of(deployed: DeployedTree, run: UUID) -> list[Artifact]:
    with deployed.client() as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        return [found for found in client.read_artifacts(artifact_filter=mine) if found.key]


def start(ui: PrefectUi, deployed: DeployedTree, deployment: str, fields: dict[str, str]) -> None:
    with deployed.client() as client:
        identity = next(one.id for one in client.read_deployments() if one.name == deployment)
    ui.start_run(str(identity), fields, f"form-{deployment}" if deployment in PICTURED else None)


@pytest.mark.parametrize(
    ("deployment", "fields", "thumbnails"),
    [
        ("any-model", {"prompt": "a lighthouse in the fog"}, 1),
        ("by-hand", {"image_prompt": "a fox in the snow", "motion_prompt": "it runs away"}, 2),
        ("daily", {}, 2),
        ("from-manifest", {"manifest": "MANIFEST"}, 2),
        ("every-day", {"manifest": "MANIFEST"}, 2),
        ("shots", {"shots": "SHOTS"}, 4),
        ("hourly", {}, 0),
    ],
)
def test_a_flow_started_by_its_form_ends_well_and_its_pictures_are_seen(
    ui: PrefectUi,
    deployed: tuple[DeployedTree, Sandbox, Path],
    deployment: str,
    fields: dict[str, str],
    thumbnails: int,
) -> None:
    server, _, folder = deployed
    tables = {"MANIFEST": manifest_in(folder), "SHOTS": manifest_in(folder, motion_prompt="it turns")}
    given = {name: tables.get(text, text) for name, text in fields.items()}
    start(ui, server, deployment, given)
    run = run_of(server, deployment, "Completed", "Failed", "Crashed")
    assert run.state_name == "Completed", run.state
    cards = [found for found in artifacts_of(server, run.id) if (found.key or "").startswith(("gpt-", "veo-"))]
    assert len(cards) == thumbnails
    for card in cards[:1]:
        ui.show_artifact(str(card.id))
        picture = ui.tab.locator("img[src^='data:image/jpeg']").first
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") > 0
        if deployment == "any-model":
            save_picture(ui.tab, "artifact")
    ui.show_run(str(run.id))
    ui.tab.get_by_text("Completed").first.wait_for()
    if deployment == "hourly":
        ui.tab.get_by_text("they add up").wait_for()
        ui.tab.get_by_text("Finished in state").last.scroll_into_view_if_needed()
        save_picture(ui.tab, "sweep")


TRIGGER = """
from prefect_veogen import VeogenGeneration

print(VeogenGeneration.load("hero").trigger().fetch_result().model)
"""


def test_a_generation_that_was_saved_by_its_form_is_what_its_trigger_buys(
    ui: PrefectUi, deployed: tuple[DeployedTree, Sandbox, Path]
) -> None:
    server, sandbox, _ = deployed
    prefect(server.environment, "block", "register", "-m", "prefect_veogen")
    fields = {"Model": "gpt-4o-image", "Prompt": "a lighthouse at noon", "Aspect Ratio": "16:9"}
    ui.save_block("veogen-generation", "hero", fields, "form-saved-generation")
    command = [sys.executable, "-c", TRIGGER]
    ran = subprocess.run(command, env=server.environment, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[-1:] == ["gpt-4o-image"], ran.stderr
    assert [one.model for one in sandbox.bill.purchases if one.prompt == fields["Prompt"]] == ["gpt-4o-image"]


def test_the_approval_form_refuses_nonsense_and_what_was_not_approved_is_never_bought(
    ui: PrefectUi, deployed: tuple[DeployedTree, Sandbox, Path]
) -> None:
    server, sandbox, _ = deployed
    start(ui, server, "with-approval", {"image_prompt": "a hare on a hill", "motion_prompt": "it leaps"})
    run = run_of(server, "with-approval", "Suspended", "Failed", "Crashed")
    assert run.state_name == "Suspended", run.state
    form = ui.resume(str(run.id))
    form.get_by_text("$1.20 for all, $0.30 for each approved picture").wait_for()
    ui.choose(form.get_by_role("button", name="Select"), "animate")
    form.get_by_role("button", name="Add item").click()
    form.locator("input[type=number]").fill("9")
    form.get_by_role("button", name="Resume", exact=True).click()
    ui.tab.get_by_text("9 is greater than the maximum of 4").wait_for()
    assert run_of(server, "with-approval", "Suspended").id == run.id
    form.locator("input[type=number]").fill("3")
    save_picture(ui.tab, "approval")
    form.get_by_role("button", name="Resume", exact=True).click()
    ended = run_of(server, "with-approval", "Completed", "Failed", "Crashed")
    assert ended.state_name == "Completed", ended.state
    bought = [
        purchase.model for purchase in sandbox.bill.purchases if purchase.prompt in ("a hare on a hill", "it leaps")
    ]
    assert sorted(bought) == ["gpt-4o-image"] * 4 + ["veo-3.1-fast"]
