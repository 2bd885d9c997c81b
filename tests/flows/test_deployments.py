"""The deployments: one command deploys them all, nothing else is written, and no token is in them."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL

from prefect_veogen.schedule import take_of_slot
from prefect_veogen.tasks.automations import HEALED_TAG
from tests.support.prefect_processes import copy_deployable, deploy_all, environment_for, prefect

pytestmark = pytest.mark.prefect

ROOT = Path(__file__).parents[2]
FILE = "deployments/prefect.yaml"
TOKEN = "vg-secret-4711"


def described() -> dict[str, Any]:
    text: dict[str, Any] = yaml.safe_load((ROOT / FILE).read_text())
    return text


DEPLOYMENTS: list[dict[str, Any]] = described()["deployments"]


def flow_of(deployment: dict[str, Any]) -> Flow[Any, Any]:
    path, _, name = deployment["entrypoint"].partition(":")
    assert (ROOT / path).is_file()
    found: Flow[Any, Any] = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_deployable(tmp_path / "tree")


def files_in(tree: Path) -> dict[str, bytes]:
    return {
        path.relative_to(tree).as_posix(): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


async def on_server() -> dict[str, DeploymentResponse]:
    async with get_client() as client:
        of_pool = [each for each in await client.read_deployments() if each.work_pool_name == "veogen"]
    return {deployment.name: deployment for deployment in of_pool}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment["name"]))
def test_the_entrypoint_is_a_flow_that_takes_the_parameters(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    assert isinstance(flow, Flow)
    known = inspect.signature(flow.fn).parameters
    given = deployment.get("parameters", {})
    assert set(given) <= set(known)
    required = {name for name, parameter in known.items() if parameter.default is inspect.Parameter.empty}
    scheduled = bool(deployment.get("schedules"))
    assert not scheduled or required <= set(given)
    flow.validate_parameters({**dict.fromkeys(required, "x"), **given})


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment["name"]))
def test_no_schedule_spends_money_before_it_is_switched_on(deployment: dict[str, Any]) -> None:
    assert [schedule["active"] for schedule in deployment.get("schedules", [])] in ([], [False])
    assert deployment["work_pool"] == {"name": "veogen"}


def test_no_token_is_in_the_file() -> None:
    lines = [line for line in (ROOT / FILE).read_text().lower().splitlines() if not line.startswith("#")]
    assert not [line for line in lines if "token" in line or "secret" in line or "job_variables" in line]


def test_the_file_names_only_what_prefect_knows() -> None:
    allowed = {"name", "entrypoint", "description", "parameters", "schedules", "concurrency_limit", "work_pool", "tags"}
    assert set(described()) == {"name", "definitions", "deployments"}
    assert set().union(*DEPLOYMENTS) <= allowed
    assert len({(item["name"], item["entrypoint"]) for item in DEPLOYMENTS}) == len(DEPLOYMENTS)


def test_all_deployments_have_the_tag_of_what_is_healed() -> None:
    assert [item["tags"] for item in DEPLOYMENTS] == [[HEALED_TAG]] * len(DEPLOYMENTS)


def test_every_flow_of_the_project_is_deployed() -> None:
    files = {f"flows/{path.name}" for path in (ROOT / "flows").glob("*.py")}
    assert {item["entrypoint"].partition(":")[0] for item in DEPLOYMENTS} == files


@pytest.mark.slow
@pytest.mark.server
async def test_one_command_deploys_them_all_and_a_second_one_changes_nothing(
    tree: Path, tmp_path: Path, prefect_server: None
) -> None:
    before, in_repository = files_in(tree), files_in(ROOT / "deployments")
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="veogen", type="process"), overwrite=True)
    environment = environment_for(str(PREFECT_API_URL.value()), tmp_path / "prefect") | {"VEOGEN_API_TOKEN": TOKEN}
    printed = deploy_all(tree, environment) + prefect(environment, "deploy", "--all", cwd=tree)
    found = await on_server()
    assert set(found) >= {item["name"] for item in DEPLOYMENTS}
    assert (found["daily"].parameters["take"], found["daily"].work_pool_name) == ("{scheduled:%Y-%m-%d}", "veogen")
    assert [schedule.active for item in found.values() for schedule in item.schedules] == [False] * 3
    for name in ("daily", "every-day"):
        limit, options = found[name].global_concurrency_limit, found[name].concurrency_options
        assert (limit and limit.limit, options and options.collision_strategy) == (1, "ENQUEUE")
    assert TOKEN not in printed + "".join(map(str, found.values()))
    assert (files_in(tree), files_in(ROOT / "deployments")) == (before, in_repository)


def test_the_scheduled_take_is_one_a_slot_can_fill() -> None:
    takes = [item["parameters"]["take"] for item in DEPLOYMENTS if "take" in item.get("parameters", {})]
    assert takes
    for take in takes:
        assert "{scheduled:" in take
        assert take_of_slot(take.replace("{", "").replace("}", "")) == take[1:-1]
