"""No durable state in a place that vanishes: what a run of a deployment accepts as its store, and what by hand."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.flow_engine import run_flow_async
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed, Scheduled
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_veogen import Asset, Generation, GenerationRequest, download_asset, generate, submit_generation
from prefect_veogen import wait_for_generation as wait
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.campaign import (
    CampaignReport,
    Row,
    check_campaign,
    make_campaign,
    publish_campaign,
)
from prefect_veogen.tasks.maintenance import compare_with_statement, report_unfinished, sweep_store
from prefect_veogen.tasks.requests import check_requests
from tests.support.prefect_processes import POOL, copy_deployable, deploy_all, environment_for, running_worker

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

PICTURE = GenerationRequest(model="gpt-4o-image", prompt="a lighthouse")
ROW = Row("one", PICTURE)
PROMPTS = {"image_prompt": "a lighthouse at dusk", "motion_prompt": "the beam turns"}
REFUSED = r"VEOGEN_STORE.* relative to its working directory.*\n.*an absolute path or s3://"

Step = Callable[[], Awaitable[Any]]


@flow
async def by_hand(step: Step) -> Any:
    return await step()


@flow
async def outer(step: Step) -> Any:
    return await by_hand(step)


async def deployed_run(of: Any = by_hand) -> FlowRun:
    """Return a run of a deployment, as a worker gets it from the server."""
    async with get_client() as client:
        deployment_id = await client.create_deployment(await client.create_flow(of), name="deployed")
        run = await client.create_flow_run_from_deployment(deployment_id, state=Scheduled())
    assert run.deployment_id == deployment_id
    return run


async def in_deployment(step: Step, of: Any = by_hand) -> Any:
    return await run_flow_async(of, flow_run=await deployed_run(of), parameters={"step": step}, return_type="result")


@pytest.fixture
def no_store(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.delenv("VEOGEN_STORE")
    return sandbox


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@task
def bought() -> Asset:
    return asyncio.run(generate(PICTURE))


@flow(task_runner=ProcessPoolTaskRunner(max_workers=1))  # type: ignore[arg-type] # a TaskRunner, as documented
async def in_another_process(step: Step) -> Any:
    return bought.submit().result()


STEPS: dict[str, Step] = {
    "generate": lambda: generate(PICTURE),
    "submit": lambda: submit_generation(PICTURE),
    "wait": lambda: wait(Generation(id="g")),
    "download": lambda: download_asset(Generation(id="g")),
    "check requests": lambda: check_requests(PICTURE),
    "check campaign": lambda: check_campaign([ROW], name="c"),
    "make campaign": lambda: make_campaign([ROW], name="c"),
    "publish campaign": lambda: publish_campaign(CampaignReport.of("c", ())),
    "sweep": sweep_store,
    "compare": compare_with_statement,
    "submitted": lambda: asyncio.to_thread(lambda: generate.submit(PICTURE).result()),
}


@pytest.mark.parametrize("step", STEPS)
async def test_everything_that_touches_the_store_refuses_the_default_in_a_deployment(
    step: str, no_store: Sandbox, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=REFUSED):
        await in_deployment(STEPS[step])
    assert no_store.bill.purchases == ()
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("of", [outer, in_another_process], ids=["sub-flow", "another process"])
async def test_what_a_deployments_run_starts_is_refused_too(of: Any, no_store: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=REFUSED):
        await in_deployment(STEPS["generate"], of)
    assert no_store.bill.purchases == ()
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("store", ["veogen-store", "./media", "../media", Path("media")])
async def test_a_relative_store_is_refused_wherever_it_is_named(
    store: str | Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=REFUSED):
        await in_deployment(lambda: generate(PICTURE, store=store))
    monkeypatch.setenv("VEOGEN_STORE", str(store))
    with pytest.raises(ConfigurationError, match=REFUSED):
        await in_deployment(lambda: generate(PICTURE))
    assert sandbox.bill.purchases == ()


@pytest.mark.parametrize("written", ["{}", "file://{}", "~/store"])
async def test_an_absolute_store_is_accepted_as_it_is(
    written: str, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # Below the working directory, which is a temporary one: where it lies decides nothing.
    monkeypatch.setenv("VEOGEN_STORE", written.format(tmp_path / "store"))
    asset = await in_deployment(lambda: generate(PICTURE))
    assert asset.uri.startswith((tmp_path / "store" / "assets").as_uri())


@pytest.mark.s3
async def test_a_bucket_is_accepted(no_store: Sandbox, bucket: str) -> None:
    asset = await in_deployment(lambda: generate(PICTURE, store=f"s3://{bucket}/media"))
    assert asset.uri.startswith(f"s3://{bucket}/media/assets/")


@pytest.mark.parametrize("of", [by_hand, outer], ids=["flow", "sub-flow"])
async def test_by_hand_the_default_folder_stays(of: Any, no_store: Sandbox, tmp_path: Path) -> None:
    asset = await of(STEPS["generate"])
    assert asset.uri.startswith((tmp_path / "veogen-store").as_uri())
    assert await generate(PICTURE) == asset
    assert len(no_store.bill) == 1


async def test_the_hook_of_a_stopped_run_reads_no_relative_store(
    no_store: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await report_unfinished(by_hand, await deployed_run(), Failed())
    assert "Can't report what this run left running" in caplog.text
    assert files_in(tmp_path) == []


def test_a_script_that_a_deployments_run_starts_is_refused_too(no_store: Sandbox, tmp_path: Path) -> None:
    story = "import asyncio, prefect_veogen as v; asyncio.run(v.generate(v.GenerationRequest(model='m', prompt='p')))"
    environment = environment_for(str(PREFECT_API_URL.value()), tmp_path / "prefect")
    environment["PREFECT__FLOW_RUN_ID"] = "6f4dd6d4-3ac2-4c23-8f4c-9be7f1c0a001"
    ran = subprocess.run(
        [sys.executable, "-c", story], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert "Set VEOGEN_STORE, or store=" in ran.stderr
    assert no_store.requests == ()


# ---------------------------------------------------------------- on a worker, from a repository


def cloned_each_time(tree: Path) -> None:
    """Let the deployments fetch their code from a repository, as most do: each run into a folder of its own."""
    path = tree / "deployments" / "prefect.yaml"
    step = {"prefect.deployments.steps.git_clone": {"repository": f"file://{tree}", "branch": "main"}}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "pull": [step]}))
    me = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    for words in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "."),
        (*me, "commit", "--quiet", "-m", "Flows"),
    ):
        subprocess.run(["git", *words], cwd=tree, check=True)


async def run_twice(tree: Path, folder: Path) -> list[FlowRun]:
    environment = environment_for(str(PREFECT_API_URL.value()), folder / "prefect")
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
    await asyncio.to_thread(deploy_all, tree, environment)
    with running_worker(environment, folder):
        return [
            await arun_deployment("image-then-animate/by-hand", parameters=PROMPTS, timeout=200, poll_interval=0.5)
            for _ in range(2)
        ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lasting", [False, True], ids=["default store", "absolute store"])
async def test_a_cloned_deployment_is_refused_without_a_lasting_store_and_with_one_buys_once(
    lasting: bool, no_store: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lasting:
        monkeypatch.setenv("VEOGEN_STORE", str(tmp_path / "store"))
    tree = copy_deployable(tmp_path / "tree")
    cloned_each_time(tree)
    for run in await run_twice(tree, tmp_path):
        assert run.state is not None
        assert run.state.is_completed() == lasting
        assert lasting or "VEOGEN_STORE" in (run.state.message or "")
    assert len(no_store.bill) == (2 if lasting else 0)
