"""The rows of tables that have types: DataFrames of any library by Narwhals, Parquet and Arrow files by PyArrow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from prefect_veogen.campaign.cells import OUT_OF_RANGE, UNNAMED
from prefect_veogen.campaign.misnamed import NAME_IT, other_form
from prefect_veogen.campaign.parse import known_beginning
from prefect_veogen.errors import ConfigurationError, InvalidManifest

_BATCH_ROWS = 1000
_INSTALL = "Nothing was bought. Run: pip install 'prefect-veogen[tables]'"

Rows = Iterator[tuple[str, Mapping[str, Any]]]


def frame_rows(value: Any) -> Rows | None:
    """Return the rows of a DataFrame, eager or lazy, of any library that Narwhals knows; `None` if it is none.

    The levels of a pandas index that have names are fields like any column. A lazy frame is collected.

    Raises:
        InvalidManifest: two columns have one name, or columns have names of several levels.
        ConfigurationError: a lazy frame can't be collected.
    """
    import narwhals.stable.v2 as nw
    from narwhals.exceptions import DuplicateError

    native = nw.to_native(value, pass_through=True)
    try:
        frame: Any = nw.from_native(native, pass_through=True)
        if frame is native and hasattr(native, "__arrow_c_stream__") and hasattr(native, "schema"):  # and no series
            _pyarrow()
            frame = nw.from_arrow(native, backend="pyarrow")
    except DuplicateError as error:
        raise InvalidManifest([f"it has columns of the same name: {error}"]) from None
    if frame is native:
        return None
    if isinstance(frame, nw.LazyFrame):
        frame = _collect(frame)
    if frame.implementation.is_pandas_like():
        _check_levels(frame.to_native())
        frame = nw.from_native(_with_named_index(frame.to_native()))
    _check([str(name).strip() for name in frame.columns])
    return _numbered(frame.iter_rows(named=True, buffer_size=_BATCH_ROWS))


def parquet_rows(body: bytes) -> Rows:
    """Return the rows of a Parquet file, read in batches.

    Raises:
        InvalidManifest: it is none, or two columns have one name.
        ConfigurationError: PyArrow is not installed.
    """
    return _file_rows("Parquet", _parquet, body)


def arrow_rows(body: bytes) -> Rows:
    """Return the rows of an Arrow file (or Feather, which is the same) or stream, read in batches.

    Raises:
        InvalidManifest: it is none, or two columns have one name.
        ConfigurationError: PyArrow is not installed.
    """
    return _file_rows("Arrow", _arrow, body)


def _file_rows(form: str, read: Callable[[bytes], tuple[list[str], Iterable[Any]]], body: bytes) -> Rows:
    arrow = _pyarrow()
    try:
        names, batches = read(body)
        _check(names)
        return _numbered(_dicts(batches, form))
    except (arrow.ArrowException, OSError) as error:
        raise _misnamed(form, body) or _invalid(form, error) from None


def _misnamed(form: str, body: bytes) -> InvalidManifest | None:
    """Return the error of a file that is something else; `None` if it isn't known to be."""
    if not body:
        return InvalidManifest(["it is empty"])
    known = known_beginning(body)
    if known is not None and form not in known[0]:
        return InvalidManifest([f"it {known[0]}, where {form} is expected"], next_step=known[1])
    other = other_form(body.decode("utf-8-sig", "replace"), form.lower())
    return None if other is None else InvalidManifest([f"it is not valid {form}; {other}"], next_step=NAME_IT)


def _parquet(body: bytes) -> tuple[list[str], Iterable[Any]]:
    from pyarrow import BufferReader, parquet

    file = parquet.ParquetFile(BufferReader(body))
    return file.schema_arrow.names, file.iter_batches(batch_size=_BATCH_ROWS)


def _arrow(body: bytes) -> tuple[list[str], Iterable[Any]]:
    from pyarrow import ipc

    if not body.startswith(b"ARROW1"):
        stream = ipc.open_stream(body)
        return stream.schema.names, stream
    file = ipc.open_file(body)
    return file.schema.names, (file.get_batch(number) for number in range(file.num_record_batches))


def _collect(frame: Any) -> Any:
    try:
        return frame.collect()
    except ModuleNotFoundError as error:  # of most libraries the rows come through PyArrow
        raise ConfigurationError(f"The DataFrame can't be read: {error}", next_step=_INSTALL) from None
    except Exception as error:
        # Whatever its query does wrong: no file, no such column, no connection.
        raise ConfigurationError(f"The DataFrame can't be read: {type(error).__name__}: {error}") from error


def _check_levels(native: Any) -> None:
    if native.columns.nlevels > 1:
        step = "Nothing was bought. Join them: frame.columns = ['_'.join(map(str, names)) for names in frame.columns]"
        raise InvalidManifest([f"its columns have names of {native.columns.nlevels} levels"], next_step=step)


def _with_named_index(native: Any) -> Any:
    named = [name for name in native.index.names if name is not None and name not in native.columns]
    return native.reset_index(level=named) if named else native


def _check(names: list[str]) -> None:
    names = [name.strip() for name in names]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise InvalidManifest([f"it has more than one column {name or UNNAMED!r}" for name in doubles])


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Rows:
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except (OverflowError, NotImplementedError):  # the latter is pandas', of times with a zone
        raise _out_of_range(number) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Polars' own, which is no Exception
            raise
        raise _out_of_range(number) from None


def _out_of_range(number: int) -> InvalidManifest:
    # Rows are read in batches, so that the one is not known, nor its column.
    return InvalidManifest([f"row {number + 1} or one below it: a date or time is {OUT_OF_RANGE}"])


def _dicts(batches: Iterable[Any], form: str) -> Iterator[dict[str, Any]]:
    arrow = _pyarrow()
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield from batch.slice(start, _BATCH_ROWS).to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _invalid(form, error) from None


def _invalid(form: str, error: Exception) -> InvalidManifest:
    return InvalidManifest([f"it is not valid {form}: {error}"])


def _pyarrow() -> ModuleType:
    try:
        import pyarrow as pa
    except ImportError:
        raise ConfigurationError("Parquet and Arrow need another package, PyArrow", next_step=_INSTALL) from None
    module: ModuleType = pa
    return module
