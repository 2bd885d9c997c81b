"""Workers that share the API's limit through a Prefect server: how much of it they use together."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks import servers
from benchmarks.campaign_run import LIMIT_PER_MINUTE
from benchmarks.shared_limit_child import LIMIT_BY_HAND

# Importing Prefect takes some seconds, and all workers are to begin together.
_STARTING_SECONDS = 8.0
_SETUP = {
    "ours": f"prefect_veogen.cli setup --requests-per-minute {LIMIT_PER_MINUTE}",
    "peer": f"prefect gcl create {LIMIT_BY_HAND} --limit 1 --slot-decay-per-second {LIMIT_PER_MINUTE / 60}",
}


@dataclass(frozen=True)
class SharedLimitUse:
    """What some workers sent together in one way."""

    way: str
    workers: int
    requests: int
    seconds: float

    @property
    def requests_per_minute(self) -> float:
        return (self.requests - 1) / self.seconds * 60


def measure_shared_limit(
    way: str, workers: int, seconds: float, prefect: Mapping[str, str], folder: Path
) -> SharedLimitUse:
    """Measure what workers send while each sends all it can; the sandbox itself has no limit."""
    folder.mkdir(parents=True)
    with servers.sandbox(1.0, "--requests-per-minute", "0") as sandbox, contextlib.ExitStack() as running:
        environment = servers.plain_environment(prefect, sandbox.environment)
        subprocess.run(
            [sys.executable, "-m", *_SETUP[way].split()], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        begins_at = time.time() + _STARTING_SECONDS
        arguments = [way, str(begins_at), str(seconds)]
        children = [
            running.enter_context(
                servers.child("benchmarks.shared_limit_child", arguments, environment, folder / f"child-{number}.log")
            )
            for number in range(workers)
        ]
        for child in children:
            child.finish()
        requests = sandbox.get("requests")["requests"]
    moments = sorted(
        datetime.fromisoformat(request["at"]) for request in requests if request["path"].endswith("/account")
    )
    return SharedLimitUse(way, workers, len(moments), (moments[-1] - moments[0]).total_seconds())
