"""The rows of a CSV text as spreadsheets, programs and people write it; strict where a guess could be bought."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from prefect_veogen.campaign.cells import UNNAMED, Wrong
from prefect_veogen.campaign.columns import FIELDS
from prefect_veogen.errors import InvalidManifest

_SEPARATORS = ",;\t|"
# Not `splitlines`: a text may hold other line breaks than those an editor and a spreadsheet count.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_BLANK = re.compile(rf"[\s\"{_SEPARATORS}]*")
_DECLARED = re.compile(rf"\"?sep=([{_SEPARATORS}])\"?[\r\n]*", re.IGNORECASE)
_DOUBLED = 'quotes within it are doubled: "a ""red"" hat"'
_TOO_WIDE = (
    f"the line has more cells than the heading; a text with {{!r}} in it needs quotes right around it, and {_DOUBLED}"
)
_log = logging.getLogger("prefect_veogen")


def csv_rows(text: str, preferred: str = ",") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows, each with the line it begins in; a cell without a heading is a `Wrong`.

    The separator is the one that Excel's line `sep=;` names, or the one that makes the most fields of the heading,
    the preferred one if in doubt. Blank lines are not rows.

    Raises:
        InvalidManifest: it isn't valid CSV, or has two columns of one name.
    """
    line, position, separator = _start(text)
    separator = separator or _separator_of(text, position, preferred)
    reader = csv.reader(_lines(text, position), delimiter=separator, strict=True)
    records = _records(reader, line)
    names = [name.strip() for name in next(records, (0, []))[1]]
    _check(names)
    is_reported = False
    for number, cells in records:
        fields: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=False) if name}
        beyond = [cell for cell in cells[len(names) :] if cell.strip()]
        unnamed = [place for place, name in enumerate(names) if not name and "".join(cells[place : place + 1]).strip()]
        if beyond:
            fields[UNNAMED] = Wrong(_TOO_WIDE.format(separator), beyond)
        elif unnamed and not is_reported:  # it is about the heading, so once is enough
            is_reported = True
            fields[UNNAMED] = Wrong(_without_heading(unnamed[0]), cells[unnamed[0]])
        yield f"line {number}", fields


def _start(text: str) -> tuple[int, int, str | None]:
    """Return the line and the position of the heading, and the separator that a line before it declares."""
    separator = None
    for number, found in enumerate(_LINE.finditer(text), start=1):
        if declared := _DECLARED.fullmatch(found[0]):
            separator = declared[1]
        elif not _BLANK.fullmatch(found[0]):
            return number, found.start(), separator
    return 1, len(text), separator


def _lines(text: str, position: int) -> Iterator[str]:
    return (found[0] for found in _LINE.finditer(text, position))


def _separator_of(text: str, position: int, preferred: str) -> str:
    made: dict[str, tuple[int, int]] = {}
    for separator in (preferred, *_SEPARATORS):
        try:
            names = [name.strip() for name in next(csv.reader(_lines(text, position), delimiter=separator), [])]
        except csv.Error:
            names = []
        made[separator] = sum(name in FIELDS for name in names), len(names)
    found = max(made, key=made.__getitem__)  # the first of those with the most fields, then cells
    if found != preferred:
        _log.info("The manifest's cells are separated by %r, as its heading shows.", found)
    return found


def _records(reader: Any, line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that aren't blank, with the line they begin in, as an editor counts."""
    while True:
        begin = line + reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            ends = "end of data" not in str(error)
            where, problem = (
                (line + reader.line_num - 1, str(error)) if ends else (begin, "it opens a quote without end")
            )
            if "expected after" in problem:
                problem += f"; a text in quotes ends there, and {_DOUBLED}"
            raise InvalidManifest([f"it is not valid CSV: line {where}: {problem}"]) from None
        if cells is None:
            return
        # Spreadsheets often end with rows of nothing but separators.
        if any(cell and not cell.isspace() for cell in cells):
            yield begin, cells


def _check(names: Sequence[str]) -> None:
    doubles = sorted({name for name in names if name and names.count(name) > 1})
    if doubles:
        raise InvalidManifest([f"it has more than one column {name!r}" for name in doubles])


def _without_heading(place: int) -> str:
    hint = "; pandas writes its index there unless told index=False, and R its row names unless row.names=FALSE"
    return f"column {place + 1} has no heading, but cells; name it or delete it{'' if place else hint}"
