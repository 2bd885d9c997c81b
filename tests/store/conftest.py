"""Both kinds of store, and an S3 server that checks signatures and checksums."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from prefect_veogen.store import Store, open_store
from tests.support.prefect_processes import free_port, wait_until


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def listens_on(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def strict_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server in another process, which checks checksums and the signatures of links."""
    port = free_port()
    environment = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3"}
    command = [sys.executable, "-m", "ministack"]
    folder = tmp_path_factory.mktemp("ministack")
    server = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: server.poll() is not None or listens_on(port), "the S3 server starts")
        assert server.poll() is None, "the S3 server ended while starting"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
