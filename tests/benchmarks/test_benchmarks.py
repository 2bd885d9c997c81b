"""The benchmark runs in its smallest form, and what it prints and draws is well formed; no figure is judged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.campaign_run import Measurement
from benchmarks.faults_run import Outcome, identify_file
from benchmarks.figures import Table, ratio
from benchmarks.media_run import Transfer
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
from benchmarks.shared_limit_run import SharedLimitUse

ROOT = Path(__file__).parents[2]


def measured(way: str, requests: int = 12) -> Measurement:
    return Measurement(
        way=way,
        rows=10,
        stored=10,
        requests=requests,
        refused=3,
        purchases=10,
        buying_seconds=5.0,
        late_mean_seconds=4.0,
        late_max_seconds=9.0,
        service_seconds=120.0,
        wall_seconds=30.0,
        cpu_seconds=0.5,
        peak_bytes=120 * 1024 * 1024,
        task_runs=30,
        recorded_after_seconds=1.5,
    )


def transfers() -> list[Transfer]:
    ways = [(way, place) for place in ("directory", "bucket") for way in ("ours", "streamed", "whole")]
    return [Transfer(way, place, 2**29, 2.0, 1.5, 2**24) for way, place in ways]


def assert_well_formed(markdown: str) -> None:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) >= 3
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert re.fullmatch(r"[| :-]+", lines[1])
    assert all(cell.strip() for line in lines[1:] for cell in line.strip("|").split("|"))


def test_every_table_is_well_formed() -> None:
    accidents = [Outcome("the response is lost", way, 1, "the picture") for way in ("peer", "campaign")]
    overhead = overhead_table([measured("peer"), measured("campaign"), measured("chained")])
    campaigns = campaign_table(measured("peer", 120), measured("campaign"))
    together = shared_limit_table(*(SharedLimitUse(way, 2, 60, 30.0) for way in ("peer", "ours")))
    for table in (campaigns, overhead, media_table(transfers()), accident_table(accidents), together):
        assert_well_formed(str(table))


def test_every_chart_is_small_and_reads_on_dark_and_light() -> None:
    pairs = [(measured("peer", 120), measured("campaign"))] * 3
    overhead = overhead_chart([measured("peer"), measured("campaign"), measured("chained")])
    for svg in (campaign_chart(pairs), overhead, media_chart(transfers() * 3)):
        assert ET.fromstring(svg).tag.endswith("svg")
        assert "prefers-color-scheme: dark" in svg
        assert len(svg.encode()) < 15_000


def test_a_ratio_is_ours_to_the_peers() -> None:
    row = next(line for line in str(campaign_table(measured("peer", 120), measured("campaign"))).splitlines()[4:])
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["requests per generation", "12.00", "1.20", "0.1"]


@pytest.mark.parametrize(
    ("ours", "peer", "shown"), [(1, 2, "0.5"), (3, 3, "1"), (0, 0, "1"), (1, 0, "-"), (500, 2, "250")]
)
def test_a_ratio_has_two_figures_or_is_left_out(ours: float, peer: float, shown: str) -> None:
    assert ratio(ours, peer) == shown


def test_a_table_with_a_ragged_row_is_refused() -> None:
    with pytest.raises(ValueError, match="as many cells"):
        Table("ragged", ("one", "two"), (("1",),))


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82", "the picture"),
        (b"\x89PNG\r\n\x1a\n....", "half a picture"),
        (b"<!doctype html><h1>Sorry</h1>", "an HTML page, named .png"),
        (b"?", "something else"),
    ],
)
def test_a_stored_file_is_identified_by_its_bytes(tmp_path: Path, body: bytes, what: str) -> None:
    path = tmp_path / "stored.png"
    path.write_bytes(body)
    assert identify_file(path.as_uri()) == what
    assert identify_file(None) == "nothing"


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize(
    ("part", "size", "counted", "drawn"),
    [
        ("campaigns", ("--sizes", "2", "--speed", "100"), r"\| stored +\| +2 \| +2 \| +1 \|", True),
        ("media", ("--media-mb", "1"), r"(\| 1 MB into a (directory|bucket): .*\n){6}", True),
        ("shared-limit", ("--workers", "1", "--shared-limit-seconds", "3"), r"\| requests a minute \| +[1-9]", False),
    ],
)
def test_one_command_measures_both_ways_and_draws_it(
    tmp_path: Path, part: str, size: tuple[str, ...], counted: str, drawn: bool
) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", part, *size, "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
    assert_well_formed(done.stdout)
    assert re.search(counted, done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ([f"{part}.svg"] if drawn else [])
    for path in tmp_path.iterdir():
        ET.parse(path)
