"""The log has every request, and no token."""

from __future__ import annotations

import httpx

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE, output_url


def test_the_log_shows_whether_a_token_reached_the_media_host(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    media.get(url)
    media.get(url, headers={"Authorization": "Bearer leaked"})
    seen = [record for record in sandbox.requests if record.origin == "media"]
    assert [record.had_authorization for record in seen] == [False, True]
    assert not any("leaked" in f"{record} {record.headers}" for record in sandbox.requests)


def test_every_request_is_in_the_log(sandbox: Sandbox, api: httpx.Client) -> None:
    api.post("/generations", json=IMAGE)
    api.get("/generations", params={"type": "image"})
    httpx.get(f"{sandbox.base_url}/balance")
    assert [(one.method, one.path, one.query, one.status, one.had_authorization) for one in sandbox.requests] == [
        ("POST", "/api/v1/generations", "", 201, True),
        ("GET", "/api/v1/generations", "type=image", 200, True),
        ("GET", "/api/v1/balance", "", 401, False),
    ]
    assert {one.origin for one in sandbox.requests} == {"api"}
