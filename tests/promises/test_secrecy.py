"""The token of a block is written nowhere: deployed and run by a worker, then searched for byte by byte."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL
from pydantic import SecretStr

from prefect_veogen import VeogenCredentials
from prefect_veogen.sandbox import Sandbox
from tests.support.environments import fast_settings

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
FILE = "deployments/prefect.yaml"
TOKEN = "vg-7Qx9-the-secret-of-this-test-Zk31"
PROMPTS = {"image_prompt": "a lighthouse nobody else asks for", "motion_prompt": "the beam turns"}
ROWS = [{"id": "hero", "model": "gpt-4o-image", "prompt": "a shell on the beach"}]
PATIENCE_SECONDS = 120.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for all that is written: the flows' copy, the worker's log, results and the store."""
    for folder in ("flows", "deployments"):
        shutil.copytree(ROOT / folder, tmp_path / "tree" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    """Return what a deployer and a worker know: not the token, and every program logs all that it can."""
    chatty = {f"PREFECT_LOGGING_{name}LEVEL": "DEBUG" for name in ("", "ROOT_", "SERVER_", "INTERNAL_")}
    return {
        **os.environ,
        **fast_settings(),
        **chatty,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "prefect_veogen",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        "PREFECT_LOCAL_STORAGE_PATH": str(place / "results"),
        "PYTHONPATH": str(ROOT),
        "VEOGEN_STORE": str(place / "store"),
        "NO_COLOR": "1",
    }


def deploy(place: Path) -> None:
    """Deploy the shipped flows; what the command says goes into a file."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", FILE]
    with (place / "deploy.log").open("wb") as log:
        subprocess.run(
            command, cwd=place / "tree", env=environment(place), stdout=log, stderr=log, timeout=200, check=True
        )


@contextmanager
def worker(place: Path) -> Iterator[None]:
    """A process worker, whose output and runs' output go into a file."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "veogen", "--type", "process"]
    with (place / "worker.log").open("wb") as log:
        running = subprocess.Popen(
            command, cwd=place, env=environment(place), stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            os.killpg(running.pid, signal.SIGTERM)
            running.wait(PATIENCE_SECONDS)


async def save_block(sandbox: Sandbox) -> str:
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="veogen", type="process"), overwrite=True)
    return str(await VeogenCredentials(api_token=SecretStr(TOKEN), base_url=sandbox.base_url).asave("secrecy", True))


async def run(name: str, **parameters: Any) -> FlowRun:
    ran: Any = run_deployment(name, parameters=parameters, timeout=PATIENCE_SECONDS, poll_interval=0.5)
    found: FlowRun = await ran
    return found


def database() -> Iterator[tuple[str, bytes]]:
    """Give every value of every table of the Prefect server, with where it stands."""
    path = str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
    with closing(sqlite3.connect(path)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            cursor = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                for column, value in zip(columns, row, strict=True):
                    yield f"{table}.{column}", value if isinstance(value, bytes) else str(value).encode()


def files(place: Path) -> Iterator[tuple[str, bytes]]:
    for path in place.rglob("*"):
        if path.is_file():
            yield path.relative_to(place).as_posix(), path.read_bytes()


def forms_of(text: str) -> list[bytes]:
    """Return a text as it may be written: as it is, and inside of base64 (Prefect's results) at each alignment."""
    raw = text.encode()
    shifted = (base64.b64encode(b"\0" * shift + raw) for shift in range(3))
    return [raw, *(encoded[4:-4] for encoded in shifted)]


def places_of(text: str, place: Path) -> set[str]:
    """Return where a text stands, in the database and in the files."""
    forms = forms_of(text)
    return {where for where, value in [*database(), *files(place)] if any(form in value for form in forms)}


def wait_until_recorded(text: str, table: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(where.startswith(table) and text.encode() in value for where, value in database()):
        assert time.monotonic() < deadline, f"{text} does not arrive in {table}"
        time.sleep(0.5)


@pytest.mark.timeout(600)
async def test_after_deploying_and_running_with_a_block_its_token_is_nowhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_REQUESTS_LIMIT_NAME", "none-for-secrecy")
    with Sandbox(speed=100, tiny_media=True, requests_per_minute=None, token=TOKEN) as sandbox:
        document = await save_block(sandbox)
        deploy(place)
        with worker(place):
            by_name = await run("image-then-animate/by-hand", **PROMPTS, credentials="secrecy")
            by_reference = {"$ref": {"block_document_id": document}}
            runs = [
                by_name,
                await run("campaign/from-manifest", manifest=ROWS, credentials=by_reference),
                await run("sweep/hourly", credentials="veogen-credentials/secrecy"),
            ]
        assert [one.state and one.state.name for one in runs] == ["Completed"] * 3
        assert len(sandbox.bill) == 3
    wait_until_recorded("sweep", "task_run.")
    assert places_of(TOKEN, place) == set()
    # The search finds what is there: in the parameters and the logs, in results and receipts, in the worker's output.
    found = {name.partition("/")[0] for name in places_of(PROMPTS["image_prompt"], place)}
    assert {"flow_run.parameters", "store"} <= found
    everywhere = places_of("image-then-animate", place)
    assert {"worker.log", "deploy.log", "log.message", "events.payload"} <= everywhere
    # A result names the asset, whose name is made of the prompt's words.
    assert any(where.startswith("results/") for where in places_of("a-lighthouse-nobody-else-asks-for", place))
    assert f"{sandbox.base_url}/generations" in (place / "worker.log").read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "template",
    [
        '"{{ prefect.blocks.veogen-credentials.secrecy }}"',
        '{api_token: "{{ prefect.blocks.veogen-credentials.secrecy.api_token }}"}',
    ],
    ids=["block", "token"],
)
async def test_a_block_by_template_is_refused_by_the_run_since_its_token_is_known(
    template: str, place: Path, sandbox: Sandbox
) -> None:
    await save_block(sandbox)
    path = place / "tree" / FILE
    text = path.read_text()
    path.write_text(text.replace("    parameters:\n", f"    parameters:\n      credentials: {template}\n"))
    deploy(place)
    async with get_client() as client:
        deployment = await client.read_deployment_by_name("image-then-animate/daily")
    assert TOKEN in str(deployment.parameters)
    with worker(place):
        refused = await run("image-then-animate/daily", take=1)
    assert refused.state is not None
    assert "The token is in plain text" in str(refused.state.message)
    assert len(sandbox.bill) == 0
    assert not (place / "store").exists()
