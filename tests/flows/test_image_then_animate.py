"""flows/image_then_animate.py, from the call to the bucket: called, run as a script, deployed, cancelled, killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from prefect import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.image_then_animate import image_then_animate
from prefect_veogen.errors import ChangeTheRequest, InsufficientBalance
from prefect_veogen.sandbox import Sandbox

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "flows" / "image_then_animate.py")
PROMPTS = ("a lighthouse at dusk", "the beam turns")
PATIENCE_SECONDS = 120.0


def read(uri: str) -> bytes:
    """Return a stored object, read without our own code."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(parts.path).read_bytes()
    with closing(boto3.client("s3")) as client:
        body: bytes = client.get_object(Bucket=parts.netloc, Key=parts.path[1:])["Body"].read()
    return body


def served(sandbox: Sandbox) -> list[bytes]:
    """Return what the service serves for each generation, oldest first."""
    urls = [generation.output_url for generation in sandbox.generations]
    return [urllib.request.urlopen(url).read() for url in urls if url is not None]


def child_environment() -> dict[str, str]:
    """Return this process's environment with the test's Prefect server, which only this process knows."""
    return {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}


def run_as_script() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *PROMPTS]
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


async def test_picture_and_clip_land_in_the_store_as_they_were_served(sandbox: Sandbox, store_url: str) -> None:
    animated = await image_then_animate(*PROMPTS)
    assert [read(asset.uri) for asset in (animated.image, animated.video)] == served(sandbox)
    assert [animated.image.content_type, animated.video.content_type] == ["image/png", "video/mp4"]
    assert [purchase.price_usd for purchase in sandbox.bill] == [Decimal("0.02"), Decimal("0.30")]
    for asset in (animated.image, animated.video):
        assert hashlib.sha256(read(asset.uri)).hexdigest() == asset.sha256
        assert json.loads(read(f"{asset.uri}.json"))["asset"]["generation_id"] == asset.generation_id
        assert "/assets/" in asset.uri


async def test_the_clip_is_made_from_the_picture(sandbox: Sandbox) -> None:
    await image_then_animate(*PROMPTS)
    picture, clip = sandbox.generations
    assert clip.parameters["image_urls"] == [picture.output_url]


async def test_running_again_costs_nothing_and_another_take_is_another_pair(sandbox: Sandbox, store_url: str) -> None:
    first, again = await image_then_animate(*PROMPTS), await image_then_animate(*PROMPTS)
    assert first == again
    assert sandbox.bill.total_usd == Decimal("0.32")
    assert (await image_then_animate(*PROMPTS, take=2)).video.uri != first.video.uri
    assert sandbox.bill.total_usd == Decimal("0.64")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"motion_prompt": " "}, "prompt: must not be empty"),
        ({"video_model": "nope"}, "nope"),
        ({"resolution": "16k"}, r"resolution: veo-3.1-fast does not offer this \(got '16k'\); allowed: "),
        ({"aspect_ratio": "1:1"}, "aspect_ratio: veo-3.1-fast does not offer this"),
        ({"image_model": "nope"}, "nope"),
    ],
)
async def test_what_cannot_be_had_of_the_clip_stops_the_picture_too(
    wrong: dict[str, Any], said: str, sandbox: Sandbox
) -> None:
    prompts: dict[str, Any] = dict(zip(("image_prompt", "motion_prompt"), PROMPTS, strict=True))
    with pytest.raises(ChangeTheRequest, match=said):
        await image_then_animate(**prompts | wrong)
    assert sandbox.bill.purchases == ()


async def test_a_cap_that_would_not_do_for_both_buys_neither(sandbox: Sandbox) -> None:
    state = await image_then_animate(*PROMPTS, budget_usd=0.1, return_state=True)
    assert state.is_failed()
    assert "BudgetExceeded: That would cost $0.32 more" in str(state.message)
    assert len(sandbox.bill) == 0
    await image_then_animate(*PROMPTS, budget_usd=0.32)
    assert len(sandbox.bill) == 2


async def test_a_balance_that_would_not_do_for_both_buys_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(speed=100, tiny_media=True, requests_per_minute=None, balance_usd=Decimal("0.31")) as poor:
        for name, value in poor.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InsufficientBalance, match=r"cost \$0.32 more, and the account holds \$0.31"):
            await image_then_animate(*PROMPTS)
        assert len(poor.bill) == 0


@pytest.mark.slow
def test_as_a_script_it_prints_where_both_are_and_the_second_run_asks_for_nothing(
    sandbox: Sandbox, store_url: str
) -> None:
    first = run_as_script()
    uris, asked = first.stdout.split(), len(sandbox.requests)
    assert first.returncode == 0, first.stderr
    assert run_as_script().stdout.split() == uris
    assert len(sandbox.requests) == asked
    assert [read(uri) for uri in uris] == served(sandbox)
    assert len(sandbox.bill) == 2


@pytest.mark.parametrize("words", [(), PROMPTS[:1], (*PROMPTS, "2")])
def test_as_a_script_with_other_than_two_prompts_it_says_how_it_is_used(
    words: tuple[str, ...], sandbox: Sandbox
) -> None:
    command = [sys.executable, SCRIPT, *words]
    ran = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "usage: python flows/image_then_animate.py IMAGE_PROMPT MOTION_PROMPT"
    assert len(sandbox.requests) == 0


@pytest.mark.slow
@pytest.mark.kill
def test_killed_between_buying_and_storing_the_next_run_finishes_the_same_purchase(
    sandbox: Sandbox, store_url: str
) -> None:
    sandbox.fault("media-stalled", kind="video", times=1)
    running = subprocess.Popen([sys.executable, SCRIPT, *PROMPTS], env=child_environment(), stderr=subprocess.DEVNULL)
    wait_until(lambda: any("/videos/" in request.path for request in sandbox.requests))
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    finished = run_as_script()
    assert [read(uri) for uri in finished.stdout.split()] == served(sandbox), finished.stderr
    assert len(sandbox.bill) == len(sandbox.generations) == 2


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


async def test_a_cancelled_run_says_what_is_still_running_and_the_next_adopts_it(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.speed = 0
    running = asyncio.create_task(image_then_animate(*PROMPTS))
    await asyncio.to_thread(
        wait_until,
        lambda: any(request.method == "GET" and request.path.endswith("/generations") for request in sandbox.requests),
    )
    with caplog.at_level(logging.WARNING):
        running.cancel()
        await asyncio.wait([running])
    purchase = sandbox.bill.purchases[0]
    message = next(
        record.getMessage() for record in caplog.records if record.getMessage().startswith("Stopped waiting")
    )
    assert purchase.id in message
    assert f"${purchase.price_usd}" in message
    sandbox.speed = 100
    assert (await image_then_animate(*PROMPTS)).image.generation_id == purchase.id


@pytest.mark.slow
@pytest.mark.s3
def test_as_a_deployment_a_runner_makes_both_for_its_caller(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    serve = [sys.executable, "-m", "prefect", "flow", "serve", f"{SCRIPT}:image_then_animate", "--name", "offline"]
    runner = subprocess.Popen(serve, env=child_environment(), cwd=ROOT, start_new_session=True)
    try:
        wait_until(lambda: runner.poll() is not None or is_deployed("image-then-animate/offline"))
        parameters = dict(zip(("image_prompt", "motion_prompt"), PROMPTS, strict=True))
        run: Any = run_deployment(
            "image-then-animate/offline", parameters=parameters, timeout=PATIENCE_SECONDS, poll_interval=0.5
        )
    finally:
        os.killpg(runner.pid, signal.SIGTERM)
        runner.wait(PATIENCE_SECONDS)
    assert run.state.is_completed(), run.state
    animated = asyncio.run(image_then_animate(*PROMPTS))
    assert [read(asset.uri) for asset in (animated.image, animated.video)] == served(sandbox)
    assert len(sandbox.bill) == 2


def is_deployed(name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(name)
        except ObjectNotFound:
            return False
    return True
