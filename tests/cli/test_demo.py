"""`demo`: the whole chain on the sandbox, which leaves two files and no process."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.support.commands import Run, process
from tests.support.servers import Reply, Request, serving


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_buys_in_the_sandbox_and_leaves_a_picture_a_clip_and_no_process(tmp_path: Path) -> None:
    (tmp_path / "veogen-demo" / "run-1").mkdir(parents=True)
    mark = uuid.uuid4().hex
    with _real_service() as (service, seen), process("demo", "--keep", CLI_TEST_MARK=mark, **service) as demo:
        printed = _read_until(demo, "What the sandbox has seen")
        balance = subprocess.run(
            [sys.executable, "-m", "prefect_veogen.cli", "balance"],
            env={
                **os.environ,
                **dict(re.findall(r"export (VEOGEN_\w+)=(http\S+|sandbox-token)$", printed, re.MULTILINE)),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        assert [line for line in _alive(mark) if "prefect_veogen.cli" not in line] == []
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=60)
    assert (demo.returncode, err, seen) == (0, "", [])
    assert "2 purchases, $0.32 of play money" in printed
    assert balance == "The account holds $99.68 and has spent $0.32.\n"
    assert "\x1b" not in printed
    picture, clip = (
        tmp_path / path for path in re.findall(r"veogen-demo/run-2/assets/\S+$", printed, re.MULTILINE)[-2:]
    )
    assert Image.open(io.BytesIO(picture.read_bytes())).size[0] >= 1024
    with av.open(str(clip)) as container:
        assert container.streams.video[0].width >= 1280
        assert sum(1 for _ in container.decode(video=0)) > 24
    assert list((tmp_path / "veogen-demo" / "run-1").iterdir()) == []
    assert _alive(mark) == []


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_demo_that_is_stopped_leaves_no_server_behind(number: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    with process("demo", CLI_TEST_MARK=mark) as demo:
        _until(lambda: any("uvicorn" in line for line in _alive(mark)))
        demo.send_signal(number)
        _, err = demo.communicate(timeout=60)
    _until(lambda: _alive(mark) == [], 20)
    assert demo.returncode == (-9 if number == signal.SIGKILL else 130)
    assert number == signal.SIGKILL or "nothing is still running" in err


@pytest.mark.parametrize("store", ["s3://bucket/prefix", "a-file", "a-file/below", "", "~nobody-of-that-name", "a\0b"])
def test_the_demo_refuses_a_store_it_cannot_write(run: Run, tmp_path: Path, store: str) -> None:
    (tmp_path / "a-file").touch()
    code, _, err = run("demo", "--store", store)
    assert code == 1
    assert "--store" in err


@contextmanager
def _real_service() -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment of a user with an account and a Prefect server, and what either of them was asked."""
    seen: list[str] = []

    def respond(request: Request) -> Reply:
        seen.append(request.path)
        return Reply(500)

    with serving(respond) as url:
        yield (
            {
                "VEOGEN_BASE_URL": f"{url}/api/v1",
                "VEOGEN_API_TOKEN": "real-money",
                "VEOGEN_BUDGET_USD": "0",
                "PREFECT_API_URL": f"{url}/api",
                "HTTP_PROXY": url,
            },
            seen,
        )


def _read_until(command: subprocess.Popen[str], text: str) -> str:
    assert command.stdout is not None
    printed = ""
    for line in command.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(f"it ended without {text!r}:\n{printed}{command.stderr.read() if command.stderr else ''}")


def _alive(mark: str) -> list[str]:
    """Return the command lines of all processes which inherited the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
