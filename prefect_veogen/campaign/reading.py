"""Rows from a manifest's records, in one pass that finds all that is wrong: what concerns a column is said once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any, NamedTuple

from prefect_veogen.campaign.cells import UNNAMED
from prefect_veogen.campaign.columns import FIELDS, LABEL, MOTION, own_column_problem
from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.options import RowOptions, variants_problem
from prefect_veogen.campaign.records import Record
from prefect_veogen.campaign.references import ROW, picture_of_row
from prefect_veogen.campaign.results import is_carried, is_result, item_of, looks_like_result
from prefect_veogen.campaign.rows import Row, Rows
from prefect_veogen.campaign.template import fill, missing_columns, unfilled_problem, without_escapes
from prefect_veogen.errors import ConfigurationError, InvalidManifest, InvalidRequest, Problem
from prefect_veogen.models import MAX_DIGITS, GenerationRequest, nearest, text_problem
from prefect_veogen.models.labels import checked_labels

DEFAULT_MOTION_MODEL = "veo-3.1-fast"
MAX_ID_CHARACTERS = 200
_MAX_UNKNOWN, _MAX_SHOWN = 3, 20


class Reading(NamedTuple):
    """The rows of a manifest that are right, and what is wrong with the others and with its columns."""

    rows: Rows
    problems: list[str]


def rows_of(records: Iterable[Record], options: RowOptions) -> Rows:
    """Return the rows of a manifest's records, one per variant.

    Raises:
        InvalidManifest: rows are wrong; all of them are named.
    """
    rows, problems = read_rows(records, options)
    if problems:
        raise InvalidManifest(problems)
    return rows


def read_rows(records: Iterable[Record], options: RowOptions) -> Reading:
    """Return the rows of a manifest's records, one per variant, with all that is wrong: none may be bought then."""
    table = _Table(options)
    for record in records:
        table.add(record)
    return Reading(table.rows, table.problems())


class _Wrong(NamedTuple):
    """A problem of one row, and which column it has no value in, if that is the problem."""

    text: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class _Columns:
    labels: Mapping[str, Any]
    carried: Mapping[str, Any]
    is_result: bool = False
    """Whether the record is of a table of results, which has prompts as they were sent."""


class _Table:
    """One pass over a manifest's records."""

    def __init__(self, options: RowOptions) -> None:
        self.rows = Rows()
        self._options = options
        self._found: list[_Wrong] = []
        self._ids: set[str] = set()
        self._keys: dict[tuple[str, str], str] = {}
        self._columns: dict[str, None] = {}
        self._filled: set[str] = set()
        self._reported: set[str] = set()
        self._unknown: dict[str, str] = {}
        self._missed: Counter[str] = Counter()
        self._records = 0
        self._judged = 0
        self._has_results = False

    def add(self, record: Record) -> None:
        self._records += 1
        was_result = looks_like_result(record.fields)
        carries = is_carried if was_result else self._options.carries
        empty: dict[str, Any] = dict.fromkeys(name for name in record.columns if carries(name))
        fields = empty | dict(record.fields)
        self._columns |= dict.fromkeys(record.columns)
        self._filled |= record.fields.keys()
        label = record.where
        identity = fields.get("id")
        if id_problem(identity) is None:
            label += f" ({identity})"
            self._ids.add(str(identity))
            key = (str(identity), str(fields["take"]) if is_result(fields) else "")  # variants share an id
            if (first := self._keys.setdefault(key, record.where)) != record.where:
                self._note(label, f"id: is used by {first} already")
        self._note(label, *record.problems)
        columns = self._split_result(fields, label) if was_result else self._split(fields, label)
        if columns is None or record.problems:
            return
        rows, problems = _rows(fields, columns, label, self._options)
        self._found += [_Wrong(f"{label}: {problem.text}", problem.missing) for problem in problems]
        self._judged += 1
        self._missed.update(
            dict.fromkeys(problem.missing for problem in problems if problem.missing is not None).keys()
        )
        for row in rows:
            self.rows.append(row)

    def problems(self) -> list[str]:
        """Return all that is wrong, what concerns whole columns first: of a thousand rows it explains the most."""
        if not self._records:
            return ["it has no rows"]
        missing = self._missing_columns()
        of_rows = [problem.text for problem in self._found if problem.missing not in missing]
        of_columns = [*missing.values(), *self._empty_columns(), *self._unknown_columns()]
        return [*of_columns, *of_rows, *self.rows.reference_problems(self._ids)]

    def _note(self, label: str, *problems: str) -> None:
        self._found += [_Wrong(f"{label}: {problem}") for problem in problems]

    def _split(self, fields: dict[str, Any], label: str) -> _Columns:
        """Take labels and carried columns out of the fields; what remains unknown is reported, once per heading."""
        labels, carried = dict(self._options.labels), {}
        for name in [name for name in fields if name not in FIELDS]:
            value = fields.pop(name)
            if name.startswith(LABEL):
                labels[name.removeprefix(LABEL)] = value
            elif (problem := own_column_problem(name)) is not None:
                self._report(name, label, f"{name or UNNAMED}: {problem}")
            elif self._options.carries(name):
                carried[name] = value
            else:
                self._unknown.setdefault(name, f"{label}: {_unknown(name, value)}")
        return _Columns(labels, carried)

    def _split_result(self, fields: dict[str, Any], label: str) -> _Columns | None:
        """Take what became of the row out of a table of results; what ended well is not made again."""
        self._has_results = True
        item = self._item(fields, label)
        if item is None:
            return None
        for name in item.carried:
            if (problem := own_column_problem(name)) is not None:
                self._report(name, label, f"{name or UNNAMED}: {problem}")
        if (variants := fields.get("variants", 1)) != 1:
            problem = "a table of results has a row for each variant; add the takes that you want as rows"
            self._note(label, str(Problem("variants", variants, problem)))
        self.rows.keep([item])
        for name in [name for name in fields if name not in FIELDS]:
            del fields[name]
        fields["variants"] = 1
        return _Columns({**self._options.labels, **item.labels}, item.carried, is_result=True)

    def _item(self, fields: dict[str, Any], label: str) -> CampaignItem | None:
        if not is_result(fields):
            problem = "a row of a table of results keeps what it was; it is made again once it asks for something else"
            self._note(label, str(Problem("status", fields.get("status"), problem, tuple(ItemStatus))))
            return None
        try:
            return item_of(fields)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            why = next(iter(str(error).splitlines()), "")
            self._note(label, f"its outcome can't be read: {why}; give the table of results as the campaign wrote it")
            return None

    def _report(self, name: str, label: str, problem: str) -> None:
        if name not in self._reported:
            self._reported.add(name)
            self._note(label, problem)

    def _missing_columns(self) -> dict[str, str]:
        """Return the problems of columns which no row has, or none a value in, by their names: a typo, said once."""
        asked = (*self._options.named, *([] if isinstance(self._options.carry, str) else self._options.carry))
        said = {name: "no row has such a column" for name in asked if name not in self._columns and name != "*"}
        for name, count in self._missed.items():
            if name not in self._filled and count == self._judged > 1:  # of a single row, its own problems say the same
                why = "all its cells are empty" if name in self._columns else "no row has such a column"
                said[name] = f"is required, and {why}" if name in FIELDS else why
        return {
            name: str(Problem(name or UNNAMED, None, why, None, nearest(name.lower(), self._columns.keys() - {name})))
            for name, why in said.items()
        }

    def _empty_columns(self) -> list[str]:
        """Return the problems of columns without a value in any row: whether a table is right doesn't depend on it."""
        if self._has_results:
            return []  # beside the rows of a table of results, new ones leave its columns empty
        problems = []
        for name in self._columns:
            is_known = name in FIELDS or name.startswith(LABEL) or self._options.carries(name)
            if is_known or name in ("", UNNAMED, *self._reported, *self._unknown):
                continue
            if (problem := own_column_problem(name)) is not None:
                problems.append(f"{name}: {problem}")
            else:
                self._unknown[name] = f"{_unknown(name, None)}, or leave out what is empty"
        return problems

    def _unknown_columns(self) -> list[str]:
        """Return the problems of columns that are no fields: many of them, as an export has them, in one."""
        alike = [name for name in self._unknown if nearest(name.lower(), FIELDS) is None]
        if len(alike) <= _MAX_UNKNOWN:
            return [*self._unknown.values()]
        typos = [problem for name, problem in self._unknown.items() if name not in alike]
        more = f" and {len(alike) - _MAX_SHOWN} more" if len(alike) > _MAX_SHOWN else ""
        names, fields = ", ".join(map(repr, alike[:_MAX_SHOWN])), ", ".join(FIELDS)
        how = f"carry=[{alike[0]!r}, …] (--carry {quote(alike[0])} …), or all of them with carry=\"*\" (--carry '*')"
        return [*typos, f"{names}{more} are not fields of a row; allowed: {fields}; or take along some with {how}"]


# ---------------------------------------------------------------- one row


def _rows(fields: dict[str, Any], columns: _Columns, label: str, options: RowOptions) -> tuple[list[Row], list[_Wrong]]:
    """Return the rows of one record, one per variant, and what is wrong with it: then there are none."""
    problems: list[_Wrong] = []
    identity = fields.pop("id", None)
    if (wrong := id_problem(identity)) is not None:
        problems.append(_wrong(Problem("id", identity, wrong)))
    variants = fields.pop("variants", options.variants)
    if (wrong := variants_problem(variants)) is not None:
        problems.append(_wrong(Problem("variants", variants, wrong)))
    _fill_in(fields, "prompt", options, columns, problems)
    _fill_in(fields, f"{MOTION}prompt", options, columns, problems)
    motion = {name.removeprefix(MOTION): fields.pop(name) for name in list(fields) if name.startswith(MOTION)}
    labels = _labels(columns.labels, problems)
    fields = _with_pictures_of_rows(fields)
    request = _collected(
        lambda: GenerationRequest(**fields | {"take": options.take_of(fields.get("take", options.take))}), problems
    )
    if motion:
        problems += _motion_problems(motion)
    if request is None or problems:
        return [], problems
    row = Row(str(identity), request, _motion_of(request, motion) if motion else None, labels, columns.carried, label)
    return [_variant(row, number) for number in range(1, variants + 1)], []


def _wrong(problem: Problem, prefix: str = "") -> _Wrong:
    """Return a problem of a row; of a value that is missing the column may be absent."""
    is_missing = problem.message.startswith("is required")
    return _Wrong(f"{prefix}{problem}", f"{prefix}{problem.field}" if is_missing else None)


def _variant(row: Row, number: int) -> Row:
    if number == 1:
        return row
    request = row.request.model_copy(update={"take": f"{row.request.take}.{number}"})
    return Row(row.id, request, row.motion, row.labels, row.carried, row.where)


def _fill_in(fields: dict[str, Any], name: str, options: RowOptions, columns: _Columns, problems: list[_Wrong]) -> None:
    """Set a prompt from its template, unless the row has its own; refuse one which nothing has filled in."""
    option = "prompt_template" if name == "prompt" else "motion_template"
    template: str | None = getattr(options, option)
    is_filled = template is not None and name not in fields
    if template is not None and is_filled:
        missing = missing_columns(template, columns.carried)
        problems += [
            _Wrong(f"{name}: the column {column!r} of its template {problem}", column)
            for column, problem in missing.items()
        ]
        fields[name] = template if missing else fill(template, columns.carried)
        if missing:
            return
    elif columns.is_result:
        return
    prompt = fields.get(name)
    if isinstance(prompt, str):
        if (problem := unfilled_problem(prompt, option, is_filled=is_filled)) is not None:
            problems.append(_wrong(Problem(name, prompt, problem)))
        fields[name] = without_escapes(prompt)


def _with_pictures_of_rows(fields: dict[str, Any]) -> dict[str, Any]:
    images = fields.get("image_urls")
    if not isinstance(images, list | tuple):
        return fields  # the request says what is wrong with it
    given = [picture_of_row(item) if isinstance(item, str) and item.startswith(ROW) else item for item in images]
    return fields | {"image_urls": given}


def id_problem(value: Any) -> str | None:
    """Return why a value can't be a row's id; `None` if it can."""
    if value is None:
        return "is required"
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "must be text or a whole number"
    if isinstance(value, int):
        return None if abs(value) < 10**MAX_DIGITS else f"has more than {MAX_DIGITS} digits"
    if len(value) > MAX_ID_CHARACTERS:
        return f"is {len(value)} characters long; at most {MAX_ID_CHARACTERS} are allowed"
    return "must be one line" if re.search(r"[\t\r\n]", value) else text_problem(value)


def _unknown(name: str, value: Any) -> str:
    problem = Problem(name, value, "is not a field of a row", FIELDS, nearest(name.lower(), FIELDS))
    return f"{problem}; or take it along with carry=[{name!r}] (--carry {quote(name)})"


def _motion_problems(motion: dict[str, Any]) -> list[_Wrong]:
    required = Problem(f"{MOTION}prompt", None, f"is required by the other {MOTION} fields")
    problems = [] if "prompt" in motion else [_wrong(required)]
    # Without the picture, which isn't made yet and doesn't affect the other fields.
    _collected(
        lambda: GenerationRequest(**{"model": DEFAULT_MOTION_MODEL, "prompt": "-", **motion}), problems, prefix=MOTION
    )
    return problems


def _motion_of(request: GenerationRequest, motion: dict[str, Any]) -> dict[str, Any]:
    ratio = {"aspect_ratio": request.aspect_ratio} if request.aspect_ratio is not None else {}
    return {"model": DEFAULT_MOTION_MODEL, **ratio, **motion}


def _collected(
    make: Callable[[], GenerationRequest], problems: list[_Wrong], prefix: str = ""
) -> GenerationRequest | None:
    try:
        return make()
    except InvalidRequest as error:
        problems += [_wrong(problem, prefix) for problem in error.problems]
    except ConfigurationError as error:
        problems.append(_Wrong(f"take: {error.message}"))
    return None


def _labels(columns: Mapping[str, Any], problems: list[_Wrong]) -> dict[str, str]:
    try:
        return checked_labels(columns)
    except ConfigurationError as error:
        problems.append(_Wrong(error.message))
        return {}
