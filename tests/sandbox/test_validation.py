"""Requests are validated by field, strictly, before anything is bought."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE

VIDEO = {"model": "veo-3.1-fast", "prompt": "waves", "aspect_ratio": "16:9", "resolution": "1080p"}


@pytest.mark.parametrize("query", ["per_page=0", "per_page=101", "per_page=x", "type=audio", "type=image&page=0"])
def test_an_invalid_page_is_refused(api: httpx.Client, query: str) -> None:
    response = api.get(f"/generations?{query}")
    assert response.status_code == 422
    assert set(response.json()["errors"]) <= {"per_page", "type", "page"}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "   "}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "half of a pair: \ud800"}, "prompt"),
        ({"model": "veo-9"}, "model"),
        ({"resolution": "4K"}, "resolution"),
        ({"resolution": None}, "resolution"),
        ({"aspect_ratio": "1:1"}, "aspect_ratio"),
        ({"duration": 10}, "duration"),
        ({"duration": "8"}, "duration"),
        ({"duration": True}, "duration"),
        ({"duration": 8.0}, "duration"),
        ({"mode": "fun"}, "mode"),
        ({"style": "comic"}, "style"),
        ({"image_urls": "https://example.com/a.png"}, "image_urls"),
        ({"image_urls": ["https://example.com/a.png"] * 4}, "image_urls"),
        ({"image_urls": ["file:///etc/passwd"]}, "image_urls"),
        ({"image_urls": [{}]}, "image_urls"),
        ({"video_urls": ["https://example.com/a.mp4"]}, "video_urls"),
        ({"seed": 1}, "seed"),
        ({"\ud800": 1}, "\\ud800"),
    ],
)
def test_an_invalid_request_is_refused_by_field_and_costs_nothing(
    sandbox: Sandbox, api: httpx.Client, wrong: dict[str, Any], field: str
) -> None:
    response = api.post("/generations", content=json.dumps({**VIDEO, **wrong}).encode())
    assert response.status_code == 422
    assert list(response.json()["errors"]) == [field]
    assert response.json()["message"] in response.json()["errors"][field]
    assert len(sandbox.bill) == 0


def test_a_refusal_names_the_allowed_values(api: httpx.Client) -> None:
    errors = api.post("/generations", json={**VIDEO, "resolution": "4K"}).json()["errors"]
    assert errors == {"resolution": ["The selected resolution is invalid. Allowed: 720p, 1080p, 4k."]}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": "gpt-4o-image"}'])
def test_a_malformed_body_is_refused_and_never_a_server_error(api: httpx.Client, body: bytes) -> None:
    assert api.post("/generations", content=body).status_code == 422


def test_a_prompt_of_2000_characters_of_any_script_is_accepted(api: httpx.Client) -> None:
    response = api.post("/generations", json={**IMAGE, "prompt": "灯" * 2000})
    assert response.status_code == 201
    assert response.json()["data"]["prompt"] == "灯" * 2000
