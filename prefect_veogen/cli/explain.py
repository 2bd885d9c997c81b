"""`explain`: what an error means, whether anything was bought, and what to do; from the entries of docs/errors.md."""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_veogen.cli.terminal import say, table
from prefect_veogen.models import nearest

if TYPE_CHECKING:
    from argparse import Namespace

_PAGE = "errors.md"


def explain(options: Namespace) -> int:
    """Write the entry of one error, or the list of all; return 1 if there is no such error."""
    entries = read_entries()
    if options.error is None:
        table(("ERROR", "WHAT HAPPENED"), [(name, _first_sentence(text)) for name, text in entries.items()])
        say("", "More about one: prefect-veogen explain StillRunning")
        return 0
    names = {name.lower(): name for name in entries}
    wanted = options.error.rpartition(".")[2].lower()
    if wanted not in names:
        near = nearest(wanted, names)
        hint = f"Is {names[near]} meant?" if near else "`prefect-veogen explain` lists all."
        sys.stderr.write(f"Error: There is no error {options.error!r}\nWhat to do: {hint}\n")
        return 1
    say(names[wanted], style="bold")
    say("", *_paragraphs(entries[names[wanted]]))
    return 0


def read_entries() -> dict[str, str]:
    """Return the text of each error's entry by its class's name, in the order of the page."""
    page = files("prefect_veogen") / "cli" / _PAGE
    if not page.is_file():  # a checkout, where the page is where it is written
        page = Path(__file__).parents[2] / "docs" / _PAGE
    parts = re.split(r"^##+ (\w+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _paragraphs(text: str) -> list[str]:
    """Return an entry's points for a terminal: each in one line, which the terminal wraps, without Markdown's marks."""
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("**", "")
    return [" ".join(point.split()) for point in re.split(r"^- ", plain, flags=re.MULTILINE) if point]


def _first_sentence(text: str) -> str:
    happened = _paragraphs(text)[0].removeprefix("What happened. ")
    return re.split(r"(?<=[.])\s|: ", happened)[0].rstrip(".")
