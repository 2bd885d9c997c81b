"""Generations over time: statuses, durations, dates, and many clients at once."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE, LONG_ENOUGH, VIDEO, buy, client_of, poll


def test_a_price_can_change_while_it_runs_and_is_in_the_catalogue_and_on_the_bill() -> None:
    with Sandbox() as sandbox, client_of(sandbox) as api:
        sandbox.set_price("gpt-4o-image", "0.05")
        assert api.get("/models/gpt-4o-image").json()["data"]["price_usd"] == 0.05
        api.post("/generations", json=IMAGE)
        assert sandbox.bill.total_usd == Decimal("0.05")
        with pytest.raises(ValueError, match="no model 'nope'"):
            sandbox.set_price("nope", 1)
        with pytest.raises(ValueError, match="0 or more"):
            sandbox.set_price("gpt-4o-image", -1)


def test_ids_are_random_uuids_whatever_the_seed() -> None:
    ids = set()
    for _ in range(2):
        with Sandbox(seed=7) as sandbox, client_of(sandbox) as api:
            ids |= {api.post("/generations", json=IMAGE).json()["data"]["id"] for _ in range(3)}
    assert len(ids) == 6
    assert {uuid.UUID(one).version for one in ids} == {4}


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
def test_the_echo_of_parameters_can_be_chosen(echo: Any, shown: dict[str, Any]) -> None:
    with Sandbox(parameters_echo=echo) as sandbox, client_of(sandbox) as api:
        request = {"model": "veo-3.1-fast", "prompt": "x", "image_urls": ["https://example.com/a.png"]}
        assert api.post("/generations", json=request).json()["data"]["parameters"] == shown


def test_a_generation_is_pending_then_processing_then_completed() -> None:
    with Sandbox(speed=0, image_seconds=10) as sandbox, client_of(sandbox) as api:
        generation = buy(api, **IMAGE)
        seen = [poll(api, generation["id"])["status"]]
        for seconds in (3.5, 6, 0.6):
            sandbox.advance(seconds)
            seen.append(poll(api, generation["id"])["status"])
        assert seen == ["pending", "processing", "processing", "completed"]


def test_images_take_5_to_15_seconds_and_videos_30_to_120() -> None:
    with Sandbox(speed=0, requests_per_minute=None) as sandbox, client_of(sandbox) as api:
        for _ in range(20):
            buy(api, **IMAGE)
            buy(api, **VIDEO)
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
                buy(api, **IMAGE)
            sandbox.advance(LONG_ENOUGH)
            ends = [(one.completed_at, one.created_at) for one in sandbox.generations]
            return [round((end - start).total_seconds(), 3) for end, start in ends if end]

    assert durations(1) == durations(1)
    assert durations(1) != durations(2)


def test_a_generation_is_never_dated_before_the_request_that_made_it(sandbox: Sandbox, api: httpx.Client) -> None:
    later = datetime.now(UTC)  # the clock of the sandbox stands still at an earlier moment
    buy(api, **IMAGE)
    assert sandbox.now < later <= sandbox.generations[0].created_at
    sandbox.advance(3600)
    buy(api, **IMAGE)
    assert sandbox.generations[1].created_at - sandbox.now == timedelta(0)


def test_speed_makes_sandbox_time_run_faster() -> None:
    with Sandbox(speed=1000, image_seconds=10) as sandbox, client_of(sandbox) as api:
        generation = buy(api, **IMAGE)
        polls = 0
        while poll(api, generation["id"])["status"] != "completed":
            polls += 1
        assert polls < 100
        before = sandbox.now
        sandbox.speed = 0
        frozen = sandbox.now
        assert before < frozen == sandbox.now


def test_reset_forgets_everything_but_the_time(sandbox: Sandbox, api: httpx.Client) -> None:
    generation = buy(api, **IMAGE)
    sandbox.fault("429", times=None)
    sandbox.advance(LONG_ENOUGH)
    before = sandbox.now
    sandbox.reset()
    assert (len(sandbox.bill), sandbox.generations, sandbox.requests, sandbox.faults) == (0, (), (), ())
    assert sandbox.balance_usd == 100
    assert sandbox.now == before
    assert api.get(f"/generations/{generation['id']}").status_code == 404


BUYER = """
import json, sys, urllib.request
for _ in range(25):
    request = urllib.request.Request(
        sys.argv[1] + "/generations",
        data=json.dumps({"model": "gpt-4o-image", "prompt": "from a process"}).encode(),
        headers={"Authorization": "Bearer " + sys.argv[2]},
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 201
"""


def test_many_threads_and_processes_buy_side_by_side(sandbox: Sandbox, api: httpx.Client) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", BUYER, sandbox.base_url, sandbox.token]) for _ in range(2)]
    with ThreadPoolExecutor(4) as threads:
        responses = list(threads.map(lambda _: api.post("/generations", json=IMAGE), range(100)))
    assert [process.wait(30) for process in processes] == [0, 0]
    assert {response.status_code for response in responses} == {201}
    assert len({purchase.id for purchase in sandbox.bill}) == len(sandbox.bill) == 150
    assert sandbox.bill.total_usd == Decimal("3.00")
    assert sandbox.balance_usd == Decimal("97.00")


def test_5000_generations_do_not_slow_responses_down(sandbox: Sandbox, api: httpx.Client) -> None:
    for _ in range(5000):
        sandbox._engine.buy({**IMAGE, "model": "gpt-image-2"})  # 5,000 purchases over HTTP would take 5 s

    def seconds_for_polls(client: httpx.Client) -> float:
        began = time.perf_counter()
        for _ in range(10):
            client.get("/generations", params={"type": "image", "per_page": 1})
            client.get("/account")
        return time.perf_counter() - began

    with Sandbox(speed=0, requests_per_minute=None) as fresh, client_of(fresh) as other:
        fresh._engine.buy(IMAGE)
        # In turns, so that what else runs on the machine slows both, and the fastest of each counts.
        took = [(seconds_for_polls(api), seconds_for_polls(other)) for _ in range(8)]
    many, few = map(min, zip(*took, strict=True))
    assert many < 3 * few + 0.05
