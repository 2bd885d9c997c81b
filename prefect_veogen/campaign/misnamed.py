"""Files whose names end in what they are not: which form they look like, said instead of the first wrong character."""

from __future__ import annotations

import csv
import json
from typing import Final

from prefect_veogen.campaign.columns import FIELDS

NAME_IT: Final = "Nothing was bought. Name it for what it is, or give the file that was meant."
_MAX_HEADING = 10_000


def other_form(text: str, form: str) -> str | None:
    """Return what a text that is not valid in a form looks like: JSON, JSON Lines, CSV or YAML; `None` if like none."""
    if not text.strip():
        return None
    found = _form_of(text.strip())
    return None if found is None or form in found[1] else f"it looks like {found[0]}, whose name ends in .{found[1][0]}"


def is_json(text: str) -> bool:
    """Tell whether a text is JSON or JSON Lines, which no heading of a table is."""
    return text.lstrip().startswith(("[", "{")) and (_is_document(text) or _is_document(_first_line(text)))


def _form_of(text: str) -> tuple[str, tuple[str, ...]] | None:
    line = _first_line(text)
    if text.startswith(("[", "{")) and _is_document(text):
        return "JSON", ("json",)
    if line.startswith("{") and _is_document(line):
        return "JSON Lines", ("jsonl",)
    if line.startswith("- ") or line.rstrip() in ("rows:", "---"):
        return "YAML", ("yaml",)
    for name, separator in (("CSV", ","), ("CSV", ";"), ("TSV", "\t")):
        names = next(csv.reader([line], delimiter=separator), [])
        if len({name.strip() for name in names} & {*FIELDS}) > 1:
            return name, ("csv", "tsv") if name == "CSV" else ("tsv", "csv")
    return None


def _first_line(text: str) -> str:
    return text.lstrip()[:_MAX_HEADING].splitlines()[0] if text.strip() else ""


def _is_document(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False
