"""Campaigns at the API's limit, made both ways: what they cost the API and this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import servers

LIMIT_PER_MINUTE = 120
_POLL_SECONDS = {"IMAGE": 3.0, "VIDEO": 5.0}
_RECORDED_WITHIN_SECONDS = 600.0


@dataclass(frozen=True)
class Measurement:
    """One campaign; what the API saw is in the service's seconds, what the machine did is in real ones."""

    way: str
    rows: int
    stored: int
    requests: int
    refused: int
    purchases: int
    buying_seconds: float
    late_mean_seconds: float
    late_max_seconds: float
    service_seconds: float
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    task_runs: int
    recorded_after_seconds: float

    @property
    def requests_per_generation(self) -> float:
        return self.requests / max(self.purchases, 1)

    @property
    def refused_share(self) -> float:
        return self.refused / max(self.requests, 1)

    @property
    def purchases_per_minute(self) -> float:
        # At least a minute, to measure a pace: in the sandbox a whole minute's allowance may be used at once.
        return (self.purchases - 1) / max(self.buying_seconds, 60.0) * 60

    @property
    def cpu_per_generation(self) -> float:
        return self.cpu_seconds / self.rows


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Return rows of which every other one is a picture and the rest are clips."""
    kinds = (("gpt-4o-image", "picture"), ("veo-3.1-fast", "clip"))
    named = ((number, *kinds[number % 2]) for number in range(count))
    return [{"id": f"{kind}-{number}", "model": model, "prompt": f"{kind} {number}"} for number, model, kind in named]


def pictures(count: int) -> list[dict[str, Any]]:
    """Return rows of pictures."""
    return [{"id": f"row-{n}", "model": "gpt-4o-image", "prompt": f"picture number {n}"} for n in range(count)]


def measure(
    way: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    speed: float,
    at_once: int,
    prefect: Mapping[str, str],
    folder: Path,
    limited: bool = True,
) -> Measurement:
    """Measure making `rows` in one way, against a sandbox of its own; `folder` is for it alone."""
    folder.mkdir(parents=True)
    manifest = folder / "rows.json"
    manifest.write_text(json.dumps(list(rows)))
    limit = str(LIMIT_PER_MINUTE if limited else 0)
    with servers.sandbox(speed, "--tiny-media", "--requests-per-minute", limit) as sandbox:
        environment = servers.plain_environment(prefect, sandbox.environment, pace_settings(speed, limited=limited))
        # The peer's cache of submitted rows must not outlive its sandbox.
        environment |= {"VEOGEN_STORE": str(folder / "store"), "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results")}
        arguments = [way, str(manifest), str(folder / "store"), str(at_once)]
        result = servers.measure_in_child("benchmarks.campaign_child", arguments, environment, folder)
        seen = _read_api_figures(sandbox)
    recorded_at = wait_until_recorded(prefect, result["flow_run_id"], result["task_runs"])
    return Measurement(
        way=way,
        rows=len(rows),
        stored=sum(path is not None for path in result["stored"].values()),
        task_runs=result["task_runs"],
        recorded_after_seconds=max(recorded_at - result["ended_at"], 0.0),
        wall_seconds=result["wall_seconds"],
        service_seconds=result["wall_seconds"] * speed,
        cpu_seconds=result["cpu_seconds"],
        peak_bytes=result["peak_bytes"],
        **seen,
    )


def pace_settings(speed: float, *, limited: bool) -> dict[str, str]:
    """Return the settings for a clock that is `speed` times as fast; the peer's poll loops follow them too."""
    settings = {f"VEOGEN_{kind}_POLL_SECONDS": str(seconds / speed) for kind, seconds in _POLL_SECONDS.items()}
    return settings | {"VEOGEN_REQUESTS_PER_MINUTE": str(round(LIMIT_PER_MINUTE * speed) if limited else 1_000_000)}


def _read_api_figures(sandbox: servers.SandboxProcess) -> dict[str, Any]:
    requests, generations = sandbox.get("requests")["requests"], sandbox.get("generations")["generations"]
    api = [request for request in requests if request["origin"] == "api"]
    bought = [_parse_date(request["sandbox_at"]) for request in api if request["status"] == 201]
    first_read: dict[str, datetime] = {}
    for request in requests:
        if request["origin"] == "media":
            first_read.setdefault(request["path"], _parse_date(request["sandbox_at"]))
    late = [
        (first_read[path] - _parse_date(generation["completed_at"])).total_seconds()
        for generation in generations
        for path in [_path(generation["output_url"])]
        if path in first_read
    ]
    return {
        "requests": len(api),
        "refused": sum(request["status"] == 429 for request in api),
        "purchases": len(bought),
        "buying_seconds": (max(bought) - min(bought)).total_seconds() if bought else 0.0,
        "late_mean_seconds": sum(late) / len(late) if late else 0.0,
        "late_max_seconds": max(late, default=0.0),
    }


def _path(url: str | None) -> str:
    return "/" + url.split("/", 3)[3] if url else ""


def _parse_date(text: str) -> datetime:
    return datetime.fromisoformat(text)


def wait_until_recorded(prefect: Mapping[str, str], flow_run_id: str, task_runs: int) -> float:
    """Return when Prefect's server has recorded the end of all task runs of a flow run."""
    ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
    filters = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "task_runs": ended}
    give_up_at = time.monotonic() + _RECORDED_WITHIN_SECONDS
    while servers.fetch(f"{prefect['PREFECT_API_URL']}/task_runs/count", filters) < task_runs:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"Prefect did not record {task_runs} task runs of {flow_run_id}")
        time.sleep(0.1)
    return time.time()
