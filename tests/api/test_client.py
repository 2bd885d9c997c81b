"""The client sends one request per call, shows the token to nobody else, and says what an answer means for money."""

from __future__ import annotations

import asyncio
import gzip
import logging
import pickle
import queue
import socket
import socketserver
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_veogen import errors
from prefect_veogen.api.client import VeogenClient, balance_of, client_of
from prefect_veogen.api.http import MAX_ANSWER_BYTES, AnswerLost, Transport, fetch_text
from prefect_veogen.api.responses import Accepted, Busy, Refused, Unknown
from prefect_veogen.errors import VeogenError
from prefect_veogen.models import Kind, Status
from prefect_veogen.process.io_loop import io_loop, on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session

TOKEN = "vg-secret-4711"
IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse at dusk"}
VIDEO = {"model": "veo-3.1-fast", "prompt": "waves"}


def client_at(base_url: str, *, token: str = TOKEN, rate: int = 12_000, timeout_seconds: float = 5) -> VeogenClient:
    return VeogenClient(SecretStr(token), base_url, requests_per_minute=rate, request_timeout_seconds=timeout_seconds)


@pytest.fixture
def client(sandbox: Sandbox) -> VeogenClient:
    return client_at(sandbox.base_url, token=sandbox.token)


async def bought(client: VeogenClient, body: dict[str, Any]) -> Any:
    await client.turn_to_buy()
    return await client.create_generation(body)


# ---------------------------------------------------------------- a server that answers whatever is wanted


class Odd:
    """What an odd server was asked, and where it is."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/api/v1"
        self.asked: list[str] = []


@contextmanager
def odd_server(answer: Callable[[socket.socket, int], None]) -> Iterator[Odd]:
    """Serve connections of one request each: `answer` gets the connection and how many came before."""
    lock = threading.Lock()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(5)
            head = b""
            while b"\r\n\r\n" not in head and (more := self.request.recv(65536)):
                head += more
            with lock:
                number = len(odd.asked)
                odd.asked.append(head.decode("latin-1"))
            try:
                answer(self.request, number)
            except OSError:
                return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        odd = Odd(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield odd
        server.shutdown()


def saying(status: int, body: bytes = b"{}", *headers: str) -> Callable[[socket.socket, int], None]:
    lines = [f"HTTP/1.1 {status} Odd", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]

    def answer(connection: socket.socket, _: int) -> None:
        connection.sendall("\r\n".join(lines).encode() + body)

    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ---------------------------------------------------------------- every endpoint


async def test_a_purchase_is_one_request_with_one_price(sandbox: Sandbox, client: VeogenClient) -> None:
    sandbox.fault("stuck")
    submission = await bought(client, VIDEO)
    assert isinstance(submission, Accepted)
    assert submission.generation.price_usd == sandbox.bill.total_usd == Decimal("0.30")
    assert submission.generation.status in (Status.PENDING, Status.PROCESSING)
    assert [request.method for request in sandbox.requests] == ["POST"]


LOOKS: dict[str, Callable[[VeogenClient, str], Any]] = {
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


@pytest.mark.parametrize("address", LOOKS)
async def test_every_look_is_one_request_for_json_with_the_token(
    address: str, sandbox: Sandbox, client: VeogenClient
) -> None:
    known = (await bought(client, VIDEO)).generation.id
    await LOOKS[address](client, known)
    [_, request] = sandbox.requests
    path = f"{request.path}?{request.query}" if request.query else request.path
    assert path == f"/api/v1{address}{known if address.endswith('/') else ''}"
    assert (request.method, request.status, request.had_authorization) == ("GET", 200, True)
    assert request.headers["accept"] == "application/json"


async def test_what_the_looks_tell_is_what_the_sandbox_knows(sandbox: Sandbox, client: VeogenClient) -> None:
    image = (await bought(client, IMAGE)).generation
    video = (await bought(client, {**VIDEO, "resolution": "4k"})).generation
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


async def test_another_generation_than_the_one_asked_for_is_not_believed() -> None:
    other = saying(200, b'{"data": {"id": "other", "status": "completed"}}')
    with odd_server(other) as odd, pytest.raises(errors.UnexpectedAnswer, match="other"):
        await client_at(odd.base_url).get_generation("mine")


# ---------------------------------------------------------------- what a purchase may come to


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
    assert isinstance(await bought(client, IMAGE), kind)
    assert len(sandbox.bill) == purchases
    assert len(sandbox.requests) == 1


async def test_an_answer_that_comes_too_late_is_an_unknown_purchase(sandbox: Sandbox) -> None:
    sandbox.fault("slow-answer", seconds=2.0)
    client = client_at(sandbox.base_url, token=sandbox.token, timeout_seconds=0.3)
    assert isinstance(await bought(client, IMAGE), Unknown)
    assert len(sandbox.bill) == 1


async def test_a_refused_connection_is_a_purchase_not_sent() -> None:
    client = client_at(f"http://127.0.0.1:{free_port()}/api/v1")
    with pytest.raises(errors.NotSent, match=r"127\.0\.0\.1:\d+"):
        await bought(client, IMAGE)


async def test_a_connection_closed_without_a_word_is_an_unknown_purchase() -> None:
    with odd_server(lambda connection, _: connection.close()) as odd:
        assert isinstance(await bought(client_at(odd.base_url), IMAGE), Unknown)
    assert len(odd.asked) == 1


@pytest.mark.parametrize("buying", [False, True])
async def test_a_server_that_never_accepts_is_one_that_was_not_reached(buying: bool) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        hold = [socket.socket() for _ in range(3)]
        for one in hold:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        client = client_at(f"http://127.0.0.1:{full.getsockname()[1]}", timeout_seconds=0.2)
        with pytest.raises(errors.NotSent if buying else errors.ServiceUnavailable):
            await (bought(client, IMAGE) if buying else client.get_account())
        for one in hold:
            one.close()


# ---------------------------------------------------------------- looks


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
async def test_a_failed_look_is_one_request_and_a_typed_error(
    fault: str, kind: type[VeogenError], sandbox: Sandbox, client: VeogenClient
) -> None:
    sandbox.fault(fault)
    with pytest.raises(kind) as caught:
        await client.list_generations()
    assert type(caught.value) is kind
    assert len(sandbox.requests) == 1


async def test_a_base_url_without_the_apis_path_is_told_as_such(sandbox: Sandbox) -> None:
    with pytest.raises(errors.ChangeTheRequest, match="VEOGEN_BASE_URL: it ends in /api/v1"):
        await client_at(sandbox.base_url.removesuffix("/api/v1")).get_account()


async def test_an_unreachable_service_is_a_failed_look() -> None:
    with pytest.raises(errors.ServiceUnavailable, match="Check the network and VEOGEN_BASE_URL"):
        await client_at(f"http://127.0.0.1:{free_port()}").get_account()


async def test_too_many_requests_pauses_everybody_once_and_the_looks_then_succeed() -> None:
    together = threading.Barrier(3, timeout=10)

    def answer(connection: socket.socket, number: int) -> None:
        if number < 3:
            together.wait()
        saying(429 if number < 3 else 200, b"{}", "Retry-After: 1")(connection, number)

    with odd_server(answer) as odd:
        client = client_at(odd.base_url)
        started = time.monotonic()
        await asyncio.gather(*(client.get_account() for _ in range(3)))
        await client.turn_to_buy()
    assert 1 <= time.monotonic() - started < 15
    assert len(odd.asked) == 3 + 3


async def test_a_purchase_told_to_wait_makes_the_looks_wait_too(sandbox: Sandbox, client: VeogenClient) -> None:
    sandbox.fault("429", retry_after=1)
    assert await bought(client, IMAGE) == Busy(1.0)
    started = time.monotonic()
    await client.get_account()
    assert time.monotonic() - started > 0.9


async def test_a_look_refused_again_and_again_ends_as_rate_limited() -> None:
    with odd_server(saying(429, b"", "Retry-After: 0")) as odd, pytest.raises(errors.RateLimited) as caught:
        await client_at(odd.base_url).get_account()
    assert caught.value.retry_after_seconds == 0
    assert 1 < len(odd.asked) < 10


async def test_at_the_limit_hardly_any_request_is_refused_and_all_are_answered() -> None:
    with Sandbox(speed=60, requests_per_minute=120, tiny_media=True) as sandbox:
        client = client_at(sandbox.base_url, token=sandbox.token, rate=120 * 60)
        # That none is refused is shown where time is simulated; here the machine's own delays bunch requests up.
        await asyncio.gather(*(client.get_account() for _ in range(180)))
        assert sum(request.status == 429 for request in sandbox.requests) < 18
        assert sum(request.status == 200 for request in sandbox.requests) == 180


@pytest.mark.parametrize(
    ("faults", "expected"),
    [((), Decimal(100)), ((("balance-500", 1),), Decimal(100)), ((("balance-500", 2),), None)],
)
async def test_a_balance_that_nobody_tells_is_unknown_and_not_zero(
    faults: tuple[tuple[str, int], ...], expected: Decimal | None, sandbox: Sandbox, client: VeogenClient
) -> None:
    for name, times in faults:
        sandbox.fault(name, times=times)
    found = await balance_of(client)
    assert (found and found.remaining_usd) == expected


# ---------------------------------------------------------------- answers that do not end


def trickling(connection: socket.socket, _: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(600):
        connection.sendall(b" ")
        time.sleep(0.05)


async def test_an_answer_that_trickles_for_ever_is_lost_in_bounded_time() -> None:
    with odd_server(trickling) as odd:
        client = client_at(odd.base_url, timeout_seconds=0.3)
        started = time.monotonic()
        assert isinstance(await bought(client, IMAGE), Unknown)
        with pytest.raises(errors.ServiceUnavailable):
            await client.get_account()
        assert time.monotonic() - started < 10


async def test_a_text_that_trickles_for_ever_is_given_up_in_bounded_time() -> None:
    with odd_server(trickling) as odd:
        started = time.monotonic()
        with pytest.raises(errors.ConfigurationError, match=r"rows.csv can't be read: it took longer than 0.3 s"):
            await fetch_text(f"{odd.base_url}/rows.csv", 0.3)
        assert time.monotonic() - started < 10


HUGE = b'{"data": {"id": "g"}}' + b" " * MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    ("body", "headers"),
    [(HUGE, ()), (gzip.compress(HUGE, 1), ("Content-Encoding: gzip",)), (b"\x00", ("Content-Encoding: gzip",))],
    ids=["huge", "a bomb", "no gzip"],
)
async def test_an_answer_without_bounds_is_lost_and_not_kept(body: bytes, headers: tuple[str, ...]) -> None:
    with odd_server(saying(201, body, *headers)) as odd:
        assert isinstance(await bought(client_at(odd.base_url), IMAGE), Unknown)


# ---------------------------------------------------------------- the token


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_with_the_token(status: int) -> None:
    with (
        odd_server(saying(200)) as elsewhere,
        odd_server(saying(status, b"", f"Location: {elsewhere.base_url}/account")) as odd,
    ):
        client = client_at(odd.base_url)
        with pytest.raises(errors.UnexpectedAnswer, match="redirect"):
            await client.get_account()
        assert isinstance(await bought(client, IMAGE), Unknown if status in (302, 303) else Refused)
    assert len(odd.asked) == 2
    assert all(f"Bearer {TOKEN}" in asked for asked in odd.asked)
    assert elsewhere.asked == []


async def test_a_media_host_never_sees_the_token() -> None:
    with odd_server(saying(200, b"{}")) as host:
        client = client_at(host.base_url)
        await client.get_account()

        async def download() -> bytes:
            async with client.transport.media(f"{host.base_url}/a.png", {"Range": "bytes=0-"}) as media:
                return b"".join([chunk async for chunk in media.chunks()])

        assert await on_io(download()) == b"{}"
    assert TOKEN in host.asked[0]
    assert TOKEN not in host.asked[1]
    assert "authorization" not in host.asked[1].lower()


@pytest.mark.parametrize(
    "token", ["", " ", f"{TOKEN}\n", f" {TOKEN}", f"{TOKEN}é", f"{TOKEN}\r\nX-Evil: 1", f"{TOKEN} b", f"{TOKEN}\u2028"]
)
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    # The HTTP library would quote it in its error, and the purchase would count as unknown.
    with pytest.raises(errors.ConfigurationError) as caught:
        client_at("http://127.0.0.1:1", token=token)
    assert TOKEN not in f"{caught.value} {caught.value!r} {caught.value.__dict__}"


async def test_the_token_is_in_no_text_that_anybody_reads(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
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
def test_an_account_has_a_name_of_its_own_which_gives_nothing_away(account: tuple[str, str]) -> None:
    others = {("https://x/api", TOKEN), ("https://y/api", TOKEN), ("https://x/api", "other")} - {account}
    name = client_at(account[0], token=account[1]).account
    assert name not in {client_at(base_url, token=token).account for base_url, token in others}
    assert TOKEN not in name


# ---------------------------------------------------------------- the base URL


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
def test_a_base_url_that_leads_nowhere_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="base URL") as caught:
        client_at(base_url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://a..b/x", "notaurl", "http://\x00/"])
async def test_no_error_of_the_http_library_leaves_the_media_door(url: str) -> None:
    transport = Transport(1)

    async def download() -> AsyncIterator[bytes]:
        async with transport.media(url, {}) as media:
            return media.chunks()

    with pytest.raises(AnswerLost):
        await on_io(download())
    await on_io(transport.close())


# ---------------------------------------------------------------- one per process


def test_everybody_with_the_same_account_shares_one_client() -> None:
    first = client_of(SecretStr("t"), "https://veogen.studio/api/v1", 120, 60)
    assert client_of(SecretStr("t"), "HTTPS://veogen.studio/api/v1/", 120, 60) is first
    assert client_of(SecretStr("u"), "https://veogen.studio/api/v1", 120, 60) is not first


async def test_the_connections_of_accounts_that_are_no_longer_used_are_closed() -> None:
    closed: queue.Queue[int] = queue.Queue()
    kept: list[Any] = []

    def answer(connection: socket.socket, number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"data": {}}')
        if connection.recv(1) == b"":
            closed.put(number)

    with odd_server(answer) as odd:
        for number in range(21):  # five more than are kept for a while
            session = open_session(token=SecretStr(f"t-{number}"), base_url=odd.base_url)
            kept += [session.watcher, session.catalogue]  # which belong to a client, and don't keep it
            await session.client.get_account()
        assert sorted([await asyncio.to_thread(closed.get, timeout=5) for _ in range(5)]) == [0, 1, 2, 3, 4]
        assert closed.empty()


def test_a_client_that_somebody_holds_stays_the_account_s_only_one() -> None:
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
    def look() -> None:
        asyncio.run(client.get_account())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sandbox.requests) == 8
    assert client.limiter._runner is not None
    assert client.limiter._runner.get_loop() is io_loop()


async def test_who_stops_waiting_for_an_answer_stops_the_request() -> None:
    gone = threading.Event()

    def hang(connection: socket.socket, _: int) -> None:
        if connection.recv(1) == b"":
            gone.set()

    with odd_server(hang) as odd:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client_at(odd.base_url).get_account(), 0.3)
        assert await asyncio.to_thread(gone.wait, 3)


async def test_cookies_of_the_service_do_not_reach_the_media_host() -> None:
    with odd_server(saying(200, b"{}", "Set-Cookie: session=hunter2; Path=/")) as odd:
        client = client_at(odd.base_url)
        await client.get_account()

        async def download() -> None:
            async with client.transport.media(f"{odd.base_url}/a.png", {}):
                pass

        await on_io(download())
    assert "hunter2" not in odd.asked[1]
