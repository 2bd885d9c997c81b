"""The processes a benchmark needs, each started on a free port of this machine and always stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
# A developer's own accounts and servers must not affect a measurement.
_FOREIGN = ("VEOGEN_", "AWS_", "PREFECT_", "PYTHONPATH")


@dataclass(frozen=True)
class SandboxProcess:
    """A sandbox in a process of its own, read and steered through its control routes."""

    environment: Mapping[str, str]
    control_url: str

    def get(self, what: str) -> dict[str, Any]:
        response: dict[str, Any] = fetch(f"{self.control_url}/{what}")
        return response

    def arm(self, name: str, **options: Any) -> None:
        fetch(f"{self.control_url}/faults", {"name": name, **options})


def plain_environment(*additions: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without the developer's own settings, and with `additions`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    for addition in additions:
        environment |= addition
    return environment


def fetch(url: str, body: Mapping[str, Any] | None = None, *, token: str = "") -> Any:
    """Fetch JSON from a server on this machine; a body makes it a POST."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@contextmanager
def sandbox(speed: float, *options: str) -> Iterator[SandboxProcess]:
    """Run a sandbox whose clock is `speed` times as fast."""
    command = [sys.executable, "-m", "prefect_veogen.sandbox", "--port", "0", "--speed", f"{speed:g}", *options]
    command += ["--balance", "1000000"]
    with _running(command, plain_environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        if not base_url:
            raise RuntimeError("the sandbox did not start")
        exports = (process.stdout.readline().removeprefix("export ").strip().partition("=") for _ in range(2))
        yield SandboxProcess({name: value for name, _, value in exports}, base_url.replace("/api/v1", "/_sandbox"))


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server with an empty database below `home`; yield the environment that points at it."""
    port = _free_port()
    mine = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"]
    with (home / "server.log").open("w") as log, _running(command, plain_environment(mine), stdout=log):
        _wait_for_response(f"http://127.0.0.1:{port}/api/health")
        yield mine | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}


@contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, str]]:
    """Run an S3 server with one bucket; yield the environment with which boto3 finds it."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, plain_environment(), stdout=subprocess.DEVNULL):
        _wait_for_response(f"http://127.0.0.1:{port}/moto-api/data.json")
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")).close()
        yield {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def empty_bucket(bucket: str, environment: Mapping[str, str]) -> None:
    """Empty the S3 server, so that what one measurement stored does not burden the next."""
    origin = environment["AWS_ENDPOINT_URL_S3"]
    for link, method in ((f"{origin}/moto-api/reset", "POST"), (f"{origin}/{bucket}", "PUT")):
        urllib.request.urlopen(urllib.request.Request(link, method=method)).close()


@contextmanager
def child(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Child]:
    """Run `python -m module`; its output goes to a file."""
    with log.open("a") as output:
        command = [sys.executable, "-m", module, *arguments]
        with _running(command, environment, stdout=output, stderr=subprocess.STDOUT) as process:
            yield Child(process, log)


@dataclass(frozen=True)
class Child:
    """A process that measures itself."""

    process: subprocess.Popen[str]
    log: Path

    def finish(self, seconds: float = 7200) -> None:
        """Wait for it to succeed.

        Raises:
            RuntimeError: it failed; the message has the end of its log.
        """
        if self.process.wait(seconds):
            ending = "\n".join(self.log.read_text().splitlines()[-30:])
            raise RuntimeError(f"{self.process.args!r} failed:\n{ending}")

    def kill(self) -> None:
        """Kill it, as a lost machine would be."""
        self.process.kill()
        self.process.wait()


def measure_in_child(module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Any:
    """Return what a child process wrote into its result file, whose path is its last argument."""
    result = folder / "result.json"
    with child(module, [*arguments, str(result)], environment, folder / "child.log") as running:
        running.finish()
    return json.loads(result.read_text())


@contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], *, stdout: Any, stderr: Any = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[str]]:
    # A session of its own: a server's children are stopped with it, and Ctrl-C reaches only us.
    process = subprocess.Popen(
        command, env=dict(environment), cwd=ROOT, stdout=stdout, stderr=stderr, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        _stop(process)
        if process.stdout is not None:
            process.stdout.close()


def _stop(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_response(url: str) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up_at:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"nothing responds at {url}")
