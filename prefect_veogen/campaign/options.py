"""What holds for all rows of a manifest: their take, what they take along, how their prompts are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_veogen.campaign.columns import FIELDS, LABEL, RESULT_COLUMNS, is_of_results
from prefect_veogen.campaign.template import names_in
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models.labels import checked_labels

MAX_VARIANTS = 100

TakeOf = Callable[[Any], Any]
Carry = Sequence[str] | Literal["*"]
"""Columns that come along into results and sidecars, and are no part of what is bought; "*": all that are no field."""


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What holds for all rows of a manifest.

    A row without a `take` of its own has this one; `take_of` fills in either. `carry` names the columns to take along,
    "*" all that are no field of a row. The templates make the prompts of rows without one. `labels` are those of all
    rows; a row's own win. Each row is made in as many `variants`, unless it says itself how many.
    """

    take: int | str = 1
    take_of: TakeOf = lambda take: take
    carry: Carry = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    prompt_template: str | None = None
    motion_template: str | None = None
    variants: int = 1
    named: tuple[str, ...] = field(init=False)
    """The columns that the templates name."""

    def __post_init__(self) -> None:
        checked_labels(self.labels)
        _check_option("carry", self.carry, _carry_problem(self.carry))
        _check_option("variants", self.variants, variants_problem(self.variants))
        for name in ("prompt_template", "motion_template"):
            template = getattr(self, name)
            is_text = template is None or (isinstance(template, str) and template.strip())
            _check_option(name, template, None if is_text else "must be text such as 'A {color} {name}, studio light'")
            _check_option(name, template, _template_problem(template))
        # Once: each row's columns are looked up in it.
        named = names_in(f"{self.prompt_template or ''} {self.motion_template or ''}")
        object.__setattr__(self, "named", tuple(named))

    def carries(self, column: str) -> bool:
        """Tell whether a column is taken along; a row's own fields and labels never are, nor what became of it."""
        if column in FIELDS or column.startswith(LABEL) or is_of_results(column):
            return False
        return "*" in self.carry or column in self.carry or column in self.named


def variants_problem(value: Any) -> str | None:
    """Return why a value can't be a number of variants; `None` if it can."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_VARIANTS:
        return f"must be a whole number from 1 to {MAX_VARIANTS}"
    return None


def _template_problem(template: str | None) -> str | None:
    for name in names_in(template or ""):
        if name in FIELDS or name.startswith(LABEL):
            return f"{{{name}}} is a field of the row itself; copy it into a column of another name, and name that"
    return None


def _carry_problem(carry: Any) -> str | None:
    if isinstance(carry, list | tuple) and all(isinstance(name, str) for name in carry):
        taken = [name for name in carry if name in RESULT_COLUMNS and name not in FIELDS]
        return (
            f"the results have a column {taken[0]!r} of their own; rename it to something else in your table"
            if taken
            else None
        )
    return None if carry == "*" else 'must be a list of columns, or "*" for all'


def _check_option(name: str, value: Any, problem: str | None) -> None:
    if problem is not None:
        raise ConfigurationError(f"{name}={value!r}: {problem}", next_step="Nothing was bought. Correct it.")
