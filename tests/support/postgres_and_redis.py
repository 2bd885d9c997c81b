"""PostgreSQL and Redis for a Prefect server, from the system's packages, on free ports of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.prefect_processes import free_port

USER = "postgres"
QUICK = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"
PATIENCE_SECONDS = 30.0


@contextmanager
def postgres_and_redis() -> Iterator[dict[str, str]]:
    """Run both, empty; yield the settings with which a Prefect server uses them."""
    with ExitStack() as stack:
        postgres, redis = stack.enter_context(_postgres()), stack.enter_context(_redis())
        yield {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect@127.0.0.1:{postgres}/prefect",
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_PORT": str(redis),
        }


@contextmanager
def _postgres() -> Iterator[int]:
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        pytest.fail("PostgreSQL is missing (on Debian: apt-get install postgresql)")
    port = free_port()
    # Not below the tests' folder, which nobody but its owner may enter: as root, the server belongs to another user.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, USER, USER)

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    data, log = str(folder / "data"), str(folder / "log")
    try:
        run("initdb", "-D", data, "-U", "prefect", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 {QUICK}"
        run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect")
            yield port
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@contextmanager
def _redis() -> Iterator[int]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("Redis is missing (on Debian: apt-get install redis-server)")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.05)
        else:
            return
