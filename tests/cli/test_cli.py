"""The command `prefect-veogen` itself, as a person and as a script meet it: help, wrong usage, pipes and signals."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from prefect_veogen.cli import function_of
from prefect_veogen.cli.arguments import parser
from prefect_veogen.errors import UnknownSubmission
from prefect_veogen.models import GenerationRequest
from prefect_veogen.sandbox import Sandbox
from tests.support.commands import COMMANDS, Run, bought, process
from tests.support.servers import Reply, Request, relayed, serving

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
        ["costs", "--by", "weather"],
        ["costs", "--by", "label"],
        ["costs", "--by", "label:"],
        ["costs", "--by", "label:Project"],
        ["costs", "--by", "day:"],
        ["costs", "--since", "yesterday"],
        ["costs", "--json", "--csv"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_says_why_on_stderr(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "usage: prefect-veogen" in err
    assert "error:" in err


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


@pytest.mark.parametrize("words", ["models", "models --json", "explain", "sandbox --list-faults"])
def test_output_that_finds_no_room_on_the_disk_is_one_line_and_1(sandbox: Sandbox, words: str) -> None:
    line = f"{sys.executable} -m prefect_veogen.cli {words} > /dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: The output can't be written: No space left on device\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_without_an_output_a_command_does_its_work_all_the_same(sandbox: Sandbox, closed: str) -> None:
    for words in ("models", "models --json"):
        line = f"{sys.executable} -m prefect_veogen.cli {words} {closed}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


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

    def respond(request: Request) -> Reply | None:
        if not hanging.is_set():
            return None if request.method == "POST" else relayed(sandbox.base_url, request)
        asked.set()
        over.wait(30)
        return None

    with serving(respond) as url:
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
        response = httpx.get(f"{base_url}/models", headers={"Authorization": f"Bearer {exported['VEOGEN_API_TOKEN']}"})
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
    assert response.status_code == 200
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
