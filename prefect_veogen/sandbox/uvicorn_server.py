"""uvicorn for both origins on one event loop; it stops at once, without waiting for slow responses."""

from __future__ import annotations

import asyncio
import socket
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefect_veogen.sandbox.app import build_app
from prefect_veogen.sandbox.connections import NOTE_STATUS, TransportProtocol
from prefect_veogen.sandbox.control import PREFIX as CONTROL_PREFIX
from prefect_veogen.sandbox.engine import Engine
from prefect_veogen.sandbox.media_host import MediaHost
from prefect_veogen.sandbox.request_log import Origin, RequestRecord


class Recorder:
    """Forwards requests to an application and records each in the engine's log."""

    def __init__(self, app: ASGIApp, engine: Engine, origin: Origin) -> None:
        self._app = app
        self._engine = engine
        self._origin = origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(CONTROL_PREFIX):
            await self._app(scope, receive, send)
            return
        at, elapsed, noted = datetime.now(UTC), self._engine.clock.elapsed(), False

        def note_status(status: int | None) -> None:
            nonlocal noted
            if not noted:
                noted = True
                self._record(scope, at, elapsed, status)

        async def send_recorded(message: Message) -> None:
            # Recorded before the response is sent, so that a client which has it finds it in the log.
            if message["type"] == "http.response.start":
                note_status(message["status"])
                date = format_datetime(self._engine.now(), usegmt=True).encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"date", date)]}
            await send(message)

        try:
            await self._app({**scope, NOTE_STATUS: note_status}, receive, send_recorded)
        finally:
            note_status(None)

    def _record(self, scope: Scope, at: datetime, elapsed: float, status: int | None) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        had_authorization = headers.pop("authorization", None) is not None
        record = RequestRecord(
            origin=self._origin,
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            status=status,
            at=at,
            sandbox_at=self._engine.clock.date(elapsed),
            had_authorization=had_authorization,
            headers=headers,
        )
        self._engine.log.add(record)


class QuickServer(uvicorn.Server):
    """A uvicorn server that stops within milliseconds, whatever its connections are doing."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve as uvicorn does, without signal handlers and without log lines."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=sockets)
        await self.main_loop()
        await self.shutdown(sockets=sockets)

    async def main_loop(self) -> None:
        while not self._stopping.is_set():
            await self.on_tick(0)
            try:
                await asyncio.wait_for(self._stopping.wait(), 1.0)
            except TimeoutError:
                continue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class UvicornServers:
    """Both servers of one sandbox; `run` on an event loop, `stop` from any thread."""

    def __init__(self, engine: Engine, api: socket.socket, media: socket.socket) -> None:
        self.started = threading.Event()
        apps: tuple[tuple[ASGIApp, Origin], ...] = ((build_app(engine), "api"), (MediaHost(engine), "media"))
        self._apps = [Recorder(app, engine, origin) for app, origin in apps]
        self._sockets = (api, media)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    async def run(self) -> None:
        """Serve until stopped."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        servers = [self._make_server(app, self._stopping) for app in self._apps]
        running = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for server, listener in zip(servers, self._sockets, strict=True)
        ]
        while not all(server.started for server in servers) and not any(task.done() for task in running):
            await asyncio.sleep(0.001)
        self.started.set()
        await asyncio.gather(*running)

    def stop(self) -> None:
        """Ask the servers to stop; they have stopped when `run` returns."""
        if self._loop and self._stopping and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _make_server(self, app: Any, stopping: asyncio.Event) -> QuickServer:
        config = uvicorn.Config(
            app,
            http=TransportProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            date_header=False,  # the recorder adds one, by the sandbox's clock
            timeout_keep_alive=60,
        )
        return QuickServer(config, stopping)
