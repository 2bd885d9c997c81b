"""One rate limit over many processes: shared through the Prefect server where it has a limit, alone where not."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_veogen import GenerationRequest, generate
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import Session, open_session
from prefect_veogen.tasks.shared_limit import create_limit, use_shared_limit
from tests.support.servers import Reply, Request, relayed, serving

ROOT = Path(__file__).parents[2]
SLOTS_PER_REQUEST = 1000
PICTURE = GenerationRequest(model="gpt-4o-image", prompt="a lighthouse")

# Two of them together send requests for some seconds, each of them as fast as its own limit lets it.
POLLING = """
import asyncio, sys, time
from prefect_veogen.tasks.shared_limit import use_shared_limit
from prefect_veogen.session import open_session

async def poll() -> None:
    session = open_session()
    await use_shared_limit(session)
    assert session.client.limiter.acquire_shared is not None
    print("ready", flush=True)
    until = float(sys.stdin.readline())
    while time.time() < until:
        await session.client.get_account()

asyncio.run(poll())
"""


@pytest.fixture
def name(sandbox: Sandbox, prefect_server: None) -> str:
    """The limit's name in the settings, which no other test uses."""
    return os.environ["VEOGEN_REQUESTS_LIMIT_NAME"]


async def limit_of(name: str) -> GlobalConcurrencyLimitResponse:
    async with get_client() as client:
        return await client.read_global_concurrency_limit_by_name(name)


def requests_a_minute(limit: GlobalConcurrencyLimitResponse) -> float:
    return limit.slot_decay_per_second * 60 / SLOTS_PER_REQUEST


async def shared_session() -> Session:
    session = open_session()
    await use_shared_limit(session)
    return session


@pytest.mark.server
async def test_the_limit_lets_a_few_through_at_once_and_then_keeps_the_pace(name: str) -> None:
    await create_limit(name, 120)
    limit = await limit_of(name)
    assert (limit.limit, limit.active) == (2 * SLOTS_PER_REQUEST, True)
    # A window of a minute must never see more than the 120: the burst, and what decays in the minute.
    assert requests_a_minute(limit) + limit.limit / SLOTS_PER_REQUEST <= 120
    assert requests_a_minute(limit) >= 117


@pytest.mark.server
async def test_making_the_limit_again_changes_it(name: str) -> None:
    await create_limit(name, 120)
    await create_limit(name, 60)
    limit = await limit_of(name)
    assert requests_a_minute(limit) + limit.limit / SLOTS_PER_REQUEST <= 60


@pytest.mark.slow
@pytest.mark.server
async def test_two_processes_together_keep_the_pace(
    name: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_minute, seconds = 600, 5.0
    await create_limit(name, per_minute)
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", POLLING, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    until = datetime.now().timestamp() + seconds  # noqa: DTZ005 - the same clock on both ends
    assert await asyncio.gather(*(reported(process, until) for process in processes)) == [0, 0]
    moments = [record.at for record in sandbox.requests if record.path.endswith("/account")]
    # Each alone may send 200 a second.
    assert most_within(moments, 2.0) <= 2 * per_minute / 60 + 3 + 2
    assert len(moments) >= 0.5 * per_minute / 60 * seconds


async def reported(process: asyncio.subprocess.Process, until: float) -> int:
    await process.communicate(f"{until}\n".encode())
    assert process.returncode is not None
    return process.returncode


def most_within(moments: list[datetime], seconds: float) -> int:
    """Return how many moments fall into the fullest window."""
    ordered = sorted(moments)
    return max(sum(begin <= moment < begin + timedelta(seconds=seconds) for moment in ordered) for begin in ordered)


@pytest.mark.server
async def test_a_purchase_under_the_shared_limit_goes_through(name: str, sandbox: Sandbox) -> None:
    await create_limit(name, 6000)
    asset = await generate(PICTURE)
    assert open_session().client.limiter.acquire_shared is not None
    assert (len(sandbox.bill), asset.size > 0) == (1, True)


@pytest.mark.server
async def test_without_the_limit_each_process_keeps_its_own(name: str, sandbox: Sandbox) -> None:
    assert (await shared_session()).client.limiter.acquire_shared is None
    await generate(PICTURE)
    assert len(sandbox.bill) == 1


@pytest.mark.server
async def test_a_limit_made_by_hand_counts_requests(name: str, sandbox: Sandbox) -> None:
    async with get_client() as client:
        by_hand = GlobalConcurrencyLimitCreate(name=name, limit=1, slot_decay_per_second=2)
        await client.create_global_concurrency_limit(by_hand)
    session = await shared_session()
    for _ in range(5):
        await session.client.get_account()
    first, *_, last = (record.at for record in sandbox.requests)
    # Two seconds, but for what the first request was late by: it takes the longest from the slot to the service.
    assert (last - first).total_seconds() >= 1.5


@pytest.mark.server
async def test_with_a_server_that_does_not_report_the_decay_the_limit_is_acquired_all_the_same(
    name: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    await create_limit(name, 120)
    server = urlsplit(str(PREFECT_API_URL.value()))
    full = (await limit_of(name)).model_copy(update={"active_slots": 2 * SLOTS_PER_REQUEST}).model_dump(mode="json")

    def respond(request: Request) -> Reply:
        if request.method == "GET" and request.path.endswith(name):
            return Reply(headers={"Content-Type": "application/json"}, body=json.dumps(full).encode())
        return relayed(server.geturl(), request)

    with serving(respond) as origin, temporary_settings({PREFECT_API_URL: origin + server.path}):
        session = await shared_session()
        async with asyncio.timeout(60):
            for _ in range(6):
                await session.client.get_account()
    assert "can't be used" not in caplog.text
    first, *_, last = (record.at for record in sandbox.requests)
    assert (last - first).total_seconds() >= 1.5  # two at once, and no faster than the limit's pace after that


@pytest.mark.server
async def test_a_limit_that_is_switched_off_is_not_used_and_is_no_trouble(
    name: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    await create_limit(name, 2)
    async with get_client() as client:
        await client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active=False))
    session = await shared_session()
    async with asyncio.timeout(50):  # the limit would let the second one through after a minute
        for _ in range(3):
            await session.client.get_account()
    assert "can't be used" not in caplog.text


@pytest.mark.server
async def test_a_limit_that_never_decays_stops_no_purchase(
    name: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    async with asyncio.timeout(60):
        await generate(PICTURE)
    assert len(sandbox.bill) == 1
    assert f"limit {name} can't be used" in caplog.text


@pytest.mark.server
async def test_a_limit_that_is_deleted_meanwhile_stops_no_purchase(name: str, sandbox: Sandbox) -> None:
    await create_limit(name, 6000)
    session = await shared_session()
    async with get_client() as client:
        await client.delete_global_concurrency_limit_by_name(name)
    async with asyncio.timeout(60):
        await session.client.get_account()
        await generate(PICTURE)
    assert len(sandbox.bill) == 1


@pytest.fixture
def dead_server(sandbox: Sandbox) -> Iterator[None]:
    """A Prefect server which is named but gone."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


async def test_an_unreachable_server_stops_nothing(dead_server: None) -> None:
    session = await shared_session()
    assert session.client.limiter.acquire_shared is None
    await session.client.get_account()


@pytest.mark.server
async def test_a_server_that_goes_away_meanwhile_stops_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    await create_limit(name, 6000)
    session = await shared_session()
    with (
        caplog.at_level(logging.WARNING),
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
    ):
        async with asyncio.timeout(60):
            await session.client.get_account()
    assert session.client.limiter.acquire_shared is None
    assert "can't be used" in caplog.text


async def test_a_server_that_never_responds_delays_by_seconds_and_does_not_stop(sandbox: Sandbox) -> None:
    with (
        serving(lambda request: None) as origin,
        temporary_settings({PREFECT_API_URL: f"{origin}/api"}),
    ):
        async with asyncio.timeout(40):
            session = await shared_session()
    assert session.client.limiter.acquire_shared is None


@pytest.mark.slow
@pytest.mark.server
async def test_a_server_that_falls_silent_meanwhile_delays_by_seconds_and_does_not_stop(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await create_limit(name, 6000)
    server = urlsplit(str(PREFECT_API_URL.value()))
    silent = threading.Event()

    def respond(request: Request) -> Reply | None:
        return None if silent.is_set() else relayed(server.geturl(), request)

    with serving(respond) as origin, temporary_settings({PREFECT_API_URL: origin + server.path}):
        session = await shared_session()
        await session.client.get_account()
        silent.set()
        async with asyncio.timeout(20):
            await session.client.get_account()
    assert session.client.limiter.acquire_shared is None
    assert f"limit {name} can't be used" in caplog.text


@pytest.mark.server
async def test_a_pause_holds_a_shared_backlog_and_buying_goes_first_after_it(name: str) -> None:
    await create_limit(name, 600)
    client = (await shared_session()).client
    order: list[str] = []

    async def use(purpose: str, acquired: Awaitable[object]) -> None:
        await acquired
        order.append(purpose)

    polls = [asyncio.create_task(use("poll", client.get_account())) for _ in range(20)]
    await asyncio.sleep(0.5)
    client.limiter.pause(4)
    await asyncio.sleep(1)
    before = len(order)
    purchase = asyncio.create_task(use("purchase", client.acquire_for_purchase()))
    await asyncio.sleep(0.7)
    assert (before, len(order)) == (before, before)
    await asyncio.gather(purchase, *polls)
    assert order[before] == "purchase"


async def test_without_a_server_there_is_no_shared_limit(sandbox: Sandbox) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert PREFECT_API_URL.value() is None
        assert (await shared_session()).client.limiter.acquire_shared is None
