"""Connections that misbehave below HTTP: dropped, reset, cut short, slow or stalled."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

NOTE_STATUS = "sandbox.note_status"
"""Key of the scope under which the server keeps what to call with the status of an answer sent outside of ASGI."""

_TRANSPORT = "sandbox.transport"


class OpenProtocol(H11Protocol):
    """uvicorn's HTTP protocol, except that the application can reach the connection itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A logger of our own: another uvicorn in this process keeps its settings, and its log.
        self.logger = logging.getLogger(__name__)
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        application: Any = self.app

        async def with_transport(scope: Any, receive: Any, send: Any) -> None:
            try:
                await application({**scope, _TRANSPORT: transport}, receive, send)
            except asyncio.CancelledError:
                # Only happens when the server stops, and its connections are gone by then: nobody is told.
                return

        self.app = with_transport


class DroppedConnection(Response):
    """Close the connection without a byte of an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[NOTE_STATUS](None)
        await _close(scope, receive)


class FileBody(Response):
    """Send the headers and then the body piece by piece, never more than a piece ahead of the client."""

    def __init__(
        self, status: int, headers: Mapping[str, str], pieces: Iterator[bytes], *, pause_seconds: float = 0
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self.pieces = pieces
        self.pause_seconds = pause_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self.pieces:
            # Sending to a client that left never fails and never waits: without this, gigabytes are made for nobody.
            if _transport(scope).is_closing():
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(self.pause_seconds)
        await self.finish(scope, receive, send)

    async def finish(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b""})


class BrokenBody(FileBody):
    """Close the connection after the last piece, however much the headers promised."""

    async def finish(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _close(scope, receive)


class ResetBody(FileBody):
    """End in a TCP reset instead of an orderly close."""

    async def finish(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _transport(scope)
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.005)
        connection = transport.get_extra_info("socket")
        # Lingering for zero seconds makes the close a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await _gone(receive)


class StalledBody(FileBody):
    """Go silent for a while (real seconds) before closing."""

    def __init__(self, status: int, headers: Mapping[str, str], pieces: Iterator[bytes], seconds: float) -> None:
        super().__init__(status, headers, pieces)
        self.seconds = seconds

    async def finish(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.wait_for(_gone(receive), self.seconds)
        except TimeoutError:
            await _close(scope, receive)


class RawAnswer(Response):
    """Send bytes that no HTTP library would agree to send, then close."""

    def __init__(self, status: int, headers: Mapping[str, str], pieces: Iterator[bytes]) -> None:
        super().__init__(status_code=status)
        self.lines = headers
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[NOTE_STATUS](self.status_code)
        transport = _transport(scope)
        head = "".join(f"{name}: {value}\r\n" for name, value in self.lines.items())
        transport.write(f"HTTP/1.1 {self.status_code} Sandbox\r\n{head}connection: close\r\n\r\n".encode("latin-1"))
        for piece in self.pieces:
            transport.write(piece)
            while transport.get_write_buffer_size() > len(piece) and not transport.is_closing():
                await asyncio.sleep(0.001)
        await _close(scope, receive)


def _transport(scope: Scope) -> asyncio.Transport:
    transport: asyncio.Transport = scope[_TRANSPORT]
    return transport


async def _close(scope: Scope, receive: Receive) -> None:
    _transport(scope).close()
    await _gone(receive)


async def _gone(receive: Receive) -> None:
    # Until the server has noticed the end, returning would make it send an answer of its own.
    while (await receive())["type"] != "http.disconnect":
        pass
