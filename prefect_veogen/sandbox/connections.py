"""Responses that misbehave below HTTP: connections that are dropped, reset, cut short, slow or stalled."""

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
"""Key of the ASGI scope: the function to call with the status of a response that is sent outside of ASGI."""

_TRANSPORT = "sandbox.transport"


class TransportProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which also gives the application the transport below HTTP."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A logger of our own, so that another uvicorn in this process keeps its log settings.
        self.logger = logging.getLogger(__name__)
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        application: Any = self.app

        async def with_transport(scope: Any, receive: Any, send: Any) -> None:
            try:
                await application({**scope, _TRANSPORT: transport}, receive, send)
            except asyncio.CancelledError:
                # Only happens when the server stops, and its connections are closed by then: no client is left.
                return

        self.app = with_transport


class DroppedConnection(Response):
    """Close the connection without a byte of a response."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[NOTE_STATUS](None)
        await _close(scope, receive)


class FileBody(Response):
    """Send the headers and then the body piece by piece, at most one piece ahead of the client."""

    def __init__(
        self, status: int, headers: Mapping[str, str], pieces: Iterator[bytes], *, pause_seconds: float = 0
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self.pieces = pieces
        self.pause_seconds = pause_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self.pieces:
            # Sending to a client that has left neither fails nor blocks: without this, gigabytes would be made in vain.
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
    """Reset the TCP connection after the last piece, instead of closing it in order."""

    async def finish(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _transport(scope)
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.005)
        connection = transport.get_extra_info("socket")
        # Lingering for zero seconds makes the close a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await _wait_for_disconnect(receive)


class StalledBody(FileBody):
    """Send nothing for a while (real seconds), then close the connection."""

    def __init__(self, status: int, headers: Mapping[str, str], pieces: Iterator[bytes], seconds: float) -> None:
        super().__init__(status, headers, pieces)
        self.seconds = seconds

    async def finish(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.wait_for(_wait_for_disconnect(receive), self.seconds)
        except TimeoutError:
            await _close(scope, receive)


class RawResponse(Response):
    """Send headers and a body that contradict each other, which HTTP libraries refuse to do, then close."""

    def __init__(self, status: int, headers: Mapping[str, str], pieces: Iterator[bytes]) -> None:
        super().__init__(status_code=status)
        self.header_lines = headers
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[NOTE_STATUS](self.status_code)
        transport = _transport(scope)
        head = "".join(f"{name}: {value}\r\n" for name, value in self.header_lines.items())
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
    await _wait_for_disconnect(receive)


async def _wait_for_disconnect(receive: Receive) -> None:
    # Until the server has noticed the disconnect, returning would make it send a response of its own.
    while (await receive())["type"] != "http.disconnect":
        pass
