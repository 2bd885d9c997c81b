"""Models are described and priced as documented."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import buy


def test_the_documented_model_is_exactly_as_documented(api: httpx.Client) -> None:
    model = api.get("/models/veo-3.1-fast").json()["data"]
    assert model["price_usd"] == 0.3
    assert model["multiply_by_duration"] is False
    assert model["resolution_multipliers"] == {"720p": 1, "1080p": 1, "4k": 3}
    assert model["supported_params"] == ["prompt", "duration", "aspect_ratio", "resolution", "image_urls", "mode"]
    assert (model["aspect_ratios"], model["durations"]) == (["16:9", "9:16"], [8])
    assert (model["resolutions"], model["modes"]) == (["720p", "1080p", "4k"], ["frame", "ingredient"])
    assert model["docs_url"] == "https://veogen.studio/api-reference/models/veo-3.1-fast"


def test_the_catalogue_lists_what_single_requests_show(api: httpx.Client) -> None:
    models = api.get("/models").json()["data"]
    assert len(models) == 13
    assert [api.get(f"/models/{model['slug']}").json()["data"] for model in models] == models
    missing = api.get("/models/veo-9")
    assert (missing.status_code, missing.json()) == (404, {"error": "Model not found."})


def test_every_model_can_be_bought_with_nothing_but_a_prompt(api: httpx.Client) -> None:
    for model in api.get("/models").json()["data"]:
        response = api.post("/generations", json={"model": model["slug"], "prompt": "plain"})
        assert response.status_code == 201, model["slug"]


@pytest.mark.parametrize(
    ("request_", "price"),
    [
        ({"model": "gpt-4o-image"}, "0.02"),
        ({"model": "veo-3.1-fast", "resolution": "4k"}, "0.90"),
        ({"model": "grok-video-1", "duration": 6}, "0.18"),
        ({"model": "grok-video-1", "duration": 30}, "0.90"),
        ({"model": "seedance-2.0", "duration": 10, "resolution": "720p"}, "2.8402"),
        ({"model": "gpt-image-2", "resolution": "4K"}, "0.048"),
    ],
)
def test_the_price_is_base_times_resolution_times_seconds(
    sandbox: Sandbox, api: httpx.Client, request_: dict[str, Any], price: str
) -> None:
    response = api.post("/generations", json={"prompt": "x", **request_})
    assert Decimal(str(response.json()["price_usd"])) == Decimal(price) == sandbox.bill.total_usd


def test_a_reference_video_makes_seedance_cheaper(sandbox: Sandbox, api: httpx.Client) -> None:
    buy(api, model="seedance-2.0", prompt="x")
    buy(api, model="seedance-2.0", prompt="x", video_urls=["https://example.com/a.mp4"])
    full, reduced = (purchase.price_usd for purchase in sandbox.bill)
    assert reduced < full
