"""The sandbox starts, stops and frees its ports; importing it is cheap."""

from __future__ import annotations

import ast
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.prefect_processes import free_port
from tests.support.sandbox_client import IMAGE

PACKAGE = Path(__file__).parents[2] / "prefect_veogen" / "sandbox"


def is_listening(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((str(address.hostname), int(address.port or 0))) == 0


def test_stopping_frees_the_ports_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with Sandbox() as sandbox:
        assert is_listening(sandbox.base_url)
        assert is_listening(sandbox.media_url)
        assert any(thread.name == "veogen-sandbox" for thread in threading.enumerate())
    assert not is_listening(sandbox.base_url)
    assert not is_listening(sandbox.media_url)
    assert set(threading.enumerate()) <= before


def test_stopping_does_not_wait_for_slow_responses(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("slow-answer", seconds=3600)
    outcome: queue.Queue[Exception] = queue.Queue()

    def ask() -> None:
        try:
            api.post("/generations", json=IMAGE, timeout=60)
        except httpx.HTTPError as error:
            outcome.put(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not len(sandbox.bill):
        pass
    sandbox.stop()
    asking.join(30)
    assert isinstance(outcome.get_nowait(), httpx.TransportError)


def test_a_sandbox_can_be_stopped_twice_and_started_again() -> None:
    sandbox = Sandbox().start()
    with pytest.raises(RuntimeError, match="running already"):
        sandbox.start()
    sandbox.stop()
    sandbox.stop()
    with sandbox:
        assert httpx.get(f"{sandbox.base_url}/balance").status_code == 401


def test_a_chosen_port_is_used_and_a_taken_one_is_an_error() -> None:
    port = free_port()
    with Sandbox(port) as sandbox:
        assert sandbox.base_url == f"http://127.0.0.1:{port}/api/v1"
        with pytest.raises(OSError, match="in use"):
            Sandbox(port).start()


def test_media_come_from_another_origin_than_the_api(sandbox: Sandbox) -> None:
    assert urlsplit(sandbox.media_url).port != urlsplit(sandbox.base_url).port
    assert {urlsplit(url).hostname for url in (sandbox.media_url, sandbox.base_url)} == {"127.0.0.1"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add(str(node.module))
    return found


def test_the_sandbox_needs_one_web_framework_and_nothing_of_the_package() -> None:
    allowed = {"starlette", "uvicorn", "av", "PIL", "pytest"} | set(sys.stdlib_module_names)
    for path in PACKAGE.glob("*.py"):
        for name in imports_of(path):
            ours = name.startswith("prefect_veogen.sandbox")
            assert ours or name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_importing_the_sandbox_imports_no_server_and_no_media_library() -> None:
    # An empty parent package, because what the real one imports is not the sandbox's doing.
    program = f"""
import sys, types
parent = types.ModuleType("prefect_veogen")
parent.__path__ = [{str(PACKAGE.parent)!r}]
sys.modules["prefect_veogen"] = parent
import prefect_veogen.sandbox, prefect_veogen.sandbox.__main__
print(sorted({{"starlette", "uvicorn", "av", "PIL"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
