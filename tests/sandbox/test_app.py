"""The API has the documented endpoints, shapes and errors."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE, LONG_ENOUGH, client_of

VIDEO = {"model": "veo-3.1-fast", "prompt": "waves", "aspect_ratio": "16:9", "resolution": "1080p"}


NEVER_ISSUED = "01928abc-0000-4000-8000-000000000000"


def test_the_response_to_a_purchase_is_a_pending_generation_and_its_price(api: httpx.Client) -> None:
    response = api.post("/generations", json=VIDEO)
    assert response.status_code == 201
    assert set(response.json()) == {"data", "price_usd"}
    data = response.json()["data"]
    assert response.json()["price_usd"] == 0.3
    assert data["status"] == "pending"
    assert data["parameters"] == {"aspect_ratio": "16:9", "resolution": "1080p"}
    assert (data["type"], data["output"], data["error"], data["completed_at"]) == ("video", None, None, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", data["created_at"])
    assert abs(datetime.fromisoformat(data["created_at"]) - datetime.now(UTC)) < timedelta(seconds=30)


def test_the_newer_response_to_a_purchase_has_four_fields_and_no_price() -> None:
    with Sandbox(create_shape="newer") as sandbox, client_of(sandbox) as api:
        response = api.post("/generations", json=IMAGE).json()
        assert set(response) == {"data"}
        assert set(response["data"]) == {"id", "model", "status", "created_at"}
        assert response["data"]["created_at"].endswith("Z")
        assert response["data"]["id"].startswith("img_")
        assert api.get(f"/generations/{response['data']['id']}").json()["data"]["prompt"] == IMAGE["prompt"]


def test_a_completed_image_has_an_output_without_a_download_url(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = api.post("/generations", json=IMAGE).json()["data"]["id"]
    sandbox.advance(LONG_ENOUGH)
    response = api.get(f"/generations/{generation_id}").json()
    assert set(response) == {"data"}
    assert response["data"]["status"] == "completed"
    assert set(response["data"]["output"]) == {"url", "content_type"}
    assert response["data"]["output"]["content_type"] == "image/png"
    assert response["data"]["output"]["url"].startswith(f"{sandbox.media_url}/storage/generations/")
    assert response["data"]["completed_at"] > response["data"]["created_at"]


def test_a_completed_video_has_a_download_url(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = api.post("/generations", json=VIDEO).json()["data"]["id"]
    sandbox.advance(LONG_ENOUGH)
    output = api.get(f"/generations/{generation_id}").json()["data"]["output"]
    assert output["content_type"] == "video/mp4"
    assert output["download_url"] == output["url"] + "?download=1"


def test_an_unknown_generation_is_404(api: httpx.Client) -> None:
    response = api.get(f"/generations/{NEVER_ISSUED}")
    assert (response.status_code, response.json()) == (404, {"error": "Generation not found."})


def test_the_list_shows_the_newest_first_and_no_page_data_without_a_type(api: httpx.Client) -> None:
    for number in range(3):
        api.post("/generations", json={**IMAGE, "prompt": f"number {number}"})
    api.post("/generations", json=VIDEO)
    response = api.get("/generations").json()
    assert set(response) == {"data"}
    assert [one["prompt"] for one in response["data"]] == ["waves", "number 2", "number 1", "number 0"]


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


def test_unknown_paths_and_methods_are_refused_in_json(api: httpx.Client) -> None:
    assert api.get("/uploads").json() == {"error": "Not Found"}
    response = api.delete("/generations")
    assert (response.status_code, response.json()) == (405, {"error": "Method Not Allowed"})
