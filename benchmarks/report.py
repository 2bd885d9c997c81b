"""What was measured, as tables and charts: the peer's figure, ours, and the ratio of the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.campaign_run import LIMIT_PER_MINUTE, Measurement
from benchmarks.faults_run import Outcome
from benchmarks.figures import Bar, Panel, Table, chart, ratio
from benchmarks.media_run import Transfer
from benchmarks.shared_limit_run import SharedLimitUse

PEER, OURS = "by hand", "prefect-veogen"
_WAYS = {"peer": PEER, "campaign": f"{OURS}: campaign", "chained": f"{OURS}: generate"}
_MOVERS = {"ours": OURS, "streamed": "streamed by hand", "whole": "read whole"}
_MEGABYTE = 1024 * 1024

_PACE = "purchases a minute while buying"
"""Shown only for campaigns that reach the limit: fewer rows than it allows can all be bought at once."""

Figure = tuple[str, Callable[[Measurement], float], str]
_CAMPAIGN_FIGURES: tuple[Figure, ...] = (
    ("requests per generation", lambda m: m.requests_per_generation, "{:.2f}"),
    ("refused with 429", lambda m: m.refused_share, "{:.1%}"),
    (_PACE, lambda m: m.purchases_per_minute, "{:.0f}"),
    ("all bought after, s*", lambda m: m.buying_seconds, "{:.0f}"),
    ("completion noticed late by, mean s*", lambda m: m.late_mean_seconds, "{:.1f}"),
    ("completion noticed late by, max s*", lambda m: m.late_max_seconds, "{:.1f}"),
    ("all stored after, s*", lambda m: m.service_seconds, "{:.0f}"),
    ("CPU ms per generation", lambda m: m.cpu_per_generation * 1000, "{:.0f}"),
    ("peak memory, MB", lambda m: m.peak_bytes / _MEGABYTE, "{:.0f}"),
    ("task runs per generation", lambda m: m.task_runs / m.rows, "{:.2f}"),
    ("stored", lambda m: m.stored, "{:.0f}"),
)
_CHARTED = (0, 1, 4, 7)


def campaign_table(peer: Measurement, ours: Measurement) -> Table:
    """Return one campaign made both ways."""
    binding = peer.rows > LIMIT_PER_MINUTE
    rows = tuple(
        (name, form.format(read(peer)), form.format(read(ours)), ratio(read(ours), read(peer)))
        for name, read, form in _CAMPAIGN_FIGURES
        if binding or name != _PACE
    )
    note = (
        f"* in the service's seconds. Half pictures, half clips. The limit: {LIMIT_PER_MINUTE} requests a minute, in "
        "the sandbox a sliding window that lets as many come at once: the peer uses them in a burst, ours keeps a pace."
    )
    return Table(f"{peer.rows} generations", ("", PEER, OURS, "ours : peer"), rows, note)


def campaign_chart(pairs: Sequence[tuple[Measurement, Measurement]]) -> str:
    """Return the key figures of all campaigns as bars."""
    panels = []
    for name, read, form in (_CAMPAIGN_FIGURES[number] for number in _CHARTED):
        groups = [
            (f"{peer.rows}", tuple(Bar(way, read(m), form.format(read(m))) for way, m in ((PEER, peer), (OURS, ours))))
            for peer, ours in pairs
        ]
        panels.append(Panel(name.replace("s*", "s of the service"), tuple(groups)))
    title = f"{' / '.join(str(peer.rows) for peer, _ in pairs)} generations at 120 requests a minute"
    return chart(title, panels, {PEER: "first", OURS: "ours"})


def overhead_table(found: Sequence[Measurement]) -> Table:
    """Return what Prefect's task runs cost, without a rate limit and with a clock too fast for waiting to count."""
    peer = next(measured for measured in found if measured.way == "peer")
    rows = tuple(
        (
            _WAYS[m.way],
            f"{m.task_runs / m.rows:.2f}",
            f"{m.cpu_per_generation * 1000:.0f}",
            ratio(m.cpu_seconds, peer.cpu_seconds),
            f"{m.wall_seconds / m.rows * 1000:.0f}",
            ratio(m.wall_seconds, peer.wall_seconds),
            f"{m.recorded_after_seconds:.1f}",
            ratio(m.wall_seconds + m.recorded_after_seconds, peer.wall_seconds + peer.recorded_after_seconds),
        )
        for m in found
    )
    heading = ("", "task runs", "CPU ms", ": peer", "wall ms", ": peer", "recorded s later", "wall + recorded : peer")
    note = "Per generation; 'recorded' is when Prefect's server shows all task runs, after the flow has ended."
    return Table(f"Orchestrating {peer.rows} pictures", heading, rows, note)


def overhead_chart(found: Sequence[Measurement]) -> str:
    """Return CPU and recording time as bars."""
    figures: tuple[tuple[str, Callable[[Measurement], float], str], ...] = (
        ("task runs per generation", lambda m: m.task_runs / m.rows, "{:.2f}"),
        ("CPU ms per generation", lambda m: m.cpu_per_generation * 1000, "{:.0f}"),
        ("seconds until all is made and recorded", lambda m: m.wall_seconds + m.recorded_after_seconds, "{:.1f}"),
    )
    panels = [
        Panel(name, (("", tuple(Bar(_short(m), read(m), form.format(read(m))) for m in found)),))
        for name, read, form in figures
    ]
    return chart("What orchestration costs", panels, {PEER: "first", "campaign": "ours", "generate": "second"})


def _short(measured: Measurement) -> str:
    return _WAYS[measured.way].rpartition(": ")[2]


def media_table(found: Sequence[Transfer]) -> Table:
    """Return how one file came into a store; the ratios are to the same place, streamed by hand."""
    rows = []
    for moved in found:
        peer = _streamed(found, moved)
        rows.append(
            (
                f"{moved.size / _MEGABYTE:.0f} MB into a {moved.place}: {_MOVERS[moved.way]}",
                f"{moved.bytes_per_second / _MEGABYTE:.0f}",
                ratio(moved.bytes_per_second, peer.bytes_per_second),
                f"{moved.grown_bytes / _MEGABYTE:.0f}",
                ratio(moved.grown_bytes, peer.grown_bytes),
                f"{moved.cpu_seconds / moved.size * 1024 * _MEGABYTE:.1f}",
                ratio(moved.cpu_seconds, peer.cpu_seconds),
            )
        )
    heading = ("", "MB/s", ": streamed", "memory MB", ": streamed", "CPU s/GB", ": streamed")
    note = "Memory: the peak above the use before. Ours also computes a digest and checks that the MP4 is complete."
    return Table("Downloading one large video", heading, tuple(rows), note)


def media_chart(found: Sequence[Transfer]) -> str:
    """Return memory and throughput as bars."""
    figures: tuple[tuple[str, Callable[[Transfer], float], str], ...] = (
        ("memory, MB", lambda m: m.grown_bytes / _MEGABYTE, "{:.0f}"),
        ("MB per second", lambda m: m.bytes_per_second / _MEGABYTE, "{:.0f}"),
    )
    panels = []
    for name, read, form in figures:
        for place in dict.fromkeys(moved.place for moved in found):
            groups = tuple(
                (
                    f"{size / _MEGABYTE:.0f} MB",
                    tuple(
                        Bar(_MOVERS[moved.way], read(moved), form.format(read(moved)))
                        for moved in found
                        if (moved.size, moved.place) == (size, place)
                    ),
                )
                for size in sorted({moved.size for moved in found})
            )
            panels.append(Panel(f"{name}, into a {place}", groups))
    classes = {_MOVERS["ours"]: "ours", _MOVERS["streamed"]: "first", _MOVERS["whole"]: "second"}
    return chart("Downloading one large video", panels, classes)


def _streamed(found: Sequence[Transfer], moved: Transfer) -> Transfer:
    return next(one for one in found if (one.way, one.place, one.size) == ("streamed", moved.place, moved.size))


def accident_table(found: Sequence[Outcome]) -> Table:
    """Return what was paid and what was stored, per accident."""
    by_way = {(outcome.accident, outcome.way): outcome for outcome in found}
    rows = []
    for accident in dict.fromkeys(outcome.accident for outcome in found):
        peer, ours = by_way[accident, "peer"], by_way[accident, "campaign"]
        rows.append((accident, f"{peer.purchases}", peer.stored, f"{ours.purchases}", ours.stored))
    heading = ("one picture, and", f"{PEER}: bought", "stored", f"{OURS}: bought", "stored")
    return Table("When things go wrong", heading, tuple(rows))


def shared_limit_table(peer: SharedLimitUse, ours: SharedLimitUse) -> Table:
    """Return what workers that share the limit sent in each way."""
    row = (
        "requests a minute",
        f"{peer.requests_per_minute:.0f}",
        f"{ours.requests_per_minute:.0f}",
        ratio(ours.requests_per_minute, peer.requests_per_minute),
    )
    note = f"By hand: Prefect's `rate_limit` before each request. The limit: {LIMIT_PER_MINUTE} requests a minute."
    return Table(f"{ours.workers} workers that share the limit", ("", PEER, OURS, "ours : peer"), (row,), note)
