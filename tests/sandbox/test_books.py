"""Time and money in the sandbox: statuses, the bill, the balance, the statement, the rate limit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
VIDEO = {"model": "veo-3.1-fast", "prompt": "waves"}
LONG_ENOUGH = 200.0


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


def bought(api: httpx.Client, **request: Any) -> dict[str, Any]:
    answer = api.post("/generations", json=request)
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def status(api: httpx.Client, generation: dict[str, Any]) -> str:
    shown: str = api.get(f"/generations/{generation['id']}").json()["data"]["status"]
    return shown


def test_a_generation_is_pending_then_processing_then_completed() -> None:
    with Sandbox(speed=0, image_seconds=10) as sandbox, client_of(sandbox) as api:
        generation = bought(api, **IMAGE)
        seen = [status(api, generation)]
        for seconds in (3.5, 6, 0.6):
            sandbox.advance(seconds)
            seen.append(status(api, generation))
        assert seen == ["pending", "processing", "processing", "completed"]


def test_images_take_5_to_15_seconds_and_videos_30_to_120() -> None:
    with Sandbox(speed=0, requests_per_minute=None) as sandbox, client_of(sandbox) as api:
        for _ in range(20):
            bought(api, **IMAGE)
            bought(api, **VIDEO)
        sandbox.advance(LONG_ENOUGH)
        took: dict[str, list[float]] = {"image": [], "video": []}
        for generation in sandbox.generations:
            assert generation.completed_at is not None
            took[generation.kind].append((generation.completed_at - generation.created_at).total_seconds())
        assert 5 <= min(took["image"]) < max(took["image"]) <= 15
        assert 30 <= min(took["video"]) < max(took["video"]) <= 120


def test_equal_seeds_take_equal_times_and_other_seeds_do_not() -> None:
    def durations(seed: int) -> list[float]:
        with Sandbox(speed=0, seed=seed) as sandbox, client_of(sandbox) as api:
            for _ in range(3):
                bought(api, **IMAGE)
            sandbox.advance(LONG_ENOUGH)
            ends = [(one.completed_at, one.created_at) for one in sandbox.generations]
            return [round((end - start).total_seconds(), 3) for end, start in ends if end]

    assert durations(1) == durations(1)
    assert durations(1) != durations(2)


def test_a_generation_is_never_dated_before_the_request_that_made_it(sandbox: Sandbox, api: httpx.Client) -> None:
    later = datetime.now(UTC)  # the clock of the sandbox stands still at an earlier moment
    bought(api, **IMAGE)
    assert sandbox.now < later <= sandbox.generations[0].created_at
    sandbox.advance(3600)
    bought(api, **IMAGE)
    assert sandbox.generations[1].created_at - sandbox.now == timedelta(0)


def test_speed_makes_sandbox_time_run_faster() -> None:
    with Sandbox(speed=1000, image_seconds=10) as sandbox, client_of(sandbox) as api:
        generation = bought(api, **IMAGE)
        looks = 0
        while status(api, generation) != "completed":
            looks += 1
        assert looks < 100
        before = sandbox.now
        sandbox.speed = 0
        frozen = sandbox.now
        assert before < frozen == sandbox.now


def test_a_purchase_is_on_the_bill_and_off_the_balance_at_once(sandbox: Sandbox, api: httpx.Client) -> None:
    generation = bought(api, **VIDEO)
    assert [purchase.id for purchase in sandbox.bill] == [generation["id"]]
    assert sandbox.bill.total_usd == Decimal("0.30")
    assert sandbox.balance_usd == Decimal("99.70")
    assert api.get("/account").json()["data"]["usd_balance"] == 99.7
    assert api.get("/account").json()["data"]["usd_spent"] == 0.3
    assert api.get("/balance").json() == {"remaining_balance": 99.7, "used_balance": 0.3}


def test_a_failed_generation_is_refunded_when_it_fails_and_not_before(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("failed", reason="not allowed")
    generation = bought(api, **VIDEO)
    assert (len(sandbox.bill), sandbox.balance_usd) == (1, Decimal("99.70"))
    sandbox.advance(LONG_ENOUGH)
    shown = api.get(f"/generations/{generation['id']}").json()["data"]
    assert (shown["status"], shown["error"], shown["output"]) == ("failed", "not allowed", None)
    assert (len(sandbox.bill), sandbox.bill.total_usd, sandbox.balance_usd) == (0, 0, 100)
    assert [purchase.refunded for purchase in sandbox.bill.purchases] == [True]
    assert api.get("/account/usage").json()["total"] == 0


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
    answer = api.post("/generations", json={"prompt": "x", **request_})
    assert Decimal(str(answer.json()["price_usd"])) == Decimal(price) == sandbox.bill.total_usd


def test_a_reference_video_makes_seedance_cheaper(sandbox: Sandbox, api: httpx.Client) -> None:
    bought(api, model="seedance-2.0", prompt="x")
    bought(api, model="seedance-2.0", prompt="x", video_urls=["https://example.com/a.mp4"])
    full, reduced = (purchase.price_usd for purchase in sandbox.bill)
    assert reduced < full


def test_a_short_balance_is_402_with_what_is_required_and_what_is_there() -> None:
    with Sandbox(balance_usd="0.05") as sandbox, client_of(sandbox) as api:
        answer = api.post("/generations", json=VIDEO)
        assert answer.status_code == 402
        assert answer.json() == {
            "error": "Insufficient balance.",
            "message": "This generation costs $0.30 but your balance is $0.05.",
            "required": 0.3,
            "balance": 0.05,
        }
        assert len(sandbox.bill) == 0
        assert api.post("/generations", json=IMAGE).status_code == 201


def test_the_statement_lists_what_stuck_with_internal_model_keys(sandbox: Sandbox, api: httpx.Client) -> None:
    bought(api, **IMAGE)
    bought(api, **VIDEO)
    assert api.get("/account/usage").json()["total"] == 0
    sandbox.advance(LONG_ENOUGH)
    page = api.get("/account/usage", params={"per_page": 1}).json()
    assert (page["current_page"], page["per_page"], page["total"]) == (1, 1, 2)
    assert set(page) == {"current_page", "data", "per_page", "total"}
    line = page["data"][0]
    assert (line["model_key"], line["generation_type"], line["amount_usd"]) == ("veo_3_1_fast", "video", 0.3)
    assert line["created_at"].endswith(".000000Z")
    assert isinstance(line["id"], int)
    by_model = api.get("/account/usage", params={"model": "gpt-4o-image"}).json()["data"]
    assert [one["model_key"] for one in by_model] == ["gpt4o_image"]
    assert api.get("/account/usage", params={"type": "video"}).json()["total"] == 1


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


def test_reset_forgets_everything_but_the_time(sandbox: Sandbox, api: httpx.Client) -> None:
    generation = bought(api, **IMAGE)
    sandbox.fault("429", times=None)
    sandbox.advance(LONG_ENOUGH)
    before = sandbox.now
    sandbox.reset()
    assert (len(sandbox.bill), sandbox.generations, sandbox.requests, sandbox.faults) == (0, (), (), ())
    assert sandbox.balance_usd == 100
    assert sandbox.now == before
    assert api.get(f"/generations/{generation['id']}").status_code == 404
