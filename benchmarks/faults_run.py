"""What both ways pay and store when requests or processes fail."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.campaign_run import pace_settings

_SPEED = 60.0
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_KILLED = "killed while buying, then run again"
ACCIDENTS = {
    "lost-answer-after-charge": "the response to a purchase is lost",
    "502-after-charge": "a gateway responds 502 to a purchase",
    "media-html": "the media host serves an HTML page once",
    "media-truncated-silently": "half a file comes once, its length to match",
}


@dataclass(frozen=True)
class Outcome:
    """What one way did about one accident with one picture."""

    accident: str
    way: str
    purchases: int
    stored: str


def measure_outcomes(way: str, prefect: Mapping[str, str], folder: Path) -> list[Outcome]:
    """Measure what one way does about every accident: one picture each, one fault armed for each."""
    return [*_run_accidents(way, prefect, folder / "accidents"), _kill(way, prefect, folder / "kill")]


def _run_accidents(way: str, prefect: Mapping[str, str], folder: Path) -> list[Outcome]:
    folder.mkdir(parents=True)
    with servers.sandbox(_SPEED, "--tiny-media", "--requests-per-minute", "0") as sandbox:
        rows = [_row(name) for name in ACCIDENTS]
        for row, fault in zip(rows, ACCIDENTS, strict=True):
            sandbox.arm(fault, prompt=row["prompt"])
        arguments, environment = _start(way, rows, prefect, sandbox, folder)
        result = servers.measure_in_child("benchmarks.campaign_child", arguments, environment, folder)
        return [
            Outcome(accident, way, _purchases(sandbox, row), identify_file(result["stored"][row["id"]]))
            for row, accident in zip(rows, ACCIDENTS.values(), strict=True)
        ]


def _kill(way: str, prefect: Mapping[str, str], folder: Path) -> Outcome:
    """Kill the process between a charge and its response, then start the same again."""
    folder.mkdir(parents=True)
    with servers.sandbox(_SPEED, "--tiny-media", "--requests-per-minute", "0") as sandbox:
        row = _row("killed")
        sandbox.arm("slow-answer", seconds=30.0)
        arguments, environment = _start(way, [row], prefect, sandbox, folder)
        ignored = [*arguments, str(folder / "never.json")]
        with servers.child("benchmarks.campaign_child", ignored, environment, folder / "child.log") as running:
            while not _purchases(sandbox, row):
                if running.process.poll() is not None:
                    running.finish()
                    raise RuntimeError(f"{way} ended without a purchase")
                time.sleep(0.02)
            running.kill()
        result = servers.measure_in_child("benchmarks.campaign_child", arguments, environment, folder)
        return Outcome(_KILLED, way, _purchases(sandbox, row), identify_file(result["stored"][row["id"]]))


def _row(name: str) -> dict[str, Any]:
    return {"id": name, "model": "gpt-4o-image", "prompt": f"a picture for {name}"}


def _start(
    way: str, rows: list[dict[str, Any]], prefect: Mapping[str, str], sandbox: servers.SandboxProcess, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """Return a child's arguments and environment."""
    manifest, store = folder / "rows.json", folder / "store"
    manifest.write_text(json.dumps(rows))
    environment = servers.plain_environment(prefect, sandbox.environment, pace_settings(_SPEED, limited=False))
    environment |= {"VEOGEN_STORE": str(store), "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results")}
    return [way, str(manifest), str(store), "50"], environment


def _purchases(sandbox: servers.SandboxProcess, row: Mapping[str, Any]) -> int:
    return sum(one["prompt"] == row["prompt"] for one in sandbox.get("bill")["purchases"] if not one["refunded"])


def identify_file(place: str | None) -> str:
    """Identify a file that should be a picture."""
    if place is None:
        return "nothing"
    path = Path(place.removeprefix("file://"))
    body = path.read_bytes()
    if body.startswith(_PNG):
        return "the picture" if body.endswith(_PNG_END) else "half a picture"
    return f"an HTML page, named {path.suffix}" if b"<html" in body or b"<!doctype" in body else "something else"
