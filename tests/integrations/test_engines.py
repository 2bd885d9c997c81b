"""Other engines: Prefect's task runners for Dask, Ray and processes, and a server on PostgreSQL and Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner
from prefect_dask import DaskTaskRunner
from prefect_ray import RayTaskRunner

from prefect_veogen import GenerationRequest, generate
from prefect_veogen.sandbox import Sandbox
from tests.support.environments import fast_settings
from tests.support.postgres_and_redis import postgres_and_redis
from tests.support.prefect_processes import environment_for, kill_worker, running_server, running_worker, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(600)]

TWICE_AND_MORE = "a lighthouse"
PROMPTS = [*[f"picture {number}" for number in range(10)], *[TWICE_AND_MORE] * 3]

RUNNERS: dict[str, Callable[[], TaskRunner[Any]]] = {
    "processes": lambda: ProcessPoolTaskRunner(max_workers=2),
    "dask": lambda: DaskTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None}),
    "ray": lambda: RayTaskRunner(init_kwargs={"num_cpus": 2, "include_dashboard": False}),
}


@pytest.mark.parametrize("engine", RUNNERS)
def test_a_task_runner_with_processes_of_its_own_buys_equal_requests_once(
    engine: str, sandbox: Sandbox, prefect_server: None
) -> None:
    @flow(task_runner=RUNNERS[engine]())
    def pictures() -> list[str]:
        requests = [GenerationRequest(model="gpt-4o-image", prompt=prompt) for prompt in PROMPTS]
        assets: list[Any] = generate.map(requests).result()
        return [asset.sha256 for asset in assets]

    digests = pictures()
    assert len(digests) == 13
    assert len({*digests[-3:]}) == 1
    assert len(sandbox.bill) == len({*digests}) == 11


# ---------------------------------------------------------------- PostgreSQL and Redis, two workers

SPEED = 5
PER_MINUTE = 120
ROWS = 40


@dataclass(frozen=True)
class Fleet:
    """A server on PostgreSQL and Redis, with the campaign flow deployed, and what runs on it buys from a sandbox."""

    client: SyncPrefectClient
    environment: dict[str, str]
    sandbox: Sandbox
    folder: Path

    def start(self, manifest: list[dict[str, str]]) -> FlowRun:
        deployment = self.client.read_deployment_by_name("campaign/from-manifest")
        parameters = {"manifest": manifest, "name": "shared"}
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def state_of(self, run: FlowRun) -> str | None:
        return self.client.read_flow_run(run.id).state_name


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with (
        Sandbox(speed=SPEED, tiny_media=True, requests_per_minute=PER_MINUTE) as sandbox,
        postgres_and_redis() as settings,
        running_server(tmp_path / "prefect", **settings) as api_url,
    ):
        rates = {"VEOGEN_REQUESTS_PER_MINUTE": str(SPEED * PER_MINUTE), "VEOGEN_IMAGE_POLL_SECONDS": "0.6"}
        store = {"VEOGEN_STORE": str(tmp_path / "store")}
        environment = environment_for(api_url, tmp_path / "prefect")
        environment |= {**fast_settings(), **sandbox.environment, **rates, **store}
        for words in (["setup"], ["deploy", "from-manifest"]):
            command = [sys.executable, "-m", "prefect_veogen.cli", *words]
            subprocess.run(command, env=environment, cwd=tmp_path, check=True)
        with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
            yield Fleet(client, environment, sandbox, tmp_path)


def test_two_workers_share_a_campaign_one_is_killed_and_each_row_is_bought_once_within_the_limit(fleet: Fleet) -> None:
    rows = [{"id": f"row-{number}", "prompt": f"picture {number}", "model": "gpt-4o-image"} for number in range(ROWS)]
    folders = [fleet.folder / "one", fleet.folder / "two"]
    for folder in folders:
        folder.mkdir()
    runs = [fleet.start(rows) for _ in folders]
    with running_worker(fleet.environment, folders[0]) as doomed, running_worker(fleet.environment, folders[1]) as log:
        both = {"Running"}
        wait_until(lambda: {*map(fleet.state_of, runs)} == both, "both run", doomed, log)
        wait_until(lambda: len(fleet.sandbox.bill) >= ROWS // 4, "a quarter is bought", doomed, log)
        kill_worker(folders[0])
        at_kill = len(fleet.sandbox.bill)
        wait_until(lambda: "Completed" in map(fleet.state_of, runs), "the other one completes", log)
    assert at_kill < ROWS
    assert len(fleet.sandbox.bill) == len(fleet.sandbox.generations) == ROWS
    assert 429 not in [request.status for request in fleet.sandbox.requests]
    results = (fleet.folder / "store" / "campaigns" / "shared" / "results.jsonl").read_text()
    assert [json.loads(line)["status"] for line in results.splitlines()] == ["ok"] * ROWS
