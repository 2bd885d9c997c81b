"""The table of results as a DataFrame or a Parquet file; each library is imported when it is asked for."""

from __future__ import annotations

import io
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

from prefect_veogen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_veogen.campaign.table import Table

Frame = Literal["polars", "pandas", "pyarrow"]
"""The libraries in whose DataFrames results are given."""

_DIGITS, _DECIMALS = 12, 6
_CENT = Decimal(1).scaleb(-_DECIMALS)


def frame_of(table: Table, kind: Frame) -> Any:
    """Return the table as a DataFrame of that library.

    Raises:
        ConfigurationError: the library is unknown, or not installed.
    """
    if kind not in get_args(Frame):
        raise ConfigurationError(
            f"to_frame({kind!r}): there is no such kind", next_step=f"Give one of: {', '.join(get_args(Frame))}."
        )
    if find_spec(kind) is None:
        raise ConfigurationError(
            f"to_frame({kind!r}) needs {kind}, which is not installed",
            next_step=f"`pip install {kind}`, or use report.records(), which needs nothing.",
        )
    return {"polars": _polars, "pandas": _pandas, "pyarrow": _pyarrow}[kind](table)


def parquet_of(table: Table) -> bytes | None:
    """Return the table as a Parquet file; `None` where pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        return None
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(_pyarrow(table), file)
    return file.getvalue()


def _columns(table: Table) -> dict[str, list[Any]]:
    """Return the table's columns as Python's own values: Decimal for money, datetime for times."""
    kinds = table.columns
    columns: dict[str, list[Any]] = {name: [] for name in kinds}
    for record in table.records():
        for name, value in record.items():
            columns[name].append(_typed(value, kinds[name]))
    return columns


def _typed(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "money":
        return Decimal(str(value)).quantize(_CENT)
    return datetime.fromisoformat(value) if kind == "time" else value


def _pyarrow(table: Table) -> Any:
    import pyarrow as pa

    types: Mapping[str, Any] = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "integer": pa.int64(),
        "number": pa.float64(),
        "money": pa.decimal128(_DIGITS, _DECIMALS),
        "boolean": pa.bool_(),
        "time": pa.timestamp("us", "UTC"),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in table.columns.items()])
    return pa.table(_columns(table), schema=schema)


def _polars(table: Table) -> Any:
    import polars as pl

    types: Mapping[str, Any] = {
        "text": pl.String(),
        "texts": pl.List(pl.String()),
        "integer": pl.Int64(),
        "number": pl.Float64(),
        "money": pl.Decimal(_DIGITS, _DECIMALS),
        "boolean": pl.Boolean(),
        "time": pl.Datetime("us", "UTC"),
    }
    return pl.DataFrame(_columns(table), schema={name: types[kind] for name, kind in table.columns.items()})


def _pandas(table: Table) -> Any:
    import pandas as pd

    types: Mapping[str, Any] = {
        "text": "string",
        "texts": "object",
        "integer": "Int64",
        "number": "Float64",
        "money": "object",
        "boolean": "boolean",
        "time": "datetime64[us, UTC]",
    }
    kinds = table.columns
    return pd.DataFrame({name: pd.Series(values, dtype=types[kinds[name]]) for name, values in _columns(table).items()})
