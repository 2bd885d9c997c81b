"""The commands' output: tables and sentences for people, JSON for programs, both plain when piped."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from prefect_veogen.errors import UnknownSubmission, VeogenError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - called while handling it; rich would exit with 1, `main` handles it


def console() -> Console:
    """Return a console on stdout which shows text as it is: prompts may hold brackets and emoji codes."""
    return _Console(highlight=False, markup=False, emoji=False)


def write_json(value: Any) -> None:
    """Write a value as JSON; money as decimal strings, times in ISO 8601."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def say(*lines: str, style: str | None = None) -> None:
    """Write lines of text."""
    out = console()
    for line in lines:
        out.print(Text(line, style=style or ""), soft_wrap=True)


def complain(error: VeogenError) -> None:
    """Write an error and its next step to stderr."""
    lines = [f"Error: {error}"]
    if isinstance(error, UnknownSubmission) and error.candidates:
        lines.append(f"Candidate generations: {', '.join(error.candidates)}")
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Write a table without frames; the columns named in `right` are aligned to the right.

    The last column is never cut or wrapped, so that a path or a key in it can be copied.
    """
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        if any(line):
            cells = [_padded(cell, width, head in right) for cell, width, head in zip(line, widths, heads, strict=True)]
            say("  ".join(cells).rstrip(), style="bold" if number == 0 else None)


def _padded(cell: str, width: int, align_right: bool) -> str:  # noqa: FBT001 - a column is one or the other
    space = " " * (width - cell_len(cell))
    return space + cell if align_right else cell + space


def shortened(text: str, max_characters: int = 48) -> str:
    """Return a text on one line, with an ellipsis if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= max_characters else f"{line[: max_characters - 1]}…"


def _plain(value: Any) -> Any:
    match value:
        case Decimal():
            return f"{value:f}"
        case datetime():
            return value.isoformat()
        case BaseModel():
            return value.model_dump(mode="json", exclude_none=True, by_alias=True)
        case VeogenError():
            return value.message
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        case _:
            return str(value)
