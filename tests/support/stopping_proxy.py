"""A proxy for all requests of a process, which can halt everything at any one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = ("connection", "expect", "keep-alive", "proxy-connection", "transfer-encoding")


@dataclass
class Stop:
    """The request to stop at: before it is forwarded, or after its response came but before that is forwarded."""

    number: int
    after: bool


@dataclass
class World:
    """The requests so far, and whether they still move."""

    stop: Stop | None = None
    requests: list[str] = field(default_factory=list)
    standing: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, request: str) -> int:
        with self.lock:
            self.requests.append(request)
            return len(self.requests)

    def stops(self, number: int, *, after: bool) -> bool:
        return self.standing.is_set() or self.stop == Stop(number, after)

    def halt(self) -> None:
        """Halt every request until the process that sent them is dead."""
        self.standing.set()
        self.over.wait()


class StoppingProxy(ThreadingHTTPServer):
    """Serves as HTTP_PROXY; one world (a run of the tested process) at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.world = World()

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.server_port}"
        return {"HTTP_PROXY": address, "http_proxy": address, "NO_PROXY": "", "no_proxy": ""}

    def new_world(self, stop: Stop | None = None) -> World:
        self.world = World(stop)
        return self.world

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: connections break here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def forward(self) -> None:
        assert isinstance(self.server, StoppingProxy)
        world = self.server.world
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        number = world.record(f"{self.command} {self.path}")
        if world.stops(number, after=False):
            world.halt()
            self.close_connection = True
            return
        status, headers, content = self._send_upstream(body)
        if world.stops(number, after=True):
            world.halt()
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = forward  # noqa: N815 - http.server's names

    def _send_upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        url = urlsplit(self.path)
        connection = HTTPConnection(url.netloc, timeout=30)
        try:
            wanted = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, f"{url.path}{'?' if url.query else ''}{url.query}", body, wanted)
            response = connection.getresponse()
            content = response.read()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP]
        finally:
            connection.close()
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(len(content))))
        return response.status, headers, content

    def handle_expect_100(self) -> bool:
        proceed = super().handle_expect_100()
        self.wfile.flush()
        return proceed

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@contextmanager
def stopping_proxy() -> Iterator[StoppingProxy]:
    """Yield a running proxy."""
    with StoppingProxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.world.over.set()
            proxy.shutdown()
            thread.join()
