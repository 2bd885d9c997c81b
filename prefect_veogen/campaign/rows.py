"""A campaign's rows: what each asks for, what it takes along, and which other rows' pictures it uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import Any

from prefect_veogen.campaign.cells import UNNAMED
from prefect_veogen.campaign.columns import FIELDS, LABEL, MOTION, own_column_problem
from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.options import RowOptions, variants_problem
from prefect_veogen.campaign.packed import Packed
from prefect_veogen.campaign.records import Record
from prefect_veogen.campaign.references import ROW, heroes_first, picture_of_row, reference_problems, used_rows
from prefect_veogen.campaign.results import is_result, item_of
from prefect_veogen.campaign.template import fill, missing_columns, unfilled_problem, without_escapes
from prefect_veogen.errors import ConfigurationError, InvalidManifest, InvalidRequest, Problem
from prefect_veogen.models import MAX_DIGITS, Asset, GenerationRequest, nearest, text_problem
from prefect_veogen.models.labels import checked_labels

DEFAULT_MOTION_MODEL = "veo-3.1-fast"
MAX_ID_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a campaign: the request for a picture and, with `motion`, how to animate it.

    `labels` are written into its purchases, `carried` are the manifest's own columns which it takes along into the
    results. An input `row:ID` of the request stands for the picture of another row.
    """

    id: str
    request: GenerationRequest
    motion: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    """Where it stands in the manifest, as an error names it."""

    @property
    def key(self) -> tuple[str, str]:
        """What distinguishes it in its campaign: its id and, among its variants, the take."""
        return self.id, str(self.request.take)

    @property
    def uses(self) -> tuple[str, ...]:
        """The ids of the rows whose pictures it uses."""
        return used_rows(self.request)

    def motion_request(self, image: Asset) -> GenerationRequest:
        """Return the request for the clip that begins with the picture."""
        assert self.motion is not None
        return GenerationRequest(**{**self.motion, "image_urls": [image], "take": self.request.take})


class Rows(Packed[Row]):
    """A manifest's rows, in its order, in little memory."""

    def __init__(self, rows: Iterable[Row] = (), kept: Mapping[tuple[str, str], CampaignItem] | None = None) -> None:
        self._keys: list[tuple[str, str]] = []
        self._lenders: dict[str, tuple[int, int]] = {}
        self.uses: dict[str, tuple[str, ...]] = {}
        """The ids of the rows whose pictures a row uses, by its id."""
        self.kept = dict(kept or {})
        """How rows ended in an earlier run that are not to be made again, by their keys."""
        self.unproven = {*self.kept}
        """The keys of what is kept without having been compared with what its row asks for now."""
        super().__init__(rows)

    def append(self, item: Row) -> None:
        if not item.where:
            item = replace(item, where=f"row {len(self) + 1} ({item.id})")
        self._keys.append(item.key)
        # By their takes, T, T.2, T.3 …: a table of results may come back in any order.
        lender = len(str(item.request.take)), len(self)
        self._lenders[item.id] = min(lender, self._lenders.get(item.id, lender))
        if item.uses:
            self.uses[item.id] = tuple(dict.fromkeys((*self.uses.get(item.id, ()), *item.uses)))
        super().append(item)

    @property
    def used(self) -> set[str]:
        """The ids of the rows whose pictures others use."""
        return {identity for used in self.uses.values() for identity in used}

    def keep(self, items: Iterable[CampaignItem]) -> None:
        """Leave out what has ended well before: it is reported as it ended."""
        kept = {item.key: item for item in items if item.status is ItemStatus.OK}
        self.kept |= kept
        self.unproven |= kept.keys()

    @property
    def heroes_first(self) -> Sequence[int]:
        """The positions of all rows, each after those whose pictures it uses."""
        return heroes_first([identity for identity, _ in self._keys], self.uses) if self.uses else range(len(self))

    @property
    def to_make(self) -> Sequence[int]:
        """The positions of the rows to be made, each after those whose pictures it uses.

        Left out is what is kept, but for the rows whose pictures are used: they are there, and free.
        """
        order = self.heroes_first
        if not self.kept:
            return order
        made = {number for number, key in enumerate(self._keys) if key not in self.kept}
        pending = [identity for number in made for identity in self[number].uses]
        while pending:
            number = self._lender(pending.pop())
            if number not in made:
                made.add(number)
                pending += self[number].uses
        return [number for number in order if number in made]

    def by_id(self, identity: str) -> Row:
        """Return the row of an id; of several variants the first."""
        return self[self._lender(identity)]

    def lends(self, number: int) -> bool:
        """Tell whether the row at a position is the one whose picture others get: of several variants the first."""
        return self._lender(self._keys[number][0]) == number

    def _lender(self, identity: str) -> int:
        return self._lenders[identity][1]

    def reference_problems(self, known: Iterable[str] = ()) -> list[str]:
        """Return what is wrong with the use of other rows' pictures; `known` are ids that exist, if in wrong rows."""
        found = reference_problems(self.uses, {*self._lenders, *known})
        return [f"{self.by_id(identity).where}: image_urls: {problem}" for identity, problem in found]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Return rows as such a list."""
        return rows if isinstance(rows, cls) else cls(rows)


def rows_of(records: Iterable[Record], options: RowOptions) -> Rows:
    """Return the rows of a manifest's records, one per variant.

    Raises:
        InvalidManifest: rows are wrong; all of them are named.
    """
    reading = _Reading(options)
    for record in records:
        reading.add(record)
    return reading.finish()


class _Reading:
    """One pass over a manifest's records."""

    def __init__(self, options: RowOptions) -> None:
        self._options = options
        self._rows = Rows()
        self._problems: list[str] = []
        self._ids: set[str] = set()
        self._keys: dict[tuple[str, str], str] = {}
        self._columns: set[str] = set()
        self._reported: set[str] = set()
        self._records = 0

    def add(self, record: Record) -> None:
        self._records += 1
        empty: dict[str, Any] = dict.fromkeys(name for name in record.columns if self._options.carries(name))
        fields = empty | dict(record.fields)
        self._columns.update(record.columns)
        label = record.where
        identity = fields.get("id")
        if id_problem(identity) is None:
            label += f" ({identity})"
            self._ids.add(str(identity))
            key = (str(identity), str(fields["take"]) if is_result(fields) else "")  # variants share an id
            if (first := self._keys.setdefault(key, record.where)) != record.where:
                self._problems.append(f"{label}: id: is used by {first} already")
        self._problems += [f"{label}: {problem}" for problem in record.problems]
        try:
            columns = self._split(fields, label)
            if record.problems:
                return
            for row in _rows(fields, columns, label, self._options):
                self._rows.append(row)
        except InvalidManifest as error:
            self._problems += [f"{label}: {problem}" for problem in error.problems]

    def finish(self) -> Rows:
        problems = self._problems + self._missing_columns()
        if not self._records:
            problems.append("it has no rows")
        problems += self._rows.reference_problems(self._ids)
        if problems:
            raise InvalidManifest(problems)
        return self._rows

    def _split(self, fields: dict[str, Any], label: str) -> _Columns:
        """Take labels and carried columns out of the fields; what remains unknown is reported, once per heading."""
        if is_result(fields):
            return self._split_result(fields)
        labels, carried = dict(self._options.labels), {}
        for name in [name for name in fields if name not in FIELDS]:
            value = fields.pop(name)
            if name.startswith(LABEL):
                labels[name.removeprefix(LABEL)] = value
            elif (problem := own_column_problem(name)) is not None:
                self._report(name, f"{label}: {name or UNNAMED}: {problem}")
            elif self._options.carries(name):
                carried[name] = value
            else:
                self._report(
                    name,
                    f"{label}: {_unknown(name, value)}; or take it along with carry=[{name!r}] (--carry {quote(name)})",
                )
        return _Columns(labels, carried)

    def _split_result(self, fields: dict[str, Any]) -> _Columns:
        """Take what became of the row out of a table of results; what ended well is not made again."""
        try:
            item = item_of(fields)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            why = next(iter(str(error).splitlines()), "")
            problem = f"its outcome can't be read: {why}; give the table of results as the campaign wrote it"
            raise InvalidManifest([problem]) from None
        self._rows.keep([item])
        for name in [name for name in fields if name not in FIELDS]:
            del fields[name]
        fields["variants"] = 1  # each variant has a row of its own there
        return _Columns({**self._options.labels, **item.labels}, item.carried, is_result=True)

    def _report(self, name: str, problem: str) -> None:
        if name not in self._reported:
            self._reported.add(name)
            self._problems.append(problem)

    def _missing_columns(self) -> list[str]:
        """Return the problems of columns which no row has: a typo, said once."""
        asked = [*([] if isinstance(self._options.carry, str) else self._options.carry), *self._options.named]
        missing = [name for name in dict.fromkeys(asked) if name not in self._columns] if self._records else []
        return [
            str(Problem(name, None, "no row has such a column", None, nearest(name.lower(), self._columns)))
            for name in missing
        ]


@dataclass(frozen=True, slots=True)
class _Columns:
    labels: Mapping[str, Any]
    carried: Mapping[str, Any]
    is_result: bool = False
    """Whether the record is of a table of results, which has prompts as they were sent."""


def _rows(fields: dict[str, Any], columns: _Columns, label: str, options: RowOptions) -> list[Row]:
    """Return the rows of one record, one per variant."""
    problems: list[str] = []
    identity = fields.pop("id", None)
    if (wrong := id_problem(identity)) is not None:
        problems.append(str(Problem("id", identity, wrong)))
    variants = fields.pop("variants", options.variants)
    if (wrong := variants_problem(variants)) is not None:
        problems.append(str(Problem("variants", variants, wrong)))
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
        raise InvalidManifest(problems)
    row = Row(str(identity), request, _motion_of(request, motion) if motion else None, labels, columns.carried, label)
    return [_variant(row, number) for number in range(1, variants + 1)]


def _variant(row: Row, number: int) -> Row:
    if number == 1:
        return row
    request = row.request.model_copy(update={"take": f"{row.request.take}.{number}"})
    return Row(row.id, request, row.motion, row.labels, row.carried, row.where)


def _fill_in(fields: dict[str, Any], name: str, options: RowOptions, columns: _Columns, problems: list[str]) -> None:
    """Set a prompt from its template, unless the row has its own; refuse one which nothing has filled in."""
    option = "prompt_template" if name == "prompt" else "motion_template"
    template: str | None = getattr(options, option)
    is_filled = template is not None and name not in fields
    if template is not None and is_filled:
        missing = missing_columns(template, columns.carried)
        problems += [f"{name}: the column {column!r} of its template {problem}" for column, problem in missing.items()]
        fields[name] = template if missing else fill(template, columns.carried)
        if missing:
            return
    elif columns.is_result:
        return
    prompt = fields.get(name)
    if isinstance(prompt, str):
        if (problem := unfilled_problem(prompt, option, is_filled=is_filled)) is not None:
            problems.append(str(Problem(name, prompt, problem)))
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


def _unknown(name: str, value: Any) -> Problem:
    return Problem(name, value, "is not a field of a row", FIELDS, nearest(name.lower(), FIELDS))


def _motion_problems(motion: dict[str, Any]) -> list[str]:
    problems = [] if "prompt" in motion else [f"{MOTION}prompt: is required by the other {MOTION} fields"]
    # Without the picture, which isn't made yet and doesn't affect the other fields.
    _collected(
        lambda: GenerationRequest(**{"model": DEFAULT_MOTION_MODEL, "prompt": "-", **motion}), problems, prefix=MOTION
    )
    return problems


def _motion_of(request: GenerationRequest, motion: dict[str, Any]) -> dict[str, Any]:
    ratio = {"aspect_ratio": request.aspect_ratio} if request.aspect_ratio is not None else {}
    return {"model": DEFAULT_MOTION_MODEL, **ratio, **motion}


def _collected(
    make: Callable[[], GenerationRequest], problems: list[str], prefix: str = ""
) -> GenerationRequest | None:
    try:
        return make()
    except InvalidRequest as error:
        problems += [f"{prefix}{problem}" for problem in error.problems]
    except ConfigurationError as error:
        problems.append(f"take: {error.message}")
    return None


def _labels(columns: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    try:
        return checked_labels(columns)
    except ConfigurationError as error:
        problems.append(error.message)
        return {}
