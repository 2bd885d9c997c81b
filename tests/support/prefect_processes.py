"""A Prefect server with all its services, and process workers: what `prefect server start` and `worker start` run."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

ROOT = Path(__file__).parents[2]
POOL = "veogen"
TIMEOUT_SECONDS = 240.0
# Below those of /proc/sys/net/ipv4/ip_local_port_range, of which other tests get one while a server is starting.
PORTS = (20_000, 32_000)


def environment_for(api_url: str, home: Path) -> dict[str, str]:
    """Return this process's environment for a separate Prefect, without the developer's profile."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **inherited,
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
    }


@contextmanager
def running_server(home: Path, **settings: str) -> Iterator[str]:
    """Run a server, scheduler included, by default with an empty database below `home`; yield the API's address."""
    port = free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    # The server's services reach its API by this address, whatever options it was started with.
    own = {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port), **settings}
    with _running(["server", "start"], environment_for(api_url, home) | own, home / "server.log") as server:
        wait_until(lambda: _responds(f"{api_url}/health", server), "the Prefect server starts", home / "server.log")
        yield api_url


@contextmanager
def running_worker(
    environment: dict[str, str], folder: Path, *, limit: int = 1, python: str = sys.executable
) -> Iterator[Path]:
    """Run a process worker for the pool in `folder`; yield the log of it and of its runs."""
    log = folder / "worker.log"
    command = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", str(limit)]
    with _running(command, environment, log, cwd=folder, python=python):
        yield log


def kill_worker(folder: Path) -> None:
    """Kill the worker that was started in a folder, and its runs, as when their machine dies."""
    worker = _worker_pid(folder)
    for pid in (worker, *_processes_below(worker)):
        os.kill(pid, signal.SIGKILL)


def _processes_below(parent: int) -> list[int]:
    """Return a process's descendants, the flow run's process among them."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(ppid) for pid, ppid in (line.split() for line in listed.splitlines())}
    below = [pid for pid, its_parent in parents.items() if its_parent == parent]
    return below + [deeper for pid in below for deeper in _processes_below(pid)]


def _worker_pid(folder: Path) -> int:
    """Return the worker that was started in a folder."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    mine = [int(line.split()[0]) for line in listed.splitlines() if "prefect worker start" in line]
    (found,) = [pid for pid in mine if Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()]
    return found


def prefect(environment: dict[str, str], *arguments: str, cwd: Path | None = None) -> str:
    """Run a command of Prefect's, which must succeed, and return its output."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    ran = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def copy_deployable(folder: Path) -> Path:
    """Copy what is deployed, so that nothing can be written into the repository."""
    for part in ("flows", "deployments"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", folder, follow_symlinks=False)
    return folder


def deploy_all(tree: Path, environment: dict[str, str]) -> str:
    """Deploy as `deployments/prefect.yaml` says, and return the output."""
    return prefect(environment, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml", cwd=tree)


@dataclass(frozen=True)
class DeployedTree:
    """What is deployed on a Prefect server of its own, and the folder that it was deployed from."""

    environment: dict[str, str]
    tree: Path

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with (
            temporary_settings({PREFECT_API_URL: self.environment["PREFECT_API_URL"]}),
            get_client(sync_client=True) as client,
        ):
            yield client


@contextmanager
def running_deployments(tree: Path, home: Path) -> Iterator[dict[str, str]]:
    """Run a server with a work pool and everything in `tree` deployed; yield the environment to reach it by."""
    with running_server(home) as api_url:
        environment = environment_for(api_url, home)
        prefect(environment, "work-pool", "create", POOL, "--type", "process")
        deploy_all(tree, environment)
        yield environment


def wait_until(happened: Callable[[], bool], what: str, *logs: Path) -> None:
    """Wait until it has happened; fail with the ends of the logs if that takes too long."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            ends = "\n".join(f"{log.name}: …{log.read_text(errors='replace')[-4000:]}" for log in logs)
            raise AssertionError(f"timed out waiting until {what}\n{ends}")
        time.sleep(0.2)


@contextmanager
def _running(
    arguments: list[str],
    environment: dict[str, str],
    log: Path,
    *,
    cwd: Path | None = None,
    python: str = sys.executable,
) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [python, "-m", "prefect", *arguments],
            env=environment,
            cwd=cwd,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, gently first."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a port that nothing listens on, and that the system gives to nobody who asks for any port."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def _responds(url: str, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "the Prefect server ended while starting"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.read() == b"true")
    except OSError:
        return False
