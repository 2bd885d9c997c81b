"""A server which responds with any bytes, and a client for it."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr

from prefect_veogen.api.client import VeogenClient

TOKEN = "vg-secret-4711"


IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse at dusk"}


def client_at(base_url: str, *, token: str = TOKEN, rate: int = 12_000, timeout_seconds: float = 5) -> VeogenClient:
    return VeogenClient(SecretStr(token), base_url, requests_per_minute=rate, request_timeout_seconds=timeout_seconds)


class Odd:
    """The requests an odd server received, and its address."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/api/v1"
        self.requests: list[str] = []


@contextmanager
def odd_server(respond: Callable[[socket.socket, int], None]) -> Iterator[Odd]:
    """Serve connections of one request each: `respond` gets the connection and the number of earlier ones."""
    lock = threading.Lock()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(5)
            head = b""
            while b"\r\n\r\n" not in head and (more := self.request.recv(65536)):
                head += more
            with lock:
                number = len(odd.requests)
                odd.requests.append(head.decode("latin-1"))
            try:
                respond(self.request, number)
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

    def respond(connection: socket.socket, _: int) -> None:
        connection.sendall("\r\n".join(lines).encode() + body)

    return respond


async def buy(client: VeogenClient, body: dict[str, Any]) -> Any:
    await client.acquire_for_purchase()
    return await client.create_generation(body)
