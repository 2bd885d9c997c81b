"""Labels, a caller's own words on a purchase, and the budgets that go by them."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import quote

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.masking import masked
from prefect_veogen.models.text import text_problem

Labels = Mapping[str, str]
"""A caller's own words on a purchase, no part of what is bought: `{"project": "spring"}`."""

MAX_LABELS = 32
MAX_VALUE_CHARACTERS = 200
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_NAME_RULE = "must be 1 to 63 of a-z, 0-9, '_', '.' and '-', and begin with a letter or a digit"
_MAX_USD = 1_000_000_000
_MAX_FILE_NAME = 200  # of the 255 bytes that file systems allow, the rest of a budget's file name left out
_SUCH_AS = 'such as {"project:spring": 20}'
_FORMS = f'must be an amount in USD, from 0 to {_MAX_USD}, alone or as {{"usd": 20, "per": "month"}} (or "day")'


def checked_labels(labels: Mapping[str, Any] | None) -> dict[str, str]:
    """Return labels with their values as text; numbers become text, all else that is none is refused.

    Raises:
        ConfigurationError: names or values break a rule; all that do are named.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise _refused(f"they are a {type(labels).__name__}, not names with values")
    if len(labels) > MAX_LABELS:
        raise _refused(f"there are {len(labels)} of them, and at most {MAX_LABELS} are kept")
    texts = {name: _as_text(value) for name, value in labels.items()}
    problems = [
        f"{_shown(name)}: {problem}"
        for name, text in texts.items()
        if (problem := label_name_problem(name) or _value_problem(text)) is not None
    ]
    if problems:
        raise _refused("; ".join(problems))
    return {name: text for name, text in texts.items() if text is not None}


def label_name_problem(name: object) -> str | None:
    """Return why something can't be a label's name; `None` if it can."""
    return None if isinstance(name, str) and _NAME.fullmatch(name) else f"a label's name {_NAME_RULE}"


@dataclass(frozen=True, slots=True)
class LabelBudget:
    """What may be spent on purchases with one label: for good, or per UTC day or month."""

    usd: Decimal
    per: Literal["day", "month"] | None = None


def label_budgets(budgets: object) -> dict[str, LabelBudget]:
    """Return the budgets by label, as JSON or as a mapping says them: `{"project:spring": 20}`.

    Raises:
        ValueError: it has another form; the text names the label and says what is allowed.
    """
    known = _decoded(budgets) if isinstance(budgets, str) else budgets
    if not isinstance(known, Mapping):
        raise ValueError(
            f"must be {'a JSON object' if isinstance(budgets, str) else 'labels with their caps'} {_SUCH_AS}"
        )
    return {label: _budget_of(label, value) for label, value in known.items()}


def _as_text(value: object) -> str | None:
    """Return a label's value as text, `None` if it is neither text nor a finite number."""
    match value:
        case str():
            return value
        case bool():
            return None
        case int():
            return f"{Decimal(value):f}"  # str refuses integers of thousands of digits
        case float() | Decimal() if Decimal(value).is_finite():
            return f"{value:f}" if isinstance(value, Decimal) else str(value)
        case _:
            return None


def _value_problem(text: str | None) -> str | None:
    if text is None:
        return "a label's value must be text or a number"
    if text != text.strip() or not text:
        return "a label's value must not be blank, nor begin or end with a space"
    if len(text.splitlines()) > 1:
        return "a label's value must be one line"
    if len(text) > MAX_VALUE_CHARACTERS:
        return f"a label's value has at most {MAX_VALUE_CHARACTERS} characters"
    problem = text_problem(text)
    return None if problem is None else f"a label's value {problem}"


def _refused(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"The labels can't be used: {problem}",
        next_step='Nothing was bought. Correct them, as in labels={"project": "spring"} or --label project=spring.',
    )


def _shown(name: object) -> str:
    return reprlib.repr(masked(name) if isinstance(name, str) else name)


def _decoded(text: str) -> object:
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_without_twins)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" ({error})" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"must be JSON {_SUCH_AS}; a shell needs '…' around it{where}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a valid amount: each {_FORMS}")


def _without_twins(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON; of two caps on the same label, one would silently be none."""
    known: dict[str, object] = {}
    for name, value in pairs:
        if name in known:
            raise ValueError(f"{_shown(name)} is there twice")
        known[name] = value
    return known


def _budget_of(label: object, value: object) -> LabelBudget:
    problem = _label_problem(label)
    if problem is not None:
        raise ValueError(f"{_shown(label)}: {problem}")
    usd, per = value, None
    if isinstance(value, LabelBudget):
        usd, per = value.usd, value.per
    elif isinstance(value, Mapping):
        usd, per = value.get("usd"), value.get("per")
        if value.keys() - {"usd", "per"} or ("per" in value and per not in ("day", "month")):
            raise ValueError(f"{_shown(label)}: {_FORMS}")
    if isinstance(usd, bool) or not isinstance(usd, int | float | Decimal):
        raise ValueError(f"{_shown(label)}: {_FORMS}")
    amount = Decimal(str(usd)) if isinstance(usd, float) else Decimal(usd)
    if not amount.is_finite() or not 0 <= amount <= _MAX_USD:
        raise ValueError(f"{_shown(label)}: {_FORMS}")
    return LabelBudget(amount, per)


def _label_problem(label: object) -> str | None:
    """Return why something can't be a label with a budget; `None` if it can."""
    name, colon, value = label.partition(":") if isinstance(label, str) else ("", "", "")
    if not colon:
        return 'must be a label and its value, such as "project:spring"'
    if value == "*":
        return "must name one value: there is no cap for each of them"
    if len(quote(f"{name}:{value}", safe="")) > _MAX_FILE_NAME:
        return "is too long: a budget is a file with that name"
    return label_name_problem(name) or _value_problem(value)
