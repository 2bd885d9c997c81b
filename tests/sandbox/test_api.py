"""The sandbox speaks the documented API: endpoints, shapes, validation, errors."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse at dusk"}
VIDEO = {"model": "veo-3.1-fast", "prompt": "waves", "aspect_ratio": "16:9", "resolution": "1080p"}
LONG_ENOUGH = 200.0
NEVER_ISSUED = "01928abc-0000-4000-8000-000000000000"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=0, tiny_media=True) as running:
        yield running


@pytest.fixture
def api(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with client_of(sandbox) as client:
        yield client


def client_of(sandbox: Sandbox) -> httpx.Client:
    return httpx.Client(base_url=sandbox.base_url, headers={"Authorization": f"Bearer {sandbox.token}"})


def test_a_purchase_is_answered_with_a_pending_generation_and_its_price(api: httpx.Client) -> None:
    answer = api.post("/generations", json=VIDEO)
    assert answer.status_code == 201
    assert set(answer.json()) == {"data", "price_usd"}
    data = answer.json()["data"]
    assert answer.json()["price_usd"] == 0.3
    assert data["status"] == "pending"
    assert data["parameters"] == {"aspect_ratio": "16:9", "resolution": "1080p"}
    assert (data["type"], data["output"], data["error"], data["completed_at"]) == ("video", None, None, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", data["created_at"])
    assert abs(datetime.fromisoformat(data["created_at"]) - datetime.now(UTC)) < timedelta(seconds=30)


def test_the_newer_answer_has_four_fields_and_no_price() -> None:
    with Sandbox(create_shape="newer") as sandbox, client_of(sandbox) as api:
        answer = api.post("/generations", json=IMAGE).json()
        assert set(answer) == {"data"}
        assert set(answer["data"]) == {"id", "model", "status", "created_at"}
        assert answer["data"]["created_at"].endswith("Z")
        assert answer["data"]["id"].startswith("img_")
        assert api.get(f"/generations/{answer['data']['id']}").json()["data"]["prompt"] == IMAGE["prompt"]


def test_ids_are_random_uuids_whatever_the_seed() -> None:
    ids = set()
    for _ in range(2):
        with Sandbox(seed=7) as sandbox, client_of(sandbox) as api:
            ids |= {api.post("/generations", json=IMAGE).json()["data"]["id"] for _ in range(3)}
    assert len(ids) == 6
    assert {uuid.UUID(one).version for one in ids} == {4}


def test_a_completed_image_has_an_output_without_a_download_url(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = api.post("/generations", json=IMAGE).json()["data"]["id"]
    sandbox.advance(LONG_ENOUGH)
    answer = api.get(f"/generations/{generation_id}").json()
    assert set(answer) == {"data"}
    assert answer["data"]["status"] == "completed"
    assert set(answer["data"]["output"]) == {"url", "content_type"}
    assert answer["data"]["output"]["content_type"] == "image/png"
    assert answer["data"]["output"]["url"].startswith(f"{sandbox.media_url}/storage/generations/")
    assert answer["data"]["completed_at"] > answer["data"]["created_at"]


def test_a_completed_video_has_a_download_url(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = api.post("/generations", json=VIDEO).json()["data"]["id"]
    sandbox.advance(LONG_ENOUGH)
    output = api.get(f"/generations/{generation_id}").json()["data"]["output"]
    assert output["content_type"] == "video/mp4"
    assert output["download_url"] == output["url"] + "?download=1"


def test_an_unknown_generation_is_404(api: httpx.Client) -> None:
    answer = api.get(f"/generations/{NEVER_ISSUED}")
    assert (answer.status_code, answer.json()) == (404, {"error": "Generation not found."})


def test_the_list_shows_the_newest_first_and_no_page_data_without_a_type(api: httpx.Client) -> None:
    for number in range(3):
        api.post("/generations", json={**IMAGE, "prompt": f"number {number}"})
    api.post("/generations", json=VIDEO)
    answer = api.get("/generations").json()
    assert set(answer) == {"data"}
    assert [one["prompt"] for one in answer["data"]] == ["waves", "number 2", "number 1", "number 0"]


def test_pages_exist_only_together_with_a_type(api: httpx.Client) -> None:
    for number in range(5):
        api.post("/generations", json={**IMAGE, "prompt": f"number {number}"})
    paged = api.get("/generations", params={"type": "image", "per_page": 2, "page": 3}).json()
    assert [one["prompt"] for one in paged["data"]] == ["number 0"]
    assert paged["meta"] == {"current_page": 3, "last_page": 3, "per_page": 2, "total": 5}
    unpaged = api.get("/generations", params={"per_page": 2, "page": 3}).json()
    assert [one["prompt"] for one in unpaged["data"]] == ["number 4", "number 3"]
    beyond = api.get("/generations", params={"type": "image", "page": 9}).json()
    assert (beyond["data"], beyond["meta"]["total"]) == ([], 5)


@pytest.mark.parametrize("query", ["per_page=0", "per_page=101", "per_page=x", "type=audio", "type=image&page=0"])
def test_a_page_that_cannot_be_is_refused(api: httpx.Client, query: str) -> None:
    answer = api.get(f"/generations?{query}")
    assert answer.status_code == 422
    assert set(answer.json()["errors"]) <= {"per_page", "type", "page"}


def test_the_documented_model_is_exactly_as_documented(api: httpx.Client) -> None:
    model = api.get("/models/veo-3.1-fast").json()["data"]
    assert model["price_usd"] == 0.3
    assert model["multiply_by_duration"] is False
    assert model["resolution_multipliers"] == {"720p": 1, "1080p": 1, "4k": 3}
    assert model["supported_params"] == ["prompt", "duration", "aspect_ratio", "resolution", "image_urls", "mode"]
    assert (model["aspect_ratios"], model["durations"]) == (["16:9", "9:16"], [8])
    assert (model["resolutions"], model["modes"]) == (["720p", "1080p", "4k"], ["frame", "ingredient"])
    assert model["docs_url"] == "https://veogen.studio/api-reference/models/veo-3.1-fast"


def test_the_catalogue_lists_what_single_looks_show(api: httpx.Client) -> None:
    models = api.get("/models").json()["data"]
    assert len(models) == 13
    assert [api.get(f"/models/{model['slug']}").json()["data"] for model in models] == models
    missing = api.get("/models/veo-9")
    assert (missing.status_code, missing.json()) == (404, {"error": "Model not found."})


def test_every_model_can_be_bought_with_nothing_but_a_prompt(api: httpx.Client) -> None:
    for model in api.get("/models").json()["data"]:
        answer = api.post("/generations", json={"model": model["slug"], "prompt": "plain"})
        assert answer.status_code == 201, model["slug"]


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
    answer = api.post("/generations", content=json.dumps({**VIDEO, **wrong}).encode())
    assert answer.status_code == 422
    assert list(answer.json()["errors"]) == [field]
    assert answer.json()["message"] in answer.json()["errors"][field]
    assert len(sandbox.bill) == 0


def test_a_refusal_names_the_allowed_values(api: httpx.Client) -> None:
    errors = api.post("/generations", json={**VIDEO, "resolution": "4K"}).json()["errors"]
    assert errors == {"resolution": ["The selected resolution is invalid. Allowed: 720p, 1080p, 4k."]}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": "gpt-4o-image"}'])
def test_a_malformed_body_is_refused_and_never_an_error_of_the_server(api: httpx.Client, body: bytes) -> None:
    assert api.post("/generations", content=body).status_code == 422


def test_a_prompt_of_2000_characters_of_any_script_is_accepted(api: httpx.Client) -> None:
    answer = api.post("/generations", json={**IMAGE, "prompt": "灯" * 2000})
    assert answer.status_code == 201
    assert answer.json()["data"]["prompt"] == "灯" * 2000


@pytest.mark.parametrize("header", [None, "Bearer", "Basic eDp5", "Bearer wrong", "Bearer right-or-not"])
@pytest.mark.parametrize("options", [{}, {"token": "right"}])
def test_without_the_right_token_everything_is_401(header: str | None, options: dict[str, Any]) -> None:
    with Sandbox(**options) as sandbox:
        headers = {"Authorization": header} if header else {}
        for path in ("generations", f"generations/{NEVER_ISSUED}", "models", "models/x", "account", "balance"):
            assert httpx.get(f"{sandbox.base_url}/{path}", headers=headers).status_code == 401, path
        assert httpx.post(f"{sandbox.base_url}/generations", json=IMAGE, headers=headers).status_code == 401
        assert len(sandbox.bill) == 0
        right = {"Authorization": f"Bearer {sandbox.environment['VEOGEN_API_TOKEN']}"}
        assert httpx.get(f"{sandbox.base_url}/balance", headers=right).status_code == 200


@pytest.mark.parametrize("token", ["", " ", "two words", "schlüssel", "line\n"])
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token is ASCII"):
        Sandbox(token=token)


def test_unknown_paths_and_methods_are_refused_in_json(api: httpx.Client) -> None:
    assert api.get("/uploads").json() == {"error": "Not Found"}
    answer = api.delete("/generations")
    assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})


@pytest.mark.parametrize(
    ("echo", "shown"),
    [
        ("sent", {"image_urls": ["https://example.com/a.png"]}),
        ("without-inputs", {}),
        (
            "with-defaults",
            {
                "image_urls": ["https://example.com/a.png"],
                "aspect_ratio": "16:9",
                "resolution": "720p",
                "duration": 8,
            },
        ),
    ],
)
def test_what_is_echoed_as_parameters_can_be_chosen(echo: Any, shown: dict[str, Any]) -> None:
    with Sandbox(parameters_echo=echo) as sandbox, client_of(sandbox) as api:
        request = {"model": "veo-3.1-fast", "prompt": "x", "image_urls": ["https://example.com/a.png"]}
        assert api.post("/generations", json=request).json()["data"]["parameters"] == shown
