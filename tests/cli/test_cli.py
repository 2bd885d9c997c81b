"""The command `prefect-veogen`, as a person and as a script meet it: real processes, HTTP and Prefect server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import av
import httpx
import pytest
from PIL import Image
from prefect.client.orchestration import get_client

from prefect_veogen.cli import function_of, main
from prefect_veogen.cli.arguments import parser
from prefect_veogen.errors import UnknownSubmission
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import Purchase, buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.servers import Reply, Request, relayed, serving

COMMANDS = ("demo", "models", "balance", "plan", "receipts", "sweep", "reconcile", "setup")
FOX = GenerationRequest(model="gpt-4o-image", prompt="a red fox")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process and return its exit code, stdout and stderr."""

    def run_it(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as wrong_usage:
            code = int(wrong_usage.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run_it


def bearer(sandbox: Sandbox) -> dict[str, str]:
    return {"Authorization": f"Bearer {sandbox.token}"}


def process(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, without a terminal and with nobody's home."""
    home = Path.cwd() / "home"
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "prefect_veogen.cli", *words],
        env={**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def bought(request: GenerationRequest = FOX) -> Purchase:
    return asyncio.run(on_io(buy(open_session(), request)))


def lost(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, request: GenerationRequest = FOX) -> str:
    """Leave a purchase behind whose answer was lost and which the service doesn't list; return its receipt's key."""
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("lost-answer-before-charge")
    with pytest.raises(UnknownSubmission) as caught:
        bought(request)
    assert caught.value.receipt is not None
    return caught.value.receipt


# ---------------------------------------------------------------- help and usage


def test_every_command_has_a_function_of_its_own() -> None:
    listed = set(re.findall(r"^    (\w+) {2,}", parser().format_help(), re.MULTILINE))
    assert listed == {*COMMANDS, "sandbox"}
    assert [function_of(command).__name__ for command in COMMANDS] == list(COMMANDS)


def test_a_command_without_a_function_is_an_error_and_runs_no_other() -> None:
    with pytest.raises(KeyError, match="forgotten"):
        function_of("forgotten")


@pytest.mark.parametrize("words", [[], *([command] for command in (*COMMANDS, "sandbox"))], ids=str)
def test_help_needs_nothing_and_names_what_it_helps_with(run: Run, words: list[str]) -> None:
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["usage: prefect-veogen", *words]))
    assert "sandbox" in words or out.count("prefect-veogen") >= 2  # the usage, and an example


def test_the_console_script_is_installed_and_starts_without_a_home() -> None:
    script = Path(sys.executable).with_name("prefect-veogen")
    done = subprocess.run(
        [script, "--version"], env={"HOME": str(Path.cwd())}, capture_output=True, text=True, timeout=60, check=True
    )
    assert re.fullmatch(r"prefect-veogen \d+\.\d+\.\d+\S*\n", done.stdout)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["plan"],
        ["plan", "m", "p", "--duration", "long"],
        ["plan", "rows.csv", "--budget-usd", "much"],
        ["reconcile", "--since", "yesterday"],
        ["reconcile", "--since", "0001-01-01"],
        ["reconcile", "--since", "9999-01-01"],
        ["receipts", "adopt", "key"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_says_why_on_stderr(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "usage: prefect-veogen" in err
    assert "error:" in err


# ---------------------------------------------------------------- models and balance


def test_models_lists_all_with_what_one_generation_costs(sandbox: Sandbox, run: Run) -> None:
    code, out, _ = run("models")
    rows = {line.split()[0]: line for line in out.splitlines()[1:-2]}
    assert code == 0
    assert len(rows) == 13
    assert "$0.30 to $0.90" in rows["veo-3.1-fast"]
    assert re.search(r"image +\$0\.02$", rows["gpt-4o-image"])
    assert "$0.18 to $0.90  by the second, 6-30 s" in rows["grok-video-1"]


def test_models_reads_every_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request) -> Reply:
        page = int(request.path.partition("page=")[2] or 1)
        model = {"slug": f"model-{page}", "type": "image", "price_usd": "0.10"}
        return Reply(body=json.dumps({"data": [model], "total": 3, "per_page": 1}).encode())

    monkeypatch.setenv("VEOGEN_API_TOKEN", "t")
    with serving(answer) as url:
        code, out, _ = run("models", "--json", "--base-url", url)
    assert code == 0
    assert [model["slug"] for model in json.loads(out)] == ["model-1", "model-2", "model-3"]


def test_one_model_is_shown_with_the_price_of_every_resolution(sandbox: Sandbox, run: Run) -> None:
    _, out, _ = run("models", "veo-3.1-fast")
    assert re.search(r"^4k +\$0\.90$", out, re.MULTILINE)
    assert "frame, ingredient" in out
    _, out, _ = run("models", "seedance-2.0")
    assert re.search(r"^480p +\$0\.1321 +\$0\.5284 +\$1\.9815$", out, re.MULTILINE)


def test_prices_in_json_are_decimal_strings(sandbox: Sandbox, run: Run) -> None:
    _, out, err = run("models", "seedance-2.0", "--json")
    told = json.loads(out)
    assert (told["priced_per"], err) == ("second", "")
    assert told["price_usd_by_resolution"] == {"480p": "0.1321", "720p": "0.284015"}


def test_an_unknown_model_is_an_error_with_a_next_step(sandbox: Sandbox, run: Run) -> None:
    code, out, err = run("models", "veo-99")
    assert (code, out) == (1, "")
    assert err.startswith("Error: The service does not know this model")
    assert "What to do: " in err


def test_balance_tells_what_is_held_and_spent(sandbox: Sandbox, run: Run) -> None:
    bought()
    assert run("balance") == (0, "The account holds $99.98 and has spent $0.02.\n", "")
    told = json.loads(run("balance", "--json")[1])
    assert {name: Decimal(amount) for name, amount in told.items()} == {
        "remaining_usd": Decimal("99.98"),
        "spent_usd": Decimal("0.02"),
    }


def test_a_balance_nobody_tells_is_an_error_and_not_zero(sandbox: Sandbox, run: Run) -> None:
    sandbox.fault("balance-500", times=None)
    code, out, err = run("balance", "--json")
    assert (code, out) == (1, "")
    assert "HTTP 500" in err


def test_without_a_token_it_says_how_to_get_one_or_do_without(run: Run) -> None:
    code, out, err = run("balance")
    assert (code, out) == (1, "")
    assert "VEOGEN_API_TOKEN" in err
    assert "prefect-veogen demo" in err


@pytest.mark.parametrize("words", [["models"], ["balance"], ["plan", "gpt-4o-image", "x"], ["sweep"], ["reconcile"]])
def test_a_refused_token_is_never_shown(run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    with Sandbox(token="the-right-one") as sandbox:
        monkeypatch.setenv("VEOGEN_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("VEOGEN_API_TOKEN", "sekrit-4711")
        Path("veogen-store").mkdir()
        code, out, err = run(*words)
    assert "sekrit" not in out + err
    assert words == ["sweep"] or (code == 1 and "refused the token" in err)


# ---------------------------------------------------------------- plan


def test_a_plan_prices_a_request_and_buys_nothing(sandbox: Sandbox, run: Run) -> None:
    code, out, _ = run("plan", "veo-3.1-fast", "waves [bold]at[/bold] night :wave:", "--resolution", "4k")
    assert code == 0
    assert "waves [bold]at[/bold] night :wave:  $0.90" in out
    assert "Total: $0.90" in out
    assert "Balance: $100.00" in out
    assert len(sandbox.bill) == 0


def test_a_plan_of_a_manifest_knows_what_is_bought_and_what_is_double(
    sandbox: Sandbox, run: Run, tmp_path: Path
) -> None:
    bought()
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "id,model,prompt,duration,motion_prompt\n"
        "a,gpt-4o-image,a red fox,,\n"
        "b,gpt-4o-image,a grey fox,,it runs\n"
        "c,gpt-4o-image,a grey fox,,\n"
        "d,grok-video-1,waves,6,\n"
    )
    code, out, _ = run("plan", str(rows), "--json")
    items = json.loads(out)["items"]
    assert code == 0
    assert [Decimal(item["usd"]) for item in items] == [0, Decimal("0.02"), Decimal("0.3"), 0, Decimal("0.18")]
    assert [item["already_bought"] for item in items] == [True, False, False, True, False]
    told = run("plan", str(rows))[1].splitlines()
    assert told[1].endswith("already bought")
    assert told[4].endswith("same as above")
    assert "Total: $0.50" in told


def test_a_plan_says_how_sure_it_is(sandbox: Sandbox, run: Run) -> None:
    _, out, _ = run("plan", "grok-video-1", "waves")
    assert "Total: at most $0.90" in out


def test_a_plan_that_would_be_refused_is_1_and_names_what_is_allowed(sandbox: Sandbox, run: Run) -> None:
    code, out, _ = run("plan", "gpt-4o-image", "a fox", "--aspect-ratio", "5:7")
    assert code == 1
    assert "aspect_ratio: gpt-4o-image does not offer this (got '5:7'); allowed: 16:9" in out
    assert "Correct the request" in out
    (item,) = json.loads(run("plan", "veo-99", "a fox", "--json")[1])["items"]
    assert "`prefect-veogen models`" in item["next_step"]


def test_a_plan_without_its_prompt_says_what_is_missing(sandbox: Sandbox, run: Run) -> None:
    code, out, err = run("plan", "gpt-4o-image")
    assert (code, out) == (1, "")
    assert "If it is a model: give a prompt, too." in err


def test_a_plan_of_a_manifest_ignores_no_option(sandbox: Sandbox, run: Run) -> None:
    Path("rows.csv").write_text("id,model,prompt\na,gpt-4o-image,a fox\n")
    assert run("plan", "rows.csv", "--take", "2", "--budget-usd", "1")[0] == 0
    code, out, err = run("plan", "rows.csv", "--resolution", "4k", "--image-url", "https://x/y.png")
    assert (code, out) == (1, "")
    assert "resolution, image_urls would be ignored" in err


def test_a_plan_beyond_the_budget_is_1(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("plan", "veo-3.1-fast", "waves", "--budget-usd", "0.30")[0] == 0
    assert run("plan", "veo-3.1-fast", "waves", "--budget-usd", "0.29")[0] == 1
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.10")
    code, out, _ = run("plan", "veo-3.1-fast", "waves", "--json")
    assert code == 1
    assert json.loads(out)["is_affordable"] is False
    assert [budget["left_usd"] for budget in json.loads(out)["budgets"]] == ["0.10"]


def test_a_wrong_manifest_is_told_row_by_row(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,model,prompt\na,gpt-4o-image,\nb,gpt-4o-image,x\nb,gpt-4o-image,y\n")
    code, out, err = run("plan", str(rows))
    assert (code, out) == (1, "")
    assert "line 2 (a): prompt" in err
    assert "line 4 (b): id: is used by line 3 already" in err


# ---------------------------------------------------------------- receipts


def test_receipts_are_listed_without_a_token(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    key = bought().generation.receipt
    monkeypatch.delenv("VEOGEN_API_TOKEN")
    code, out, _ = run("receipts")
    assert code == 0
    assert re.search(rf"^bought  gpt-4o-image  \$0\.02  \S+ \S+  a red fox  {key}$", out, re.MULTILINE)
    assert "1 receipts, $0.02 paid" in out
    assert [item["key"] for item in json.loads(run("receipts", "--json")[1])] == [key]
    assert json.loads(run("receipts", "list", "--state", "unknown", "--json")[1]) == []
    assert json.loads(run("receipts", "--json", "list", "--state", "unknown")[1]) == []


def test_an_empty_store_has_no_receipts_and_is_no_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    code, out, _ = run("receipts", "--store", str(tmp_path / "nothing"))
    assert (code, out) == (0, f"There are no receipts in file://{tmp_path}/nothing\n")


@pytest.mark.parametrize("words", [["receipts"], ["receipts", "show", "v1"], ["sweep"], ["reconcile"]], ids=" ".join)
@pytest.mark.parametrize("store", ["nowhere", "a-file", ""])
def test_a_store_that_is_not_there_is_an_error(sandbox: Sandbox, run: Run, words: list[str], store: str) -> None:
    Path("a-file").touch()
    code, out, err = run(*words, "--store", store)
    assert (code, out) == (1, "")
    assert re.search(r"There is no store at .*/nowhere|a-file is a file|'' is not a valid store", err)
    assert "--store" in err
    assert not Path("nowhere").exists()


def test_a_plan_may_come_before_the_store_but_not_with_a_file_as_one(sandbox: Sandbox, run: Run) -> None:
    Path("a-file").touch()
    assert run("plan", "gpt-4o-image", "a fox", "--store", "nowhere")[0] == 0
    assert run("plan", "gpt-4o-image", "a fox", "--store", "a-file")[0] == 1


def test_a_receipt_is_shown_by_the_beginning_of_its_key(sandbox: Sandbox, run: Run) -> None:
    purchase = bought()
    code, out, _ = run("receipts", "show", str(purchase.generation.receipt)[:10])
    assert code == 0
    assert purchase.generation.id in out
    assert "$0.02, as charged" in out
    assert "sending" in out  # its history
    bought(FOX.model_copy(update={"take": 2}))
    assert "2 receipts begin with v1" in run("receipts", "show", "v1")[2]


def test_a_lost_purchase_is_adopted_by_hand(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    key = lost(sandbox, monkeypatch)
    body = {"model": "gpt-4o-image", "prompt": "something that doesn't look like it"}
    made = httpx.post(f"{sandbox.base_url}/generations", json=body, headers=bearer(sandbox)).json()
    assert f"prefect-veogen receipts adopt {key} GENERATION_ID" in run("receipts", "show", key)[1]
    code, _, told = run("receipts", "adopt", key, made["data"]["id"])
    assert (code, "--force" in told) == (1, True)
    code, out, _ = run("receipts", "adopt", key, made["data"]["id"], "--force")
    assert code == 0
    assert f"{key} is bought now" in out
    assert bought().generation.id == made["data"]["id"]
    assert len(sandbox.bill) == 1


def test_a_lost_purchase_is_released_by_hand_and_then_bought(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = lost(sandbox, monkeypatch)
    code, out, _ = run("receipts", "release", key, "--json")
    assert (code, json.loads(out)["state"]) == (0, "released")
    assert not bought().reused
    assert run("receipts", "release", key)[0] == 1  # it is bought now, and stays so
    assert len(sandbox.bill) == 1


def test_a_damaged_receipt_is_told_beside_the_others(sandbox: Sandbox, run: Run) -> None:
    bought()
    store = Path(os.environ["VEOGEN_STORE"])
    (store / "receipts" / "v1-0-0-1.json").write_text("{")
    code, out, told = run("receipts")
    assert code == 1
    assert "1 receipts, $0.02 paid" in out
    assert "v1-0-0-1 can't be read" in told


def test_a_scheduled_manifest_is_planned_as_if_it_ran_now(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,model,prompt,take\na,gpt-4o-image,x,{scheduled:%Y}\nb,gpt-4o-image,x,{scheduled:%%}\n")
    code, _, told = run("plan", str(rows), "--take", "{scheduled:%Y-%m-%d}")
    assert (code, "line 3 (b): take: " in told) == (1, True)
    rows.write_text("id,model,prompt,take\na,gpt-4o-image,x,{scheduled:%Y}\nb,gpt-4o-image,x,\n")
    code, out, _ = run("plan", str(rows), "--take", "{scheduled:%Y-%m-%d}")
    assert (code, "$0.04" in out) == (0, True)


# ---------------------------------------------------------------- sweep and reconcile


def test_sweep_stores_what_was_paid_for_and_buys_nothing(sandbox: Sandbox, run: Run) -> None:
    bought()
    sandbox.advance(60)
    code, out, _ = run("sweep")
    assert code == 0
    assert "bought → stored" in out
    assert "stored file://" in out
    assert run("sweep") == (0, "Nothing to do: everything that was bought is in the store, verified.\n", "")
    assert len(sandbox.bill) == 1


def test_sweep_is_1_when_a_person_must_look(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    key = lost(sandbox, monkeypatch)
    code, out, _ = run("sweep", "--json")
    assert code == 1
    assert [(item["key"], item["after"]) for item in json.loads(out)] == [(key, "unknown")]


def test_reconcile_adds_up_until_somebody_else_buys(sandbox: Sandbox, run: Run) -> None:
    bought()
    sandbox.advance(60)  # the statement names what is completed
    assert run("reconcile")[0] == 0
    body = {"model": "veo-3.1-fast", "prompt": "by somebody else"}
    httpx.post(f"{sandbox.base_url}/generations", json=body, headers=bearer(sandbox)).raise_for_status()
    sandbox.advance(300)
    code, out, _ = run("reconcile")
    assert code == 1
    assert "On the statement, but not in this store's receipts:" in out
    code, out, _ = run("reconcile", "--json", "--since", "2020-01-01")
    told = json.loads(out)
    assert (code, told["adds_up"], told["ledger_usd"], told["receipts"]) == (1, False, "0.02", 1)


# ---------------------------------------------------------------- setup


@pytest.mark.server
@pytest.mark.slow
def test_setup_makes_the_limit_and_registers_the_block_however_often(prefect_server: None, run: Run) -> None:
    assert run("setup")[0] == 0
    code, out, _ = run("setup", "--requests-per-minute", "60", "--json")
    assert (code, json.loads(out)["requests_per_minute"]) == (0, 60)

    async def found() -> tuple[float, str]:
        async with get_client() as client:
            limit = await client.read_global_concurrency_limit_by_name("veogen-requests")
            block = await client.read_block_type_by_slug("veogen-credentials")
        return limit.slot_decay_per_second, block.name

    decay, name = asyncio.run(found())
    assert decay * 60 <= 60 * 1000  # slots, of which a request takes a thousand
    assert name == "Veogen Credentials"


@pytest.mark.parametrize(("server", "told"), [(None, "no Prefect server"), ("http://127.0.0.1:9/api", "127.0.0.1:9")])
def test_setup_without_a_server_says_how_to_get_one(tmp_path: Path, server: str | None, told: str) -> None:
    environment = {"PREFECT_HOME": str(tmp_path), "PREFECT_CLIENT_MAX_RETRIES": "0"}
    with process("setup", **environment, **({"PREFECT_API_URL": server} if server else {})) as setup:
        out, err = setup.communicate(timeout=60)
    assert (setup.returncode, out) == (1, "")
    assert told in err
    assert "What to do: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", ["0", "-5"])
def test_setup_refuses_a_limit_that_is_none(run: Run, number: str) -> None:
    code, out, err = run("setup", "--requests-per-minute", number)
    assert (code, out) == (1, "")
    assert f"VEOGEN_REQUESTS_PER_MINUTE='{number}': Input should be greater than or equal to 2" in err


# ---------------------------------------------------------------- as a process


def test_what_is_piped_is_plain_and_one_line_per_row(sandbox: Sandbox) -> None:
    with process("models", TERM="xterm-256color", COLUMNS="40") as models:
        out, err = models.communicate(timeout=60)
    assert (models.returncode, err) == (0, "")
    assert "\x1b" not in out
    assert len(out.splitlines()) == 13 + 3


def test_a_reader_who_has_seen_enough_is_no_error(sandbox: Sandbox) -> None:
    line = f"{sys.executable} -m prefect_veogen.cli models | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_terminal_without_unicode_shows_what_it_can(sandbox: Sandbox) -> None:
    bought(GenerationRequest(model="gpt-4o-image", prompt="ein Füchschen 🦊"))
    with process("receipts", PYTHONIOENCODING="ascii") as receipts:
        out, err = receipts.communicate(timeout=60)
    assert (receipts.returncode, err) == (0, "")
    assert "ein F?chschen ?" in out


@pytest.mark.parametrize("command", ["balance", "sweep"])
def test_ctrl_c_is_130_and_says_that_nothing_was_bought(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    hanging, asked, over = threading.Event(), threading.Event(), threading.Event()

    def answer(request: Request) -> Reply | None:
        if not hanging.is_set():
            return None if request.method == "POST" else relayed(sandbox.base_url, request)
        asked.set()
        over.wait(30)
        return None

    with serving(answer) as url:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{url}/api/v1")
        monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
        with pytest.raises(UnknownSubmission):
            bought()
        hanging.set()
        running = process(command)
        assert asked.wait(30)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        over.set()
    assert (running.returncode, out) == (130, "")
    assert "Stopped. Nothing was bought" in err
    assert "Traceback" not in err


def test_the_sandboxs_first_line_is_its_base_url_and_ctrl_c_ends_it() -> None:
    with process("sandbox", "--port", "0", "--tiny-media") as command:
        assert command.stdout is not None
        base_url = command.stdout.readline().strip()
        exported = dict(re.findall(r"export (VEOGEN_\w+)=(.+)", "".join(command.stdout.readline() for _ in range(2))))
        answer = httpx.get(f"{base_url}/models", headers={"Authorization": f"Bearer {exported['VEOGEN_API_TOKEN']}"})
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
    assert answer.status_code == 200
    assert exported["VEOGEN_BASE_URL"] == base_url
    assert (command.returncode, err) == (0, "")


@pytest.mark.parametrize("command", ["demo", "sandbox"])
def test_without_the_extra_it_says_what_to_install(command: str, tmp_path: Path) -> None:
    program = "import sys; sys.modules['av'] = None; from prefect_veogen.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, command], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert re.search(r"pip install ['\"]prefect-veogen\[sandbox\]['\"]", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # nor does it leave an empty folder


# ---------------------------------------------------------------- demo


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_buys_in_the_sandbox_and_leaves_a_picture_a_clip_and_no_process(tmp_path: Path) -> None:
    (tmp_path / "veogen-demo" / "run-1").mkdir(parents=True)
    mark = uuid.uuid4().hex
    with _real_service() as (service, seen), process("demo", "--keep", CLI_TEST_MARK=mark, **service) as demo:
        told = _read_until(demo, "What the sandbox has seen")
        balance = subprocess.run(
            [sys.executable, "-m", "prefect_veogen.cli", "balance"],
            env={**os.environ, **dict(re.findall(r"export (VEOGEN_\w+)=(http\S+|sandbox-token)$", told, re.MULTILINE))},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        assert [line for line in _alive(mark) if "prefect_veogen.cli" not in line] == []
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=60)
    assert (demo.returncode, err, seen) == (0, "", [])
    assert "2 purchases, $0.32 of play money" in told
    assert balance == "The account holds $99.68 and has spent $0.32.\n"
    assert "\x1b" not in told
    picture, clip = (tmp_path / path for path in re.findall(r"veogen-demo/run-2/assets/\S+$", told, re.MULTILINE)[-2:])
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
    """The environment of somebody with an account and a Prefect server, and what either of them was asked."""
    seen: list[str] = []

    def answer(request: Request) -> Reply:
        seen.append(request.path)
        return Reply(500)

    with serving(answer) as url:
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
    told = ""
    for line in command.stdout:
        told += line
        if text in line:
            return told
    raise AssertionError(f"it ended without {text!r}:\n{told}{command.stderr.read() if command.stderr else ''}")


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
