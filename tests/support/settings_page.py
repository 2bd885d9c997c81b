"""The table of docs/settings.md, from the fields of `Settings`; `make settings` writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefect_veogen import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
MARKS = ("<!-- settings -->\n", "<!-- /settings -->\n")
GIB = 1024**3


def table_of_settings() -> str:
    """Return the table of all settings: variable, default, description."""
    lines = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        description = " ".join((field.description or "").split())
        lines.append(f"| `VEOGEN_{name.upper()}` | {_shown(field.default)} | {description} |")
    return "".join(f"{line}\n" for line in lines)


def written_table() -> str:
    """Return the table as the page has it."""
    return PAGE.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]


def write_table() -> None:
    """Replace the page's table."""
    pattern = f"(?<={MARKS[0]}).*(?={MARKS[1]})"
    PAGE.write_text(re.sub(pattern, lambda _: table_of_settings(), PAGE.read_text(), flags=re.DOTALL))


def _shown(default: Any) -> str:
    if default is None:
        return ""
    return f"{default // GIB} GiB" if isinstance(default, int) and default >= GIB else f"`{default}`"


if __name__ == "__main__":
    write_table()
