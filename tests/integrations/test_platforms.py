"""The samples for Docker, Kubernetes, ECS and Compose say only what Prefect, its workers and its server understand.

They are checked against schemas and settings; no container engine runs here.
"""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, WorkPoolConfig
from prefect.settings import Settings as PrefectSettings
from prefect.settings.legacy import _get_settings_fields
from prefect.workers.base import BaseWorker
from prefect_aws.workers import ECSWorker
from prefect_docker.worker import DockerWorker
from prefect_kubernetes import KubernetesWorker
from prefect_redis.client import RedisMessagingSettings

from prefect_veogen import Settings
from prefect_veogen.tasks.automations import HEALED_TAG
from tests.support.prefect_processes import ROOT

WORKERS: dict[str, type[BaseWorker[Any, Any, Any]]] = {
    "docker": DockerWorker,
    "kubernetes": KubernetesWorker,
    "ecs": ECSWorker,
}
SECRET = re.compile(r"token|secret|password|api_key", re.IGNORECASE)


def read(path: str) -> dict[str, Any]:
    text: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return text


def deployments_of(platform: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(f"deployments/{platform}/prefect.yaml")["deployments"]
    return found


@pytest.mark.parametrize("platform", WORKERS)
def test_a_sample_has_only_fields_that_prefect_knows_and_flows_that_exist(platform: str) -> None:
    sample = read(f"deployments/{platform}/prefect.yaml")
    PrefectYamlModel.model_validate(sample)
    assert sample.keys() <= {*PrefectYamlModel.model_fields, "definitions"}
    for deployment in sample["deployments"]:
        assert deployment.keys() <= DeploymentConfig.model_fields.keys()
        assert deployment["work_pool"].keys() <= WorkPoolConfig.model_fields.keys()
        assert deployment["work_pool"]["name"] == f"veogen-{platform}"
        assert deployment["tags"] == [HEALED_TAG]
        file, _, function = deployment["entrypoint"].partition(":")
        assert f"def {function}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("platform", WORKERS)
def test_the_job_variables_are_the_workers_own_and_of_their_types(platform: str) -> None:
    variables = WORKERS[platform].get_default_base_job_template()["variables"]
    for deployment in deployments_of(platform):
        given = deployment["work_pool"]["job_variables"]
        assert given.keys() <= variables["properties"].keys()
        jsonschema.validate(given, variables)


@pytest.mark.parametrize("platform", WORKERS)
def test_no_secret_and_no_relative_store_is_in_a_sample(platform: str) -> None:
    for deployment in deployments_of(platform):
        assert not SECRET.search(str(deployment))
        assert deployment["parameters"]["credentials"] == "default"
        assert deployment["parameters"]["store"].startswith(("/", "s3://"))
        assert_settings_exist(deployment["work_pool"]["job_variables"]["env"])


def assert_settings_exist(environment: dict[str, Any]) -> None:
    redis = {f"PREFECT_REDIS_MESSAGING_{name.upper()}" for name in RedisMessagingSettings.model_fields}
    ours = {f"VEOGEN_{name.upper()}" for name in Settings.model_fields}
    prefects = {*_get_settings_fields(PrefectSettings)}
    assert {name for name in environment if name.startswith(("PREFECT_", "VEOGEN_"))} - redis - ours - prefects == set()


def test_compose_has_only_real_settings_and_no_secret_and_is_open_to_this_machine_only() -> None:
    compose = read("deployments/compose.yaml")
    services: dict[str, dict[str, Any]] = compose["services"]
    assert services.keys() == {"postgres", "redis", "server", "services", "setup", "worker"}
    for name, service in services.items():
        environment = service.get("environment", {})
        assert_settings_exist(environment)
        for variable, value in environment.items():
            holds_secret = SECRET.search(f"{variable}{value}")
            assert not holds_secret or re.search(r"\$\{[A-Z_]+:\?set it in \.env\}", value), variable
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("depends_on", {})) <= services.keys(), name
        volumes = [volume.partition(":")[0] for volume in service.get("volumes", [])]
        assert set(volumes) <= compose["volumes"].keys()
    recorder = services["services"]["environment"]
    assert recorder["PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE"] == "100"
    assert "VEOGEN_API_TOKEN" not in {**services["setup"]["environment"], **services["server"]["environment"]}


def test_the_image_is_made_from_what_is_here_and_nobody_in_it_is_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    stages = re.findall(r"^FROM \S+ AS (\w+)$", "\n".join(lines), re.MULTILINE)
    sources = [
        source for line in lines if line.startswith("COPY ") and "--from=" not in line for source in line.split()[1:-1]
    ]
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {*sources} == allowed
    assert [line.partition("=")[2].partition(" ")[0] for line in lines if "--from=" in line] == ["wheel"]
    targets = {
        service["build"]["target"]
        for service in read("deployments/compose.yaml")["services"].values()
        if "build" in service
    }
    assert targets == {"worker", "server"} <= {*stages}
    assert [line for line in lines if line.startswith("USER ")] == ["USER veogen", "USER root", "USER veogen"]
