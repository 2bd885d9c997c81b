"""The records of a manifest, whatever it is: each with where it stands, its values as what they mean."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from prefect_veogen.campaign.cells import WrongCell, cleaned
from prefect_veogen.campaign.columns import FIELDS
from prefect_veogen.campaign.csv_text import csv_rows
from prefect_veogen.campaign.frames import arrow_rows, frame_rows, parquet_rows
from prefect_veogen.campaign.misnamed import NAME_IT, is_json, other_form
from prefect_veogen.campaign.parse import document, json_lines, mapping, text_of
from prefect_veogen.campaign.source import Source, load
from prefect_veogen.errors import InvalidManifest
from prefect_veogen.store import Store


class DataFrame(Protocol):
    """A DataFrame of pandas, Polars (eager or lazy), PyArrow, DuckDB or any other library that Narwhals knows."""

    @property
    def columns(self) -> Any:
        """Its columns, or their names."""


Manifest = Sequence[Mapping[str, Any]] | Iterable[Mapping[str, Any]] | Mapping[str, Any] | str | Path | DataFrame
"""Rows, a mapping with them under `rows`, the path or link of a file with them, or a DataFrame."""

_ACCEPTED = (
    "Nothing was bought. Give a list of dicts, or a dict with it under 'rows', a DataFrame (pandas, Polars, PyArrow, "
    "DuckDB or another that Narwhals knows), or the path or link of a file."
)
_A_LIST = "Nothing was bought. Let the file hold a list of rows, or a mapping with the list under `rows`."


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it was written, and where: `line 6` of a text file as an editor counts, `row 3` of anything else.

    `fields` holds what is set, by stripped names; `columns` has the names of all, in their order. `problems` is what is
    wrong with the other values: a record with any must not be bought.
    """

    where: str
    fields: Mapping[str, Any]
    problems: tuple[str, ...] = ()
    columns: tuple[str, ...] = field(default=(), compare=False)


async def read_records(manifest: Manifest, store: Store | None = None) -> Iterator[Record]:
    """Return the records of a manifest, made one after the other while it is iterated. Free.

    What lies in the bucket of `store` is reached as that is.

    Raises:
        InvalidManifest: now or while iterating: it is not valid in its form, or not made of rows.
        ConfigurationError: there is no such file, or it can't be read.
    """
    rows = _rows_of_file(await load(str(manifest), store)) if isinstance(manifest, str | Path) else _rows_of(manifest)
    return (_record(where, row) for where, row in rows)


def _rows_of_file(source: Source) -> Iterable[tuple[str, Any]]:
    match source.form:
        case "parquet":
            return parquet_rows(source.body)
        case "arrow":
            return arrow_rows(source.body)
    text = text_of(source.body)
    if source.form in ("csv", "tsv") and is_json(text):
        raise InvalidManifest([f"it is not valid CSV; {other_form(text, source.form)}"], next_step=NAME_IT)
    match source.form:
        case "csv":
            return csv_rows(text)
        case "tsv":
            return csv_rows(text, "\t")
        case "jsonl":
            return json_lines(text)
    found = document(text, source.form)
    if isinstance(found, list):
        return _numbered(found)
    if isinstance(found, str) and (other := other_form(text, source.form)) is not None:
        raise InvalidManifest([f"it holds no rows; {other}"], next_step=NAME_IT)
    return _rows_below_heading(found, _A_LIST)


def _rows_of(manifest: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(manifest, Sequence) and not isinstance(manifest, bytes | bytearray | memoryview):
        return _numbered(manifest)
    if isinstance(manifest, Mapping):
        return _rows_below_heading(manifest)
    if (rows := frame_rows(manifest)) is not None:
        return rows
    # What has columns and is unknown to Narwhals would be iterated by their names.
    if isinstance(manifest, bytes | bytearray | memoryview | AbstractSet) or hasattr(manifest, "columns"):
        raise _no_rows(manifest)
    if isinstance(manifest, Iterable):
        return _numbered(manifest)
    raise _no_rows(manifest)


def _rows_below_heading(found: Any, next_step: str = _ACCEPTED) -> Iterable[tuple[str, Any]]:
    rows = found.get("rows") if isinstance(found, Mapping) else None
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes | bytearray | memoryview):
        raise _no_rows(found, next_step)
    return _numbered(rows)


def _numbered(rows: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _no_rows(found: Any, next_step: str = _ACCEPTED) -> InvalidManifest:
    if found is None and next_step is _A_LIST:
        return InvalidManifest(["it is empty"], next_step=next_step)
    hint = ""
    if isinstance(found, AsyncIterable):
        hint = ": [row async for row in rows]"
    elif isinstance(found, Mapping):
        lists = [name for name, value in found.items() if isinstance(value, list) and value]
        if len(lists) == 1 and all(isinstance(row, Mapping) for row in found[lists[0]]):
            hint = f"; there is one under {lists[0]!r}: name that 'rows'"
        elif {*FIELDS} & {*found}:
            hint = "; it looks like a row: put it into a list"
    problem = f"it holds {type(found).__name__}, where a list of rows is expected{hint}"
    return InvalidManifest([problem], next_step=next_step)


def _record(where: str, row: Any) -> Record:
    if not isinstance(row, Mapping):
        problem = f"is {type(row).__name__}, where a mapping of fields is expected{_as_mapping(row)}"
        return Record(where, {}, (problem,))
    fields, problems = {}, []
    # None is where `csv.DictReader` puts the cells of a line that has more of them than the heading.
    values = mapping(("" if name is None else str(name).strip(), value) for name, value in row.items())
    for name, value in values.items():
        try:
            if (meant := cleaned(name, value)) is not None:
                fields[name] = meant
        except WrongCell as error:
            problems.append(str(error))
    return Record(where, fields, tuple(problems), tuple(values))


def _as_mapping(row: Any) -> str:
    """Return how a row of another kind becomes a mapping; nothing where that isn't known."""
    if is_dataclass(row):
        return ": dataclasses.asdict(row)"
    for method in ("model_dump", "_asdict"):  # pydantic; a named tuple, a row of SQLAlchemy or of `itertuples()`
        if hasattr(row, method):
            return f": row.{method}()"
    return ""
