"""The sandbox keeps the API's contract under generated requests, valid and invalid."""

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
from prefect_veogen.sandbox.app import PREFIX, Api
from prefect_veogen.sandbox.catalogue import catalogue
from prefect_veogen.sandbox.engine import Engine
from prefect_veogen.sandbox.settings import Settings
from tests.sandbox.contract import ShortCreateResponse, openapi_document

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
DOCUMENT = openapi_document(catalogue().values())
ENDPOINTS = sorted((method, path) for path, operations in DOCUMENT["paths"].items() for method in operations)


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox(speed=10_000, tiny_media=True, requests_per_minute=None, balance_usd=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def api(running: Sandbox) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.base_url, headers={"Authorization": f"Bearer {running.token}"}) as client:
        yield client


@pytest.fixture(scope="module")
def schema(running: Sandbox, api: httpx.Client) -> Any:
    for _ in range(3):  # so that lists are not empty
        api.post("/generations", json=IMAGE)
    loaded = schemathesis.openapi.from_dict(DOCUMENT)
    loaded.config.update(base_url=running.base_url.removesuffix(PREFIX))
    return loaded


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_responses_to_generated_requests_are_as_documented(
    schema: Any, running: Sandbox, method: str, path: str, mode: GenerationMode
) -> None:
    cases = schema[path][method].as_strategy(generation_mode=mode)
    # Unknown query parameters are ignored, as web servers do.
    excluded: list[Any] = [] if method == "post" else [negative_data_rejection]

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(case=cases)
    def check(case: Case) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {running.token}"}, excluded_checks=excluded)

    check()


def test_exactly_the_documented_endpoints_are_served() -> None:
    routes = Api(Engine(Settings())).routes()
    assert sorted((method.lower(), route.path) for route in routes for method in route.methods or ()) == ENDPOINTS


def test_without_a_token_every_endpoint_is_401(running: Sandbox) -> None:
    for method, path in ENDPOINTS:
        url = running.base_url.removesuffix(PREFIX) + path
        assert httpx.request(method, url).status_code == 401, (method, path)


def test_every_model_shows_the_options_that_it_accepts(api: httpx.Client) -> None:
    body = DOCUMENT["paths"][f"{PREFIX}/generations"]["post"]["requestBody"]
    accepted = {
        one["properties"]["model"]["const"]: {*one["properties"]} - {"model"}
        for one in body["content"]["application/json"]["schema"]["oneOf"]
    }
    models = api.get("/models").json()["data"]
    assert {model["slug"]: set(model["supported_params"]) for model in models} == accepted


def test_the_newer_response_to_a_purchase_is_as_documented() -> None:
    with Sandbox(tiny_media=True, create_shape="newer") as sandbox:
        headers = {"Authorization": f"Bearer {sandbox.token}"}
        ShortCreateResponse.model_validate(
            httpx.post(f"{sandbox.base_url}/generations", json=IMAGE, headers=headers).json()
        )
