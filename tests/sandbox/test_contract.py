"""The sandbox keeps to its own OpenAPI document under generated requests, valid and invalid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from prefect_veogen.sandbox import Sandbox

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
DOCUMENTED_STATUSES = {"200", "201", "401", "402", "404", "422", "429", "500"}
ENDPOINTS = {
    ("post", "/api/v1/generations"),
    ("get", "/api/v1/generations"),
    ("get", "/api/v1/generations/{id}"),
    ("get", "/api/v1/models"),
    ("get", "/api/v1/models/{slug}"),
    ("get", "/api/v1/account"),
    ("get", "/api/v1/account/usage"),
    ("get", "/api/v1/balance"),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox(speed=10_000, tiny_media=True, requests_per_minute=None, balance_usd=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def document(running: Sandbox) -> dict[str, Any]:
    loaded: dict[str, Any] = httpx.get(running.base_url.replace("/api/v1", "/openapi.json")).json()
    return loaded


@pytest.fixture(scope="module")
def schema(running: Sandbox) -> Any:
    with httpx.Client(base_url=running.base_url, headers={"Authorization": f"Bearer {running.token}"}) as api:
        for _ in range(3):  # so that lists are not empty
            api.post("/generations", json=IMAGE)
    return schemathesis.openapi.from_url(running.base_url.replace("/api/v1", "/openapi.json"))


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), sorted(ENDPOINTS))
def test_generated_requests_are_answered_as_documented(
    schema: Any, running: Sandbox, method: str, path: str, mode: GenerationMode
) -> None:
    cases = schema[path][method].as_strategy(generation_mode=mode)
    # Unknown query parameters are ignored, as web servers do.
    excluded: list[Any] = [] if method == "post" else [negative_data_rejection]

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(case=cases)
    def answered_as_documented(case: Case) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {running.token}"}, excluded_checks=excluded)

    answered_as_documented()


def test_the_document_has_the_endpoints_of_the_api_and_no_others(document: dict[str, Any]) -> None:
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == ENDPOINTS


def test_only_documented_statuses_are_documented(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert set(operation["responses"]) <= DOCUMENTED_STATUSES, (method, path)


def test_without_a_token_every_endpoint_is_401(running: Sandbox) -> None:
    for method, path in ENDPOINTS:
        url = running.base_url.replace("/api/v1", path)
        assert httpx.request(method, url).status_code == 401, (method, path)


def test_the_document_names_every_option_of_every_model(document: dict[str, Any], running: Sandbox) -> None:
    body = document["paths"]["/api/v1/generations"]["post"]["requestBody"]
    by_slug = {
        one["properties"]["model"]["const"]: one for one in body["content"]["application/json"]["schema"]["oneOf"]
    }
    models = httpx.get(f"{running.base_url}/models", headers={"Authorization": f"Bearer {running.token}"}).json()[
        "data"
    ]
    assert set(by_slug) == {model["slug"] for model in models}
    for model in models:
        assert set(by_slug[model["slug"]]["properties"]) == {"model", *model["supported_params"]}
