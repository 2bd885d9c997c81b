"""Responses without an end are lost in bounded time, and no credential or library error leaves the transport."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import AsyncIterator

import pytest

from prefect_veogen import errors
from prefect_veogen.api.http import MAX_RESPONSE_BYTES, ResponseLost, Transport, fetch_file
from prefect_veogen.api.outcome import Accepted, Refused, Unknown
from prefect_veogen.process.io_loop import on_io
from tests.support.odd_server import IMAGE, TOKEN, buy, client_at, odd_server, saying


def trickling(connection: socket.socket, _: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(600):
        connection.sendall(b" ")
        time.sleep(0.05)


async def test_a_response_that_trickles_for_ever_is_lost_in_bounded_time() -> None:
    with odd_server(trickling) as odd:
        client = client_at(odd.base_url, timeout_seconds=1)
        started = time.monotonic()
        assert isinstance(await buy(client, IMAGE), Unknown)
        with pytest.raises(errors.ServiceUnavailable):
            await client.get_account()
        assert time.monotonic() - started < 25


async def test_a_file_that_trickles_for_ever_fails_in_bounded_time() -> None:
    with odd_server(trickling) as odd:
        started = time.monotonic()
        with pytest.raises(errors.ConfigurationError, match=r"rows.csv can't be read: it took longer than 0.3 s"):
            await fetch_file(f"{odd.base_url}/rows.csv", 0.3)
        assert time.monotonic() - started < 25


HUGE = b'{"data": {"id": "g"}}' + b" " * MAX_RESPONSE_BYTES


@pytest.mark.parametrize(
    ("body", "headers"),
    [(HUGE, ()), (gzip.compress(HUGE, 1), ("Content-Encoding: gzip",)), (b"\x00", ("Content-Encoding: gzip",))],
    ids=["huge", "a bomb", "no gzip"],
)
async def test_a_response_without_bounds_is_lost_and_not_kept(body: bytes, headers: tuple[str, ...]) -> None:
    with odd_server(saying(201, body, *headers)) as odd:
        assert isinstance(await buy(client_at(odd.base_url), IMAGE), Unknown)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_with_the_token(status: int) -> None:
    with (
        odd_server(saying(200)) as elsewhere,
        odd_server(saying(status, b"", f"Location: {elsewhere.base_url}/account")) as odd,
    ):
        client = client_at(odd.base_url)
        with pytest.raises(errors.UnexpectedAnswer, match="redirect"):
            await client.get_account()
        assert isinstance(await buy(client, IMAGE), Unknown if status in (302, 303) else Refused)
    assert len(odd.requests) == 2
    assert all(f"Bearer {TOKEN}" in requests for requests in odd.requests)
    assert elsewhere.requests == []


async def test_a_media_host_never_sees_the_token() -> None:
    with odd_server(saying(200, b"{}")) as host:
        client = client_at(host.base_url)
        await client.get_account()

        async def download() -> bytes:
            async with client.transport.open_media(f"{host.base_url}/a.png", {"Range": "bytes=0-"}) as media:
                return b"".join([chunk async for chunk in media.read_chunks()])

        assert await on_io(download()) == b"{}"
    assert TOKEN in host.requests[0]
    assert TOKEN not in host.requests[1]
    assert "authorization" not in host.requests[1].lower()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://a..b/x", "notaurl", "http://\x00/"])
async def test_no_error_of_the_http_library_leaves_the_transport(url: str) -> None:
    transport = Transport(1)

    async def download() -> AsyncIterator[bytes]:
        async with transport.open_media(url, {}) as media:
            return media.read_chunks()

    with pytest.raises(ResponseLost):
        await on_io(download())
    await on_io(transport.close())


async def test_cookies_of_the_service_do_not_reach_the_media_host() -> None:
    with odd_server(saying(200, b"{}", "Set-Cookie: session=hunter2; Path=/")) as odd:
        client = client_at(odd.base_url)
        await client.get_account()

        async def download() -> None:
            async with client.transport.open_media(f"{odd.base_url}/a.png", {}):
                pass

        await on_io(download())
    assert "hunter2" not in odd.requests[1]


def closing_when_used_again(connection: socket.socket, _: int) -> None:
    """Respond once and keep the connection, as if idle; close it when the next request is on its way."""
    body = b'{"data": {"id": "g", "model": "gpt-4o-image", "status": "pending"}}'
    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    connection.recv(1)


async def test_no_purchase_is_lost_with_an_idle_connection_that_the_service_closes() -> None:
    with odd_server(closing_when_used_again) as odd:
        client = client_at(odd.base_url)
        assert [type(await buy(client, IMAGE)) for _ in range(3)] == [Accepted] * 3
    assert len(odd.requests) == 3
