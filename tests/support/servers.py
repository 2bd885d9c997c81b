"""Scripted HTTP servers, alone or as a proxy in front of a real one: each test decides every response."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """One request as received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One response; `cut_at` closes the connection after so many bytes of the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None


Script = Callable[[Request], Reply | None]


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """Serve on a free port of this machine; `None` closes the connection without a response."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = script(Request(self.command, self.path, headers, body))
            if reply is None:
                self.close_connection = True
                return
            self.send_response_only(reply.status)
            sized = {"Content-Length": str(len(reply.body))} if "content-length" not in reply.headers else {}
            for name, value in (reply.headers | sized).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut_at])
            self.close_connection = self.close_connection or reply.cut_at is not None

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore clients that hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def relayed(upstream: str, request: Request) -> Reply:
    """Forward a request to the real server, and return its response."""
    connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
    try:
        headers = {name: value for name, value in request.headers.items() if name not in ("expect", "connection")}
        connection.request(request.method, request.path, request.body, headers)
        response = connection.getresponse()
        body = response.read()
        hop = ("connection", "transfer-encoding", "content-length", "keep-alive")
        kept = {name.lower(): value for name, value in response.getheaders() if name.lower() not in hop}
        if request.method == "HEAD":
            kept["content-length"] = response.headers.get("Content-Length") or "0"
        return Reply(response.status, kept, body)
    finally:
        connection.close()


def without(request: Request, *headers: str) -> Request:
    """Return the request without some of its headers."""
    return replace(request, headers={name: value for name, value in request.headers.items() if name not in headers})


class Once:
    """True for the first request that fits, and never again."""

    def __init__(self, fits: Callable[[Request], bool]) -> None:
        self._fits = fits
        self._lock = threading.Lock()
        self.happened = False

    def __call__(self, request: Request) -> bool:
        with self._lock:
            if self.happened or not self._fits(request):
                return False
            self.happened = True
            return True
