"""Prompts filled in from a row's columns, and the refusal of those which should have been."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from prefect_veogen.campaign.cells import is_gap

# Braces that a backslash precedes are the prompt's own, and JSON has more between its braces than one word.
_UNFILLED = re.compile(r"(?<!\\)\{\s*(\w+)\s*\}")
_NAME = r"[^{}\\\"']+"
_NAMED = re.compile(rf"(?<!\\)\{{({_NAME})\}}")
_ESCAPED = re.compile(rf"\\\{{({_NAME})\\?\}}")


def names_in(template: str) -> list[str]:
    """Return the columns that a template names: `{name}`, where a name may hold spaces."""
    return list(dict.fromkeys(name.strip() for name in _NAMED.findall(template)))


def missing_columns(template: str, columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns that can't fill the template in, each with why: nobody means to buy "a NULL hat"."""
    found = {name: _value_problem(columns.get(name)) for name in names_in(template)}
    return {name: problem for name, problem in found.items() if problem is not None}


def _value_problem(value: Any) -> str | None:
    if value is None:
        return "is empty"
    if isinstance(value, str) and is_gap(value):
        return f"reads like a gap (got {value!r}); write what is meant"
    if isinstance(value, list | dict):
        return f"is a {type(value).__name__}; make text of it in a column of its own"
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return "is infinite"
    return None


def fill(template: str, columns: Mapping[str, Any]) -> str:
    """Return the template with the columns' values for their names; all of them must be there."""
    return _NAMED.sub(lambda name: _text(columns[name[1].strip()]), template)


def without_escapes(prompt: str) -> str:
    r"""Return a prompt as the service gets it: `{word}` where the manifest has `\{word\}`."""
    return _ESCAPED.sub(r"{\1}", prompt)


def unfilled_problem(prompt: str, template: str, *, is_filled: bool) -> str | None:
    r"""Return why a prompt looks like a template that was not filled in; `None` if it doesn't.

    `template` is the option that makes such prompts, and `is_filled` says whether this one was made so.
    """
    found = _UNFILLED.search(prompt)
    if found is None:
        return None
    as_it_is = f"\\{found[0][:-1]}\\}}"
    if is_filled:
        return f"holds {found[0]} when its template is filled in; write {as_it_is} if the service is to get it"
    option = f"{template} (--{template.replace('_', '-')})"
    return (
        f"holds the placeholder {found[0]}, which nothing fills in; write {as_it_is} if the service is to get it; a "
        f"campaign fills it in if it is in {option} and this cell is empty"
    )


def _text(value: Any) -> str:
    if isinstance(value, float | Decimal) and value == int(value):
        return str(int(value))
    return str(value)
