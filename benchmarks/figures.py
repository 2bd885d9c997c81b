"""Tables for a terminal or a README, and bar charts as small SVG files that read well on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABEL, _VALUE = 720, 190, 130
_BAR, _STEP = 14, 20
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2430 }
.title { font-size: 16px; font-weight: 600 } .panel { font-weight: 600 } .quiet { fill: #667085 }
.ours { fill: #0f766e } .first { fill: #98a2b3 } .second { fill: #d0a24c }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ef } .quiet { fill: #98a2b3 } .ours { fill: #2dd4bf }
  .first { fill: #7a8496 } .second { fill: #b98a36 }
}
"""


@dataclass(frozen=True)
class Table:
    """A small table: a title, a heading and rows of text."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.heading) for row in self.rows):
            raise ValueError(f"a row of {self.title!r} has not as many cells as its heading")

    def __str__(self) -> str:
        """Return it as Markdown, aligned for reading as it is."""
        widths = [max(len(row[column]) for row in (self.heading, *self.rows)) for column in range(len(self.heading))]
        lines = [_line(self.heading, widths), _line([_rule(*column) for column in enumerate(widths)], widths)]
        lines += [_line(row, widths) for row in self.rows]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(aligned)} |"


def _rule(column: int, width: int) -> str:
    return f"{'-' * (width - 1)}:" if column else "-" * width


def ratio(ours: float, peer: float) -> str:
    """Return how many times the peer's figure ours is."""
    if not peer or ours == peer:
        return "1" if ours == peer else "-"
    return f"{ours / peer:.2g}" if ours / peer < 100 else f"{ours / peer:.0f}"


@dataclass(frozen=True)
class Bar:
    """One bar: whose it is, how long, and what is written at its end."""

    series: str
    value: float
    text: str


@dataclass(frozen=True)
class Panel:
    """Bars on one scale, in groups with a name each."""

    title: str
    groups: tuple[tuple[str, tuple[Bar, ...]], ...]


def chart(title: str, panels: Sequence[Panel], classes: dict[str, str]) -> str:
    """Return an SVG with the panels below each other; `classes` gives each series its colour."""
    body, y = [f'<text class="title" x="0" y="20">{escape(title)}</text>'], 40
    for panel in panels:
        body.append(f'<text class="panel" x="0" y="{y + 12}">{escape(panel.title)}</text>')
        y += 22
        longest = max((bar.value for _, bars in panel.groups for bar in bars), default=0) or 1
        for name, bars in panel.groups:
            for number, bar in enumerate(bars):
                label = f"{name} · {bar.series}" if name else bar.series
                width = max(round(bar.value / longest * (_WIDTH - _LABEL - _VALUE), 1), 1)
                place = f'x="{_LABEL}" y="{y}" width="{width}" height="{_BAR}"'
                body += [
                    f'<text class="quiet" x="{_LABEL - 8}" y="{y + 11}" text-anchor="end">{escape(label)}</text>',
                    f'<rect class="{classes[bar.series]}" {place} rx="2"/>',
                    f'<text x="{_LABEL + width + 6}" y="{y + 11}">{escape(bar.text)}</text>',
                ]
                y += _STEP if number < len(bars) - 1 else _STEP + 4
        y += 10
    size = f'viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *body, "</svg>", ""])
