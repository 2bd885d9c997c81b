"""The caller of a run gets its result, without the flow's files: through a worker, from the server's storage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.filesystems import LocalFileSystem
from prefect.serializers import JSONSerializer, PickleSerializer
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr

from prefect_veogen import Animated, Asset, CampaignItem, CampaignReport, Swept
from prefect_veogen import errors as veogen_errors
from prefect_veogen.campaign.items import Step
from prefect_veogen.cli import main
from prefect_veogen.errors import BudgetExceeded, InvalidManifest, InvalidRequest, Problem, VeogenError
from prefect_veogen.ledger import State
from prefect_veogen.models import Kind
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.campaign import ItemStatus

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 200.0
PICTURE = Asset(
    uri="s3://bucket/assets/p.png",
    sha256="0" * 64,
    size=3,
    content_type="image/png",
    generation_id="g",
    price_usd=Decimal("0.020"),
)
RESULTS = [
    Animated(image=PICTURE, video=PICTURE),
    CampaignReport.of(
        "spring",
        (
            CampaignItem("a", ItemStatus.OK, (Step(Kind.IMAGE, "v1-a", PICTURE, "g", Decimal("0.10")),)),
            CampaignItem("b", ItemStatus.UNSETTLED, (Step(Kind.IMAGE, "v1-b", None, "h", Decimal("0.3")),), "why"),
        ),
        "s3://bucket/campaigns/spring/results.jsonl",
    ),
    [Swept("key", State.SENDING, State.STORED, "found")],
]

# What a caller of a deployment runs: it has the package, and neither the flows nor the worker's home.
CALLER = """
import asyncio, json, sys
sys.modules["flows"] = None
from prefect.deployments import run_deployment
name, parameters = sys.argv[1], json.loads(sys.argv[2])
async def called():
    run = await run_deployment(name, parameters=parameters, timeout=150, poll_interval=0.5)
    return run.name, await run.state.aresult()
run_name, result = asyncio.run(called())
"""
PAIR = """
print(json.dumps([run_name, result.image.uri, result.image.sha256, result.video.uri, str(result.video.price_usd)]))
"""
REPORT = """
print(json.dumps([run_name, [[item.id, item.status.value, item.asset.uri] for item in result.items], str(result)]))
"""
SWEPT = """
print(json.dumps([run_name, [item.note for item in result]]))
"""


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("serializer", [JSONSerializer(), PickleSerializer()], ids=lambda serializer: serializer.type)
@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_result_is_the_same_after_it_was_stored(serializer: Any, result: Any) -> None:
    again = serializer.loads(serializer.dumps(result))
    assert (type(again), again, repr(again)) == (type(result), result, repr(result))


def test_a_stored_result_names_classes_by_where_users_import_them_from() -> None:
    stored = [json.loads(JSONSerializer().dumps(result)) for result in RESULTS]
    classes = [item["__class__"] for item in (stored[0], stored[1], *stored[2])]
    assert classes == ["prefect_veogen.Animated", "prefect_veogen.CampaignReport", "prefect_veogen.Swept"]


ERRORS = [
    BudgetExceeded("too much", wanted_usd=Decimal(3), next_step="Ask for less."),
    InvalidRequest([Problem("prompt", "x", "is wrong")]),
    InvalidManifest(["row 1: is wrong"]),
    *(
        kind("it went wrong")
        for kind in vars(veogen_errors).values()
        if isinstance(kind, type) and issubclass(kind, VeogenError)
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failed_runs_error_is_the_same_for_a_caller_elsewhere(error: VeogenError) -> None:
    again = JSONSerializer().loads(JSONSerializer().dumps(error))
    assert (type(again), str(again), again.next_step) == (type(error), str(error), error.next_step)


# ---------------------------------------------------------------- where it is kept


@pytest.fixture
def results(prefect_server: None, tmp_path: Path) -> Iterator[Path]:
    """A folder, saved as the block `local-file-system/results`; the server's default is as before afterwards."""
    LocalFileSystem(basepath=str(tmp_path / "results")).save("results", overwrite=True)
    with get_client(sync_client=True) as client:
        client.clear_server_default_result_storage()
        yield tmp_path / "results"
        client.clear_server_default_result_storage()


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_HOME": str(home),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }


@pytest.fixture
def worker(prefect_server: None, sandbox: Sandbox, tmp_path: Path) -> Iterator[None]:
    """A process worker for the shipped deployments, which lie in a folder of their own."""
    tree, home = tmp_path / "tree", environment(tmp_path / "worker")
    for folder in ("flows", "deployments"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="veogen", type="process"), overwrite=True)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    deploy = [*prefect, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    subprocess.run(deploy, cwd=tree, env=home, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    start = [*prefect, "worker", "start", "--pool", "veogen"]
    running = subprocess.Popen(start, cwd=tmp_path, env=home, start_new_session=True)
    yield
    os.killpg(running.pid, signal.SIGKILL)  # nothing runs any more, and it takes its time to leave
    running.wait(PATIENCE_SECONDS)


def called(tmp_path: Path, shown: str, deployment: str, **parameters: Any) -> Any:
    """Return what a program elsewhere makes of the result of a deployment that it runs."""
    (tmp_path / "caller").mkdir(exist_ok=True)
    command = [sys.executable, "-c", CALLER + shown, deployment, json.dumps(parameters)]
    mine = {name: value for name, value in environment(tmp_path / "caller").items() if not name.startswith("VEOGEN_")}
    ran = subprocess.run(
        command,
        cwd=tmp_path / "caller",
        env=mine,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(600)
def test_a_caller_without_the_flows_gets_what_the_workers_runs_return(
    worker: None, results: Path, sandbox: Sandbox, tmp_path: Path
) -> None:
    prompts = {"image_prompt": "a lighthouse", "motion_prompt": "the beam turns"}
    name, image, digest, video, price = called(tmp_path, PAIR, "image-then-animate/by-hand", **prompts)
    assert name == "a lighthouse → the beam turns (take 1)"
    assert hashlib.sha256(Path(image.removeprefix("file://")).read_bytes()).hexdigest() == digest
    assert (video.endswith(".mp4"), Decimal(price)) == (True, Decimal("0.30"))
    assert main(["setup", "--results", "local-file-system/results"]) == 0
    rows = [{"id": "shell", "model": "gpt-4o-image", "prompt": "a shell"}]
    name, items, printed = called(tmp_path, REPORT, "campaign/from-manifest", manifest=rows, name="shells")
    assert (name, items[0][:2]) == ("shells (take 1)", ["shell", "ok"])
    assert "1 ok; $0.02" in printed
    name, swept = called(tmp_path, SWEPT, "sweep/hourly")
    assert (name.startswith("sweep of 20"), swept) == (True, [])
    empty, report = sorted((path.read_bytes() for path in results.rglob("*") if path.is_file()), key=len)
    assert json.loads(empty) == []
    assert json.loads(report)["__class__"] == "prefect_veogen.CampaignReport"
    assert sandbox.token.encode() not in empty + report


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def setup(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["setup", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_it


@pytest.mark.server
def test_setup_makes_a_saved_block_the_servers_default_for_results_and_says_so(results: Path, setup: Run) -> None:
    assert "each machine stores its own" in setup()[1]
    code, out, _ = setup("--results", "local-file-system/results")
    assert code == 0
    assert "local-file-system/results as the default result storage of all its flows" in out
    assert json.loads(setup("--json")[1])["results"] == "local-file-system/results"
    LocalFileSystem(basepath=str(results)).save("others", overwrite=True)
    assert "instead of local-file-system/results" in setup("--results", "local-file-system/others")[1]
    assert asyncio.run(default()) is not None


async def default() -> Any:
    async with get_client() as client:
        return (await client.read_server_default_result_storage()).default_result_storage_block_id


@pytest.mark.server
@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("s3-bucket/nowhere", "The Prefect server has no block s3-bucket/nowhere"),
        ("secret/word", "secret/word can't store results: Secret is not a file system"),
        ("results", "'results' is not a valid name of a block"),
        ("local-file-system/", "'local-file-system/' is not a valid name of a block"),
    ],
)
def test_setup_refuses_a_block_that_cannot_store_results(results: Path, setup: Run, block: str, said: str) -> None:
    Secret(value=SecretStr("x")).save("word", overwrite=True)
    code, out, err = setup("--results", block)
    assert (code, out) == (1, "")
    assert said in err
    assert "What to do: Nothing was changed." in err
    assert asyncio.run(default()) is None
