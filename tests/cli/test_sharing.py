"""On the command line, too, requests acquire the shared limit; without a server none waits for Prefect."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.settings import PREFECT_API_URL

from prefect_veogen.cli.sharing import may_have_server
from prefect_veogen.errors import UnknownSubmission
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session

ROOT = Path(__file__).parents[2]
FOX = GenerationRequest(model="gpt-4o-image", prompt="a red fox")
COMMANDS = (["models"], ["balance"], ["plan", "gpt-4o-image", "x"], ["sweep"], ["reconcile"])


@pytest.fixture(autouse=True)
def _empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("PREFECT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


async def ran(*words: str, **environment: str) -> tuple[int | None, str]:
    """Run a command in a process of its own; return its exit code and what it complained of."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prefect_veogen.cli", *words),
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, err = await command.communicate()
    return command.returncode, err.decode()


async def by_hand(limit: int, decay: float) -> str:
    name = os.environ["VEOGEN_REQUESTS_LIMIT_NAME"]
    async with get_client() as client:
        made = GlobalConcurrencyLimitCreate(name=name, limit=limit, slot_decay_per_second=decay)
        await client.create_global_concurrency_limit(made)
    return str(PREFECT_API_URL.value())


async def limit_now() -> GlobalConcurrencyLimitResponse:
    async with get_client() as client:
        return await client.read_global_concurrency_limit_by_name(os.environ["VEOGEN_REQUESTS_LIMIT_NAME"])


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
async def test_each_request_of_each_command_acquires_the_limit(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("lost-answer-before-charge")
    with pytest.raises(UnknownSubmission):
        await on_io(buy(open_session(), FOX))
    before = len(sandbox.requests)
    server = await by_hand(limit=500, decay=0.001)
    # One after the other: a server from which a busy machine gets no response within seconds is given up.
    ended = [await ran(*words, PREFECT_API_URL=server) for words in COMMANDS]
    assert [err for _, err in ended] == [""] * len(COMMANDS)
    assert len(sandbox.requests) - before >= len(COMMANDS)
    assert (await limit_now()).active_slots == len(sandbox.requests) - before


@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
async def test_a_low_limit_paces_a_command(sandbox: Sandbox, tmp_path: Path) -> None:
    server = await by_hand(limit=1, decay=1.0)
    rows = "".join(f"{model},{model},x\n" for model in ("gpt-4o-image", "gpt-image-2", "nano-banana"))
    (tmp_path / "rows.csv").write_text(f"id,model,prompt\n{rows}")
    await ran("plan", "rows.csv", PREFECT_API_URL=server)
    moments = [record.at.timestamp() for record in sandbox.requests]
    gaps = len(moments) - 1
    assert gaps >= 3
    # A second for each, but for what the first request was late by: it takes the longest from the slot to the service.
    assert moments[-1] - moments[0] > gaps - 0.7


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_without_a_server_a_command_does_without_prefect(sandbox: Sandbox, words: list[str]) -> None:
    Path(os.environ["VEOGEN_STORE"]).mkdir()
    program = "import sys; from prefect_veogen.cli import main; print(main(sys.argv[1:]), 'prefect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert len(sandbox.requests) >= (words != ["sweep"])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".prefect/profiles.toml", 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:4200/api"\n'),
        ("home/profiles.toml", 'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://127.0.0.1:4200/api"\n'),
        ("prefect.toml", '[api]\nurl = "http://127.0.0.1:4200/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://127.0.0.1:4200/api"\n'),
        (".env", "PREFECT_API_URL=http://127.0.0.1:4200/api\n"),
    ],
)
def test_a_server_is_seen_wherever_prefect_would_see_it(
    file: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file.startswith("home/"):
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    assert not may_have_server()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert may_have_server()
    asking = "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value())"
    printed = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, check=True)
    assert printed.stdout == "http://127.0.0.1:4200/api\n"


def test_the_files_of_a_user_without_a_server_name_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect/profiles.toml").write_text('active = "ephemeral"\n[profiles.ephemeral]\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "an api"\ndependencies = ["prefect"]\n')
    assert not may_have_server()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert may_have_server()
