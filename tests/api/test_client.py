"""Every endpoint is one request with a typed outcome, and a process has one client per account."""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_veogen import errors
from prefect_veogen.api.client import VeogenClient, client_of, find_balance
from prefect_veogen.api.outcome import Accepted, Busy, Refused, Unknown
from prefect_veogen.errors import VeogenError
from prefect_veogen.models import Kind, Status
from prefect_veogen.process.io_loop import io_loop
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.odd_server import IMAGE, TOKEN, buy, client_at, odd_server, saying
from tests.support.prefect_processes import free_port

VIDEO = {"model": "veo-3.1-fast", "prompt": "waves"}


@pytest.fixture
def client(sandbox: Sandbox) -> VeogenClient:
    return client_at(sandbox.base_url, token=sandbox.token)


async def test_a_purchase_is_one_request_with_one_price(sandbox: Sandbox, client: VeogenClient) -> None:
    sandbox.fault("stuck")
    submission = await buy(client, VIDEO)
    assert isinstance(submission, Accepted)
    assert submission.generation.price_usd == sandbox.bill.total_usd == Decimal("0.30")
    assert submission.generation.status in (Status.PENDING, Status.PROCESSING)
    assert [request.method for request in sandbox.requests] == ["POST"]


READS: dict[str, Callable[[VeogenClient, str], Any]] = {
    "/generations/": lambda client, known: client.get_generation(known),
    "/generations?per_page=100": lambda client, _: client.list_generations(),
    "/generations?per_page=7&type=video&page=2": lambda client, _: client.list_generations(
        Kind.VIDEO, page=2, per_page=7
    ),
    "/models/veo-3.1-fast": lambda client, _: client.get_model("veo-3.1-fast"),
    "/models": lambda client, _: client.list_models(),
    "/account": lambda client, _: client.get_account(),
    "/balance": lambda client, _: client.get_balance(),
    "/account/usage?per_page=100&page=1": lambda client, _: client.list_usage(),
    "/account/usage?per_page=100&page=1&model=veo-3.1-fast&type=video": lambda client, _: client.list_usage(
        model="veo-3.1-fast", kind=Kind.VIDEO
    ),
}


@pytest.mark.parametrize("address", READS)
async def test_every_read_is_one_request_for_json_with_the_token(
    address: str, sandbox: Sandbox, client: VeogenClient
) -> None:
    known = (await buy(client, VIDEO)).generation.id
    await READS[address](client, known)
    [_, request] = sandbox.requests
    path = f"{request.path}?{request.query}" if request.query else request.path
    assert path == f"/api/v1{address}{known if address.endswith('/') else ''}"
    assert (request.method, request.status, request.had_authorization) == ("GET", 200, True)
    assert request.headers["accept"] == "application/json"


async def test_every_read_returns_what_the_sandbox_has(sandbox: Sandbox, client: VeogenClient) -> None:
    image = (await buy(client, IMAGE)).generation
    video = (await buy(client, {**VIDEO, "resolution": "4k"})).generation
    sandbox.advance(1000)
    assert (await client.get_generation(image.id)).output is not None
    assert [one.id for one in (await client.list_generations()).items] == [video.id, image.id]
    assert [one.id for one in (await client.list_generations(Kind.IMAGE)).items] == [image.id]
    assert (await client.get_model("veo-3.1-fast")).resolution_multipliers["4k"] == 3
    assert "gpt-4o-image" in {model.slug for model in (await client.list_models()).items}
    assert (await client.get_account()).spent_usd == (await client.get_balance()).spent_usd == Decimal("0.92")
    charges = (await client.list_usage()).items
    assert sorted(charge.amount_usd for charge in charges) == [Decimal("0.02"), Decimal("0.9")]


async def test_ids_and_slugs_go_into_the_address_escaped(sandbox: Sandbox, client: VeogenClient) -> None:
    for asked in (client.get_generation("a/../b?c#d é"), client.get_model("../account?x=1")):
        with pytest.raises(errors.ChangeTheRequest):
            await asked
    assert {request.query for request in sandbox.requests} == {""}
    assert all(request.path.startswith(("/api/v1/generations/", "/api/v1/models/")) for request in sandbox.requests)


async def test_a_model_the_catalogue_lacks_is_not_found(client: VeogenClient) -> None:
    with pytest.raises(errors.ModelNotFound, match="this model: 'veo-9'"):
        await client.get_model("veo-9")


async def test_a_response_with_another_generation_is_refused() -> None:
    other = saying(200, b'{"data": {"id": "other", "status": "completed"}}')
    with odd_server(other) as odd, pytest.raises(errors.UnexpectedAnswer, match="other"):
        await client_at(odd.base_url).get_generation("mine")


@pytest.mark.parametrize(
    ("fault", "kind", "purchases"),
    [
        ("lost-answer-after-charge", Unknown, 1),
        ("lost-answer-before-charge", Unknown, 0),
        ("500-after-charge", Unknown, 1),
        ("502-after-charge", Unknown, 1),
        ("500-before-charge", Unknown, 0),
        ("503-before-charge", Unknown, 0),
        ("garbled-json-after-charge", Unknown, 1),
        ("empty-body-after-charge", Unknown, 1),
        ("html-after-charge", Unknown, 1),
        ("429", Busy, 0),
        ("402", Refused, 0),
        ("401", Refused, 0),
        ("422", Refused, 0),
    ],
)
async def test_a_purchase_is_sent_once_whatever_comes_back(
    fault: str, kind: type, purchases: int, sandbox: Sandbox, client: VeogenClient
) -> None:
    sandbox.fault(fault)
    assert isinstance(await buy(client, IMAGE), kind)
    assert len(sandbox.bill) == purchases
    assert len(sandbox.requests) == 1


async def test_a_timeout_is_a_purchase_in_doubt(sandbox: Sandbox) -> None:
    sandbox.fault("slow-answer", seconds=60.0)
    client = client_at(sandbox.base_url, token=sandbox.token, timeout_seconds=2)
    assert isinstance(await buy(client, IMAGE), Unknown)
    assert len(sandbox.bill) == 1


async def test_a_refused_connection_is_a_purchase_not_sent() -> None:
    client = client_at(f"http://127.0.0.1:{free_port()}/api/v1")
    with pytest.raises(errors.NotSent, match=r"127\.0\.0\.1:\d+"):
        await buy(client, IMAGE)


async def test_a_connection_closed_without_a_response_is_a_purchase_in_doubt() -> None:
    with odd_server(lambda connection, _: connection.close()) as odd:
        assert isinstance(await buy(client_at(odd.base_url), IMAGE), Unknown)
    assert len(odd.requests) == 1


@pytest.mark.parametrize("buying", [False, True])
async def test_a_server_that_never_accepts_connections_was_not_reached(buying: bool) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        hold = [socket.socket() for _ in range(3)]
        for one in hold:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        client = client_at(f"http://127.0.0.1:{full.getsockname()[1]}", timeout_seconds=0.2)
        with pytest.raises(errors.NotSent if buying else errors.ServiceUnavailable):
            await (buy(client, IMAGE) if buying else client.get_account())
        for one in hold:
            one.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("look-500", errors.ServiceUnavailable),
        ("look-dropped", errors.ServiceUnavailable),
        ("look-garbled", errors.UnexpectedAnswer),
        ("look-html", errors.UnexpectedAnswer),
        ("look-401", errors.AuthenticationError),
    ],
)
async def test_a_failed_read_is_one_request_and_a_typed_error(
    fault: str, kind: type[VeogenError], sandbox: Sandbox, client: VeogenClient
) -> None:
    sandbox.fault(fault)
    with pytest.raises(kind) as caught:
        await client.list_generations()
    assert type(caught.value) is kind
    assert len(sandbox.requests) == 1


async def test_a_base_url_without_the_apis_path_is_reported(sandbox: Sandbox) -> None:
    with pytest.raises(errors.ChangeTheRequest, match="VEOGEN_BASE_URL: it ends in /api/v1"):
        await client_at(sandbox.base_url.removesuffix("/api/v1")).get_account()


async def test_an_unreachable_service_is_unavailable() -> None:
    with pytest.raises(errors.ServiceUnavailable, match="Check the network and VEOGEN_BASE_URL"):
        await client_at(f"http://127.0.0.1:{free_port()}").get_account()


async def test_a_429_pauses_all_requests_once_and_the_reads_then_succeed() -> None:
    together = threading.Barrier(3, timeout=10)

    def respond(connection: socket.socket, number: int) -> None:
        if number < 3:
            together.wait()
        saying(429 if number < 3 else 200, b"{}", "Retry-After: 1")(connection, number)

    with odd_server(respond) as odd:
        client = client_at(odd.base_url)
        started = time.monotonic()
        await asyncio.gather(*(client.get_account() for _ in range(3)))
        await client.acquire_for_purchase()
    assert 1 <= time.monotonic() - started < 15
    assert len(odd.requests) == 3 + 3


async def test_a_429_of_a_purchase_pauses_the_reads_too(sandbox: Sandbox, client: VeogenClient) -> None:
    sandbox.fault("429", retry_after=1)
    started = time.monotonic()  # before the pause begins, so that it is part of what follows
    assert await buy(client, IMAGE) == Busy(1.0)
    await client.get_account()
    assert time.monotonic() - started >= 1


async def test_a_read_with_repeated_429_ends_as_rate_limited() -> None:
    with odd_server(saying(429, b"", "Retry-After: 0")) as odd, pytest.raises(errors.RateLimited) as caught:
        await client_at(odd.base_url).get_account()
    assert caught.value.retry_after_seconds == 0
    assert 1 < len(odd.requests) < 10


async def test_at_the_limit_hardly_any_request_gets_429_and_all_succeed() -> None:
    with Sandbox(speed=20, requests_per_minute=120, tiny_media=True) as sandbox:
        client = client_at(sandbox.base_url, token=sandbox.token, rate=120 * 20)
        # That none is refused is shown where time is simulated; here the machine's own delays bunch requests up.
        await asyncio.gather(*(client.get_account() for _ in range(180)))
        assert sum(request.status == 429 for request in sandbox.requests) < 18
        assert sum(request.status == 200 for request in sandbox.requests) == 180


@pytest.mark.parametrize(
    ("faults", "expected"),
    [((), Decimal(100)), ((("balance-500", 1),), Decimal(100)), ((("balance-500", 2),), None)],
)
async def test_a_balance_that_no_endpoint_states_is_unknown_and_not_zero(
    faults: tuple[tuple[str, int], ...], expected: Decimal | None, sandbox: Sandbox, client: VeogenClient
) -> None:
    for name, times in faults:
        sandbox.fault(name, times=times)
    found = await find_balance(client)
    assert (found and found.remaining_usd) == expected


@pytest.mark.parametrize(
    "token", ["", " ", f"{TOKEN}\n", f" {TOKEN}", f"{TOKEN}é", f"{TOKEN}\r\nX-Evil: 1", f"{TOKEN} b", f"{TOKEN}\u2028"]
)
def test_a_token_that_is_not_a_valid_header_is_refused_and_not_shown(token: str) -> None:
    # The HTTP library would quote it in its error, and the purchase would count as unknown.
    with pytest.raises(errors.ConfigurationError) as caught:
        client_at("http://127.0.0.1:1", token=token)
    assert TOKEN not in f"{caught.value} {caught.value!r} {caught.value.__dict__}"


async def test_the_token_is_in_no_log_error_or_repr(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = client_at(sandbox.base_url, token=sandbox.token)
    seen: list[Any] = [client, str(client), client.account, client.limiter, client.transport, vars(client)]
    await client.get_account()
    for fault in ("look-401", "look-500", "look-html", "look-dropped"):
        sandbox.fault(fault)
        with pytest.raises(VeogenError) as caught:
            await client.list_generations()
        seen += [caught.value, str(caught.value), caught.value.__dict__, caught.getrepr(style="long")]
        seen.append(pickle.dumps(caught.value))
    assert caplog.records
    seen += [(record.getMessage(), record.args) for record in caplog.records]
    assert not [text for thing in seen if TOKEN in (text := f"{thing} {thing!r}")]


@pytest.mark.parametrize("account", [("https://x/api", TOKEN), ("https://y/api", TOKEN), ("https://x/api", "other")])
def test_the_name_of_an_account_is_unique_and_does_not_reveal_the_token(account: tuple[str, str]) -> None:
    others = {("https://x/api", TOKEN), ("https://y/api", TOKEN), ("https://x/api", "other")} - {account}
    name = client_at(account[0], token=account[1]).account
    assert name not in {client_at(base_url, token=token).account for base_url, token in others}
    assert TOKEN not in name


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "http://",
        "veogen.studio/api/v1",
        "ftp://veogen.studio",
        "file:///etc/passwd",
        "http://[::bad",
        "http://localhost:99999",
        "http://localhost:port",
        "http://xn--a/",
        "http://exa\u2063mple/",
        "http://\x00/",
        "http://ho st/",
        "https://veogen.studio/api?key=hunter2",
        "ftp://user:hunter2@veogen.studio/api",
        "https://veogen.studio/api#top",
        "https://user:hunter2@veogen.studio/api",
    ],
)
def test_an_invalid_base_url_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="base URL") as caught:
        client_at(base_url)
    assert "hunter2" not in str(caught.value)


def test_all_callers_with_the_same_account_share_one_client() -> None:
    first = client_of(SecretStr("t"), "https://veogen.studio/api/v1", 120, 60)
    assert client_of(SecretStr("t"), "HTTPS://veogen.studio/api/v1/", 120, 60) is first
    assert client_of(SecretStr("u"), "https://veogen.studio/api/v1", 120, 60) is not first


async def test_the_connections_of_unused_accounts_are_closed() -> None:
    closed: queue.Queue[int] = queue.Queue()
    kept: list[Any] = []

    def respond(connection: socket.socket, number: int) -> None:
        connection.settimeout(60)  # as long as all of the others take, not one request
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"data": {}}')
        if connection.recv(1) == b"":
            closed.put(number)

    with odd_server(respond) as odd:
        for number in range(21):  # five more than are kept for a while
            session = open_session(token=SecretStr(f"t-{number}"), base_url=odd.base_url)
            kept += [session.poller, session.catalogue]  # which belong to a client, and don't keep it
            await session.client.get_account()
        assert sorted([await asyncio.to_thread(closed.get, timeout=30) for _ in range(5)]) == [0, 1, 2, 3, 4]
        assert closed.empty()


def test_a_client_in_use_stays_the_only_one_of_its_account() -> None:
    held = open_session(token=SecretStr("held"))
    forgotten = weakref.ref(open_session(token=SecretStr("forgotten")).client)
    for number in range(30):
        client_of(SecretStr(f"other-{number}"), "https://veogen.studio/api/v1", 120, 60)
    assert open_session(token=SecretStr("held")).client is held.client
    assert forgotten() is None


WORK = """
import asyncio, os, sys
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.models import GenerationRequest
from prefect_veogen.download.deliver import deliver
from prefect_veogen.purchase.submit import buy
from prefect_veogen.session import open_session
from prefect_veogen.purchase.wait import wait

async def main():
    session = open_session()
    generation = (await on_io(buy(session, GenerationRequest(model="gpt-4o-image", prompt="a fox")))).generation
    print((await on_io(deliver(session, await on_io(wait(session, generation))))).asset.uri)

asyncio.run(main())
"""


@pytest.mark.usefixtures("sandbox", "store_url")
def test_a_process_that_ends_leaves_nothing_open() -> None:
    command = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", WORK]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "assets/" in ran.stdout
    assert "ResourceWarning" not in ran.stderr, ran.stderr


def test_callers_in_many_loops_and_threads_share_the_limit(sandbox: Sandbox, client: VeogenClient) -> None:
    def read() -> None:
        asyncio.run(client.get_account())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sandbox.requests) == 8
    assert client.limiter._runner is not None
    assert client.limiter._runner.get_loop() is io_loop()


async def test_a_cancelled_call_cancels_the_request() -> None:
    arrived, gone = threading.Event(), threading.Event()

    def hang(connection: socket.socket, _: int) -> None:
        arrived.set()
        if connection.recv(1) == b"":
            gone.set()

    with odd_server(hang) as odd:
        call = asyncio.create_task(client_at(odd.base_url).get_account())
        assert await asyncio.to_thread(arrived.wait, 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(gone.wait, 30)
