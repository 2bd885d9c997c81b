"""`prefect-veogen deploy`: the package's flows on a server without a repository, and what was changed there stays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.cli import main
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.deploy import deploy_flows
from tests.support.prefect_processes import (
    ROOT,
    copy_deployable,
    deploy_all,
    environment_for,
    running_server,
    running_worker,
    wait_until,
)

pytestmark = pytest.mark.server

UV = ROOT / ".uv" / "bin" / "uv"


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    """A server with the pool, where nothing is deployed to it, before and after."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="veogen", type="process"), overwrite=True)
        clear(client)
        yield client
        clear(client)


def clear(client: SyncPrefectClient) -> None:
    for deployment in client.read_deployments():
        if deployment.work_pool_name == "veogen":
            client.delete_deployment(deployment.id)


def on_server(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    return {each.name: each for each in client.read_deployments() if each.work_pool_name == "veogen"}


def essence(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return what a deployment does, wherever its flow is read from."""
    kept = ("flow_id", "description", "tags", "parameters", "parameter_openapi_schema", "enforce_parameter_schema")
    schedules = [(each.schedule.model_dump(exclude={"anchor_date"}), each.active) for each in deployment.schedules]
    limit = deployment.global_concurrency_limit
    options = deployment.concurrency_options
    return {
        **{name: getattr(deployment, name) for name in kept},
        "schedules": schedules,
        "limit": limit and limit.limit,
        "collision": options and options.collision_strategy,
    }


@pytest.mark.slow
def test_it_deploys_what_prefect_deploy_does(client: SyncPrefectClient, tmp_path: Path) -> None:
    environment = environment_for(str(PREFECT_API_URL.value()), tmp_path / "prefect")
    deploy_all(copy_deployable(tmp_path / "tree"), environment)
    by_prefect = {name: essence(each) for name, each in on_server(client).items()}
    clear(client)
    assert main(["deploy"]) == 0
    by_us = {name: essence(each) for name, each in on_server(client).items()}
    assert by_us == by_prefect
    assert by_us["daily"]["limit"] == 1
    assert by_us["daily"]["collision"] == "ENQUEUE"


async def test_deploying_again_keeps_what_was_changed_on_the_server_but_for_what_is_given(
    client: SyncPrefectClient, sandbox: Sandbox
) -> None:
    (made,) = await deploy_flows(["daily"], store="s3://bucket/first")
    assert made.did == "made"
    found = on_server(client)["daily"]
    resume = f"`prefect deployment schedule resume image-then-animate/daily {found.schedules[0].id}`"
    assert made.detail == f"in the work pool veogen; its schedule is off until you resume it: {resume}"
    mine = CronSchedule(cron="30 7 * * *", timezone="Europe/Berlin")
    client.update_deployment(found.id, DeploymentUpdate(parameters={**found.parameters, "image_prompt": "a mill"}))
    changed = DeploymentScheduleUpdate(schedule=mine, active=True)
    client._client.patch(
        f"/deployments/{found.id}/schedules/{found.schedules[0].id}",
        json=changed.model_dump(mode="json", exclude_unset=True),
    ).raise_for_status()
    name = f"studio-{uuid.uuid4().hex[:6]}"
    await VeogenCredentials(api_token=SecretStr(sandbox.token)).asave(name)
    (again,) = await deploy_flows(["daily"], store="s3://bucket/second", credentials=name)
    assert again.did == "changed"
    kept = "what else was changed on the server is as it was"
    assert again.detail.endswith(f"; store and credentials as given now; {kept}")
    after = on_server(client)["daily"]
    assert [(each.schedule, each.active) for each in after.schedules] == [(mine, True)]
    assert after.parameters == {
        **found.parameters,
        "image_prompt": "a mill",
        "store": "s3://bucket/second",
        "credentials": name,
    }
    assert sandbox.token not in after.model_dump_json()


async def test_deploying_again_keeps_a_cap_in_job_variables_a_pause_a_limit_and_tags(client: SyncPrefectClient) -> None:
    await deploy_flows(["by-hand"])
    job = {"env": {"VEOGEN_BUDGET_USD": "5"}}
    limited = {"concurrency_limit": 2, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}
    changed = DeploymentUpdate.model_validate({"job_variables": job, "paused": True, "tags": ["mine"], **limited})
    client.update_deployment(on_server(client)["by-hand"].id, changed)
    await deploy_flows(["by-hand"])
    after = on_server(client)["by-hand"]
    assert after.job_variables == job
    assert after.paused
    assert (essence(after)["limit"], essence(after)["collision"]) == (2, "CANCEL_NEW")
    assert sorted(after.tags) == ["mine", "veogen"], "what heals runs goes by the tag"


async def test_deploying_again_brings_no_removed_parameter_back_and_takes_no_trigger_away(
    client: SyncPrefectClient,
) -> None:
    await deploy_flows(["every-day"])
    found = on_server(client)["every-day"]
    parameters = {name: value for name, value in found.parameters.items() if name not in ("latest", "publish_as")}
    assert len(parameters) < len(found.parameters)
    client.update_deployment(found.id, DeploymentUpdate(parameters=parameters, enforce_parameter_schema=False))
    trigger = DeploymentEventTrigger(name="after a picture", expect={"veogen.asset.stored"}, parameters={"name": "x"})
    trigger.set_deployment_id(found.id)
    automation = trigger.as_automation()
    client._client.post("/automations/", json=automation.model_dump(mode="json")).raise_for_status()
    await deploy_flows(["every-day"])
    after = on_server(client)["every-day"]
    assert (after.parameters, after.enforce_parameter_schema) == (parameters, False)
    (kept,) = client._client.get(f"/automations/related-to/prefect.deployment.{found.id}").json()
    wanted = automation.model_dump(mode="json")
    assert (kept["trigger"]["expect"], kept["actions"]) == (wanted["trigger"]["expect"], wanted["actions"])
    client._client.delete(f"/automations/owned-by/prefect.deployment.{found.id}").raise_for_status()
    assert client._client.get(f"/automations/related-to/prefect.deployment.{found.id}").json() == []


async def test_what_was_resumed_and_lost_its_limit_is_deployed_again_as_described(client: SyncPrefectClient) -> None:
    await deploy_flows(["daily"])
    found = on_server(client)["daily"]
    client.update_deployment(found.id, DeploymentUpdate(concurrency_limit=None, paused=False))
    assert essence(on_server(client)["daily"])["limit"] is None
    await deploy_flows(["daily"])
    after = on_server(client)["daily"]
    assert (essence(after)["limit"], essence(after)["collision"]) == (1, "ENQUEUE")
    assert not after.paused


async def test_a_name_may_be_the_one_that_prefect_shows(client: SyncPrefectClient) -> None:
    steps = await deploy_flows(["sweep/hourly", "image-then-animate/by-hand", "daily"])
    assert {f"deployment {each}" for each in ("sweep/hourly", "image-then-animate/by-hand")} < {s.name for s in steps}
    assert {*on_server(client)} == {"hourly", "by-hand", "daily"}
    every_name = {step.name.removeprefix("deployment ") for step in await deploy_flows()}
    assert len(await deploy_flows([*every_name])) == len(every_name)


def test_what_runs_need_of_the_workers_environment_is_said_where_it_was_not_given(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "by-hand"]) == 0
    out = capsys.readouterr().out
    for needed in ("VEOGEN_STORE, s3://… or an absolute path", "VEOGEN_API_TOKEN or VEOGEN_CREDENTIALS"):
        assert needed in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["sweep/by-hand"]}, "There is no deployment sweep/by-hand"),
        ({"names": ["by-hand", "weekly"]}, "There is no deployment weekly.*any-model, by-hand"),
        ({"pool": "nowhere"}, "no work pool nowhere"),
        ({"store": "media"}, "'media' is relative"),
        ({"store": "gs://bucket/media"}, "'gs://bucket/media' is not a valid store"),
        ({"store": "s3://"}, "'s3://' is not a valid store"),
        ({"store": "s3-bucket/nobodys"}, "has no block s3-bucket/nobodys"),
        ({"credentials": "nobody"}, r"nobody.*\(--credentials\)"),
    ],
)
async def test_what_can_not_run_is_refused_before_anything_is_deployed(
    client: SyncPrefectClient, sandbox: Sandbox, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){words}"):
        await deploy_flows(**options)
    assert on_server(client) == {}


# ---------------------------------------------------------------- from a wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def installed(wheel: Path, folder: Path) -> Path:
    """Install the wheel into an environment of its own, beside this one's other packages; return its programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (libraries,) = (folder / "lib").glob("python*/site-packages")
    # As a path only: a site's .pth files, of which one leads to the checkout, are not read from there.
    (libraries / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [str(UV), "pip", "install", "--offline", "--no-deps", "--python", str(folder), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "bin"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wheel_alone_deploys_its_flows_and_a_worker_runs_one(sandbox: Sandbox, wheel: Path, tmp_path: Path) -> None:
    programs = installed(wheel, tmp_path / "venv")
    with running_server(tmp_path / "prefect") as api_url:
        environment = environment_for(api_url, tmp_path / "prefect")
        del environment["PYTHONPATH"]
        folder = tmp_path / "elsewhere"
        folder.mkdir()

        def command(*words: str) -> Any:
            command = [str(programs / "prefect-veogen"), *words, "--json"]
            ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, ran.stderr
            return json.loads(ran.stdout)

        command("setup")
        steps = command("deploy", "--store", str(tmp_path / "media"))["steps"]
        assert len(steps) == len(list((ROOT / "flows").glob("*.py"))) + 1
        (script,) = [block for block in python_blocks("deployments.md") if ".deploy(" in block]
        (folder / "script.py").write_text(script)
        subprocess.run([str(programs / "python"), "script.py"], env=environment, cwd=folder, check=True)
        with (
            temporary_settings({PREFECT_API_URL: api_url}),
            get_client(sync_client=True) as client,
            running_worker(environment, folder, python=str(programs / "python")) as log,
        ):
            deployment, mine = [
                client.read_deployment_by_name(f"image-then-animate/{name}") for name in ("by-hand", "mine")
            ]
            for deployed in (deployment, mine):
                assert deployed.entrypoint == "prefect_veogen.flows.image_then_animate.image_then_animate"
                assert not deployed.pull_steps
            assert mine.paused
            assert mine.tags == deployment.tags == ["veogen"]
            prompts = {"image_prompt": "a lighthouse", "motion_prompt": "the beam turns"}
            run = client.create_flow_run_from_deployment(deployment.id, parameters=prompts)

            def has_ended() -> bool:
                state = client.read_flow_run(run.id).state
                return state is not None and state.is_final()

            wait_until(has_ended, "the run ends", log)
            ended = client.read_flow_run(run.id).state
            assert ended is not None
            assert ended.is_completed(), log.read_text()
    assert len(sandbox.bill) == 2
    assert [path.suffix for path in sorted((tmp_path / "media" / "assets").rglob("*.mp4"))] == [".mp4"]
