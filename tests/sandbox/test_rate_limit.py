"""The rate limit is a sliding window in sandbox time."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import client_of


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=0, requests_per_minute=120) as running:
        yield running


def test_the_121st_request_within_a_sandbox_minute_is_429(sandbox: Sandbox, api: httpx.Client) -> None:
    assert {api.get("/balance").status_code for _ in range(120)} == {200}
    refused = api.get("/balance")
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "60"
    sandbox.advance(45)
    assert api.get("/balance").headers["Retry-After"] == "15"
    sandbox.advance(15)
    assert api.get("/balance").status_code == 200


def test_retry_after_is_in_real_seconds() -> None:
    with Sandbox(speed=4, requests_per_minute=1) as sandbox, client_of(sandbox) as api:
        assert api.get("/balance").status_code == 200
        assert api.get("/balance").headers["Retry-After"] == "15"


def test_the_window_slides(sandbox: Sandbox, api: httpx.Client) -> None:
    for _ in range(60):
        api.get("/balance")
    sandbox.advance(30)
    for _ in range(60):
        api.get("/balance")
    sandbox.advance(31)
    assert {api.get("/balance").status_code for _ in range(60)} == {200}
    assert api.get("/balance").status_code == 429


def test_neither_refused_requests_nor_bad_tokens_nor_media_count_against_the_limit() -> None:
    with Sandbox(speed=0, requests_per_minute=2) as sandbox, client_of(sandbox) as api:
        assert httpx.get(f"{sandbox.base_url}/balance").status_code == 401
        assert httpx.get(f"{sandbox.media_url}/storage/x").status_code == 404
        assert [api.get("/balance").status_code for _ in range(4)] == [200, 200, 429, 429]
        sandbox.advance(61)
        assert api.get("/balance").status_code == 200


def test_the_limit_can_be_switched_off() -> None:
    with Sandbox(speed=0, requests_per_minute=None) as sandbox, client_of(sandbox) as api:
        assert {api.get("/balance").status_code for _ in range(300)} == {200}
