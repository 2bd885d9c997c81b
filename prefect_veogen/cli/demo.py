"""`demo`: the first minute, offline. The sandbox runs here, the flow and its Prefect server in a child process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_veogen.cli.demo_run import FLOW, flow_file
from prefect_veogen.cli.terminal import console, say, table
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import Asset, in_usd
from prefect_veogen.store import LocalStore, open_store

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.status import Status

    from prefect_veogen.sandbox import Sandbox

PROMPTS = ("a lighthouse at dusk", "the beam turns, waves roll in")
# How much faster the sandbox's clock runs: a clip that takes a minute or two is ready in a few seconds.
SPEED = 30
_TERMINATE_SECONDS = 5


def demo(options: Namespace) -> int:
    """Buy, wait for and download a picture and a clip in the sandbox, twice, and show the results."""
    signal.signal(signal.SIGTERM, _stop)
    progress = _Progress()
    say("A Veogen Studio of your own, offline: nothing here costs money.", "")
    with progress, _run_sandbox() as sandbox:
        folder = _make_folder(options.store)
        progress.finish(f"The sandbox runs at {sandbox.base_url}, with {in_usd(sandbox.balance_usd)} of play money")
        assets = _run(sandbox, folder, progress)
        image, video = Asset(**assets["image"]), Asset(**assets["video"])
        progress.close()
        _show(sandbox, folder, image, video)
        if options.keep:
            _keep(sandbox, folder)
    return 0


# ---------------------------------------------------------------- the run


def _run(sandbox: Sandbox, folder: Path, progress: _Progress) -> dict[str, Any]:
    """Run the flow twice and return its assets; leave no process behind, however this ends."""
    progress.begin("Starting Prefect's local server, private to this demo (takes some 20 seconds)")
    log = folder / "prefect.log"
    made: list[dict[str, Any]] = []
    problem: dict[str, Any] = {"error": "it ended without a message"}
    with (
        tempfile.TemporaryDirectory(prefix="veogen-demo-") as scratch,
        _run_child(sandbox, folder, scratch, log) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            match json.loads(line):
                case {"ready": _}:
                    progress.finish("Prefect's local server is up")
                    progress.begin(f"Running the flow {FLOW}")
                case {"log": text}:
                    progress.note(text.replace(folder.as_uri(), _shown(folder)))
                case {"error": _} as problem:
                    pass
                case assets if made:
                    made.append(assets)
                    progress.finish("The same flow, run again, found both and bought nothing")
                    break  # what the child still writes is not needed
                case assets:
                    made.append(assets)
                    progress.finish(f"The flow {FLOW} is completed")
                    progress.begin("Running the same flow again")
    if len(made) < 2:
        raise ConfigurationError(
            f"The demo's flow did not finish: {problem['error']}",
            next_step=problem.get("next_step") or f"What Prefect says about it is in {log}.",
        )
    return made[0]


@contextmanager
def _run_child(sandbox: Sandbox, folder: Path, scratch: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w", encoding="utf-8") as errors:
        child = subprocess.Popen(  # noqa: S603 - this Python, our module, our prompts
            [sys.executable, "-m", "prefect_veogen.cli.demo_run", *PROMPTS],
            env=_environment(sandbox, folder, scratch),
            cwd=scratch,  # a prefect.toml or .env in the user's directory may configure another server
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            yield child
        finally:
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    """Stop the child and its Prefect server, which are a session of their own."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_TERMINATE_SECONDS)
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _environment(sandbox: Sandbox, folder: Path, scratch: str) -> dict[str, str]:
    """Return an environment without the user's account, Prefect server and proxy."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VEOGEN_", "PREFECT_")) and not name.lower().endswith("_proxy")
    }
    return {
        **inherited,
        **sandbox.environment,
        "VEOGEN_STORE": str(folder),
        "VEOGEN_REQUESTS_PER_MINUTE": str(120 * SPEED),
        "VEOGEN_IMAGE_POLL_SECONDS": "0.1",
        "VEOGEN_VIDEO_POLL_SECONDS": "0.2",
        "PREFECT_HOME": str(Path(scratch) / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def _run_sandbox() -> Iterator[Sandbox]:
    from prefect_veogen.sandbox import Sandbox

    sandbox = Sandbox(speed=SPEED)
    try:
        sandbox.start()
    except ImportError as error:
        raise ConfigurationError(
            "The demo needs the sandbox, which is not installed",
            next_step='Install it: pip install "prefect-veogen[sandbox]"',
        ) from error
    try:
        yield sandbox
    finally:
        sandbox.stop()


def _make_folder(store: str) -> Path:
    """Return a new, empty folder: a demo always buys, whatever receipts earlier ones left."""
    place = open_store(store)
    if not isinstance(place, LocalStore):
        raise ConfigurationError(f"The demo writes into a directory, not to {store}", next_step="Give --store DIR.")
    parent, number = place.root, 0
    while True:
        number += 1
        try:
            (parent / f"run-{number}").mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigurationError(
                f"Nothing can be written to {parent}: {error.strerror}",
                next_step="Give another directory: --store DIR.",
            ) from None
        else:
            return parent / f"run-{number}"


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


# ---------------------------------------------------------------- what is shown


class _Progress:
    """Shows the progress: one changing line on a terminal, plain lines in a pipe."""

    def __init__(self) -> None:
        self._out = console()
        self._status: Status | None = None
        self._since = time.monotonic()

    def __enter__(self) -> None:
        self.begin("Starting the sandbox")

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, text: str) -> None:
        """Show the current step."""
        if not self._out.is_terminal:
            self._out.print(f"  ... {text}", soft_wrap=True)
        elif self._status is None:
            self._status = self._out.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def note(self, text: str) -> None:
        """Show an event within the current step."""
        self._out.print(f"      {text}", style="dim", soft_wrap=True)

    def finish(self, text: str) -> None:
        """Show a finished step, and how long it took."""
        now = time.monotonic()
        self._out.print(f"  ok  {text} ({now - self._since:.1f} s)", soft_wrap=True)
        self._since = now

    def close(self) -> None:
        """Remove the line of the current step."""
        if self._status is not None:
            self._status.stop()
        self._status = None


def _show(sandbox: Sandbox, folder: Path, image: Asset, video: Asset) -> None:
    say("")
    rows = [
        (what, _size(asset.size), in_usd(asset.price_usd), asset.sha256[:12], _path(asset))
        for what, asset in (("picture", image), ("clip", video))
    ]
    table(("", "SIZE", "PRICE", "SHA256", "FILE"), rows, right=("SIZE", "PRICE"))
    opener = {"darwin": "open", "win32": "start"}.get(sys.platform, "xdg-open")
    say(
        "",
        f"The sandbox's bill after two runs: {len(sandbox.bill)} purchases, "
        f"{in_usd(sandbox.bill.total_usd)} of play money.",
    )
    say("", "Look at them:", style="bold")
    say(f"  {opener} {_shown(folder)}/assets", f"  {_program()} receipts --store {_shown(folder)}")
    say("", "The real thing, which costs real money:", style="bold")
    say(
        "  export VEOGEN_API_TOKEN=...             # veogen.studio → Settings → API Tokens",
        "  export VEOGEN_STORE=s3://bucket/prefix  # or a directory",
        "  export VEOGEN_BUDGET_USD=5              # the most that may be spent a day",
        f'  {_program()} plan gpt-4o-image "{PROMPTS[0]}"      # free: what it would cost',
        f"  {_flow_command()}",
    )


def _keep(sandbox: Sandbox, folder: Path) -> None:
    say("", "The sandbox goes on until Ctrl-C. In another terminal, the flow, run again, costs $0.00:", style="bold")
    variables = {**sandbox.environment, "VEOGEN_STORE": str(folder)}
    say(*(f"  export {name}={value}" for name, value in variables.items()))
    say(f"  {_flow_command()}", f"  {_program()} balance", f"What the sandbox has seen: {sandbox.control_url}")
    try:
        while True:
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("", "The sandbox is gone.")


def _flow_command() -> str:
    file = flow_file()
    inside = file.parent.parent.name == "prefect_veogen"
    program = f"-m prefect_veogen.flows.{FLOW}" if inside else _shown(file)
    python = "python" if _is_on_path("python", sys.executable) else _shown(Path(sys.executable))
    return f'{python} {program} "{PROMPTS[0]}" "{PROMPTS[1]}"'


def _program() -> str:
    name = "prefect-veogen"
    return name if _is_on_path(name, sys.argv[0]) else _shown(Path(sys.executable).with_name(name))


def _is_on_path(name: str, program: str) -> bool:
    found = shutil.which(name)
    return found is not None and Path(found) == Path(program).absolute()


def _path(asset: Asset) -> str:
    from urllib.parse import unquote, urlsplit

    return _shown(Path(unquote(urlsplit(asset.uri).path)))


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
