"""`python -m benchmarks`: prefect-veogen beside a Prefect flow written by hand, on this machine, in one run.

Prints tables and draws `docs/benchmarks/*.svg`. Ratios are what counts: all times depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks import servers
from benchmarks.campaign_run import Measurement, measure, mixed_rows, pictures
from benchmarks.faults_run import Outcome, measure_outcomes
from benchmarks.figures import Table
from benchmarks.media_run import Transfer, measure_transfers
from benchmarks.report import (
    accident_table,
    campaign_chart,
    campaign_table,
    media_chart,
    media_table,
    overhead_chart,
    overhead_table,
    shared_limit_table,
)
from benchmarks.shared_limit_run import measure_shared_limit

PARTS = ("campaigns", "overhead", "media", "accidents", "shared-limit")
_OVERHEAD_SPEED = 100.0
_CONCURRENCY = 300
_MEGABYTE = 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen parts, print their tables and draw their charts."""
    options = _parser().parse_args(argv)
    if options.full:
        options.sizes, options.media_mb = [*options.sizes, 240, 1000], [*options.media_mb, 1024, 3072]
    if sys.platform != "win32":
        # On SIGTERM, leave no server behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    print(f"{_facts()}\nThe API: the sandbox, its clock at {options.speed:g} times the speed, 120 requests a minute\n")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="veogen-bench-") as folder:
        Benchmark(options, Path(folder)).run()
    print(f"\nTook {time.monotonic() - began:.0f} seconds.")
    return 0


class Benchmark:
    """One run of the chosen parts."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder

    def run(self) -> None:
        parts = self._options.only or PARTS
        if "media" in parts:
            self._media()
        if set(parts) - {"media"}:
            home = self._folder / "prefect"
            home.mkdir()
            with servers.prefect_server(home) as prefect:
                if "campaigns" in parts:
                    self._campaigns(prefect)
                if "overhead" in parts:
                    self._overhead(prefect)
                if "accidents" in parts:
                    self._accidents(prefect)
                if "shared-limit" in parts:
                    self._measure_shared_limit(prefect)

    def _campaigns(self, prefect: dict[str, str]) -> None:
        pairs: list[tuple[Measurement, Measurement]] = []
        for count in self._options.sizes:
            peer, ours = (
                measure(
                    way,
                    mixed_rows(count),
                    speed=self._options.speed,
                    at_once=at_once,
                    prefect=prefect,
                    folder=self._folder / f"campaign-{way}-{count}",
                )
                for way, at_once in (("peer", self._options.peer_at_once), ("campaign", _CONCURRENCY))
            )
            pairs.append((peer, ours))
            _say(campaign_table(peer, ours))
        self._draw("campaigns", campaign_chart(pairs))

    def _overhead(self, prefect: dict[str, str]) -> None:
        rows = pictures(self._options.overhead_rows)
        found = [
            measure(
                way,
                rows,
                speed=_OVERHEAD_SPEED,
                at_once=_CONCURRENCY,
                prefect=prefect,
                folder=self._folder / f"overhead-{way}",
                limited=False,
            )
            for way in ("peer", "campaign", "chained")
        ]
        _say(overhead_table(found))
        self._draw("overhead", overhead_chart(found))

    def _media(self) -> None:
        found: list[Transfer] = []
        for megabytes in self._options.media_mb:
            found += measure_transfers(megabytes * _MEGABYTE, self._folder / f"media-{megabytes}")
        _say(media_table(found))
        self._draw("media", media_chart(found))

    def _accidents(self, prefect: dict[str, str]) -> None:
        found: list[Outcome] = []
        for way in ("peer", "campaign"):
            found += measure_outcomes(way, prefect, self._folder / f"accidents-{way}")
        _say(accident_table(found))

    def _measure_shared_limit(self, prefect: dict[str, str]) -> None:
        workers, seconds = self._options.workers, self._options.shared_limit_seconds
        peer, ours = (
            measure_shared_limit(way, workers, seconds, prefect, self._folder / f"shared-limit-{way}")
            for way in ("peer", "ours")
        )
        _say(shared_limit_table(peer, ours))

    def _draw(self, name: str, svg: str) -> None:
        (self._options.out / f"{name}.svg").write_text(svg, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Figures, side by side.")
    parser.add_argument("--full", action="store_true", help="also 240 and 1,000 generations, videos of 1 and 3 GB")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts of it (default: all)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10, 100], help="generations (default: 10 100)")
    parser.add_argument("--speed", type=float, default=8.0, help="the sandbox's clock (default: 8 times)")
    parser.add_argument(
        "--peer-at-once", type=int, default=_CONCURRENCY, help="the peer's bounded concurrency (default: 300)"
    )
    parser.add_argument("--overhead-rows", type=int, default=100, help="pictures to measure the overhead with")
    parser.add_argument("--media-mb", nargs="+", type=int, default=[512], help="sizes of the video (default: 512)")
    parser.add_argument("--workers", type=int, default=2, help="how many share the limit (default: 2)")
    parser.add_argument("--shared-limit-seconds", type=float, default=30.0, help="how long they do (default: 30)")
    parser.add_argument("--out", type=Path, default=servers.ROOT / "docs" / "benchmarks", help="where the charts go")
    return parser


def _facts() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores{load}; Python {platform.python_version()}, "
        f"Prefect {version('prefect')}, httpx {version('httpx')}, boto3 {version('boto3')}"
    )


def _say(table: Table) -> None:
    print(f"{table}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
