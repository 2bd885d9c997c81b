"""The command `python -m prefect_veogen.sandbox`."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from prefect_veogen.sandbox import FAULTS, Sandbox
from prefect_veogen.sandbox.__main__ import main

ROOT = Path(__file__).parents[2]


def is_listening(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((str(address.hostname), int(address.port or 0))) == 0


def start_command(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prefect_veogen.sandbox", "--port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def read_first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def stop_command(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    code = process.wait(timeout=20)
    with process.stdout or nullcontext() as output:
        return code, output.read() if output else ""


def test_the_command_prints_its_address_first_and_ends_cleanly() -> None:
    options = ("--balance", "0.5", "--token", "t", "--speed", "0", "--requests-per-minute", "2")
    processes = {number: start_command(*options) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, process in processes.items():
        base_url = read_first_line(process)
        with httpx.Client(base_url=base_url, headers={"Authorization": "Bearer t"}) as api:
            assert api.get("/balance").json() == {"remaining_balance": 0.5, "used_balance": 0.0}
            assert [api.get("/balance").status_code for _ in range(2)] == [200, 429]
        code, rest = stop_command(process, number)
        assert code == 0
        assert rest.startswith(f"export VEOGEN_BASE_URL={base_url}\nexport VEOGEN_API_TOKEN=t\n")
        assert not is_listening(base_url)


def test_the_command_explains_a_taken_port(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    port = urlsplit(sandbox.base_url).port
    assert main(["--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert "give another --port, or 0" in err


@pytest.mark.parametrize("words", ["--port 99999", "--speed inf", "--balance nan", "--requests-per-minute -5"])
def test_the_command_refuses_invalid_options(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert words.split()[1].lstrip("-") in capsys.readouterr().err.lower().replace("infinity", "inf")


def test_the_command_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FAULTS)
