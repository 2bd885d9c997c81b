"""What a value of a manifest means, wherever it comes from: a spreadsheet's text, a DataFrame's scalar, a literal.

A row's own fields are read as their types; what else stands in a row keeps its own type, as plain Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from prefect_veogen.campaign.columns import FIELDS, LABEL, MOTION
from prefect_veogen.errors import Problem
from prefect_veogen.models import MAX_DIGITS, with_plain_line_ends

_OWN = frozenset(FIELDS)

_WHOLE_NUMBERS, _TRUTHS = ("duration", f"{MOTION}duration", "variants"), ("watermark", "private")
_LINKS = ("image_urls", "video_urls", "audio_urls")
_PROMPTS = ("prompt", f"{MOTION}prompt")
_REQUIRED = ("id", "model", "prompt")
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")
# 007 is not another spelling of 7: it is another take, and another purchase.
_WHOLE = re.compile(rf"(0|-?[1-9][0-9]{{0,{MAX_DIGITS - 1}}})")
_WHOLE_AS_DECIMAL = re.compile(rf"(0|-?[1-9][0-9]{{0,{MAX_DIGITS - 1}}})(?:\.0+|,00?)?")
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"  # what browsers and spreadsheets leave in cells that look empty

# What programs write where they have nothing, and spreadsheets where they failed. As a prompt, it would be bought.
_GAPS = frozenset(
    {"nan", "-nan", "na", "n/a", "n.a.", "<na>", "nat", "null", "(null)", "<null>", "none", "nil", "undefined", r"\n"}
    | {"#n/a", "#na", "#nv", "#null!", "#ref!", "#value!", "#name?", "#num!", "#div/0!", "#error!", "#spill!", "#calc!"}
    | {"#getting_data", "loading...", "loading…", "[object object]"}
)
# What they may be in earnest: the style of no style, and the country or the region of the row.
_IN_EARNEST = {"style": {"none"}, f"{MOTION}style": {"none"}, "id": {"na", "nil"}}

_MAX_VALUES, _MAX_DEPTH = 10_000, 20
_ISO = (date, time)  # a datetime is a date
_DURATIONS = ("MonthDayNano",)  # what PyArrow makes of an interval, as DuckDB and Postgres have them
_REFUSED = (bytes, bytearray, memoryview, set, frozenset, complex, timedelta)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A value that is wrong whatever it is, until the row it belongs to is known."""

    problem: str
    value: Any = None


TWICE = Wrong("is set twice")
"""The value of a duplicate key."""
UNNAMED = "(no heading)"
"""The name of what has none."""
OUT_OF_RANGE = "outside of the years 1 to 9999; write it as text"
"""What is wrong with a date or time that Python hasn't."""


class WrongCell(ValueError):
    """A value can't be meant; its text says so, with the field's name."""


def cleaned(name: str, value: Any) -> Any:
    """Return what a value means for the field `name`, `None` if it is unset.

    Unset are None, NaN, NaT, pandas' NA and blank text. Numbers, booleans and texts of any library become Python's;
    arrays become lists; dates and timestamps become ISO text, a timestamp at midnight with its time. In a row's own
    fields and in labels 8.0 is 8; a field's texts are read as its type, as far as possible, and the request validates
    the rest.

    Raises:
        WrongCell: it is of a type that no row holds, or a word that stands for a gap.
    """
    if isinstance(value, Wrong):
        raise WrongCell(str(Problem(name, value.value, value.problem)))
    if type(value) is not str:
        if isinstance(value, list | tuple | Mapping):
            _check_size(name, value)
        value = _plain(name, value)
    if name in _OWN:
        return _own_text(name, value) if isinstance(value, str) else _own_value(name, value)
    if isinstance(value, str):
        return None if _is_blank(value) else value
    if name.startswith(LABEL):
        return _whole(value)  # a cap goes by 7, whether the column has gaps or not
    if not isinstance(value, int | float | Decimal | list | dict | None):
        raise _unreadable(name, value)
    return value


# ---------------------------------------------------------------- a row's own fields


def _own_text(name: str, text: str) -> Any:
    text = with_plain_line_ends(text).strip()
    if _is_blank(text):
        return None
    if is_gap(word := text.lower()) and word not in _IN_EARNEST.get(name, ()):
        meant = "a prompt" if name in _PROMPTS else "what is meant"
        step = f"write {meant}" if name in _REQUIRED else f"leave the cell empty, or write {meant}"
        raise WrongCell(str(Problem(name, text, f"reads like a gap; {step}")))
    if name in _WHOLE_NUMBERS:
        number = _WHOLE_AS_DECIMAL.fullmatch(text)
        return int(number[1]) if number else text
    if name == "take":
        return int(text) if _WHOLE.fullmatch(text) else text
    if name in _TRUTHS:
        return True if word in _YES else False if word in _NO else text
    if name in _LINKS:
        return text.split()
    return text


def _own_value(name: str, value: Any) -> Any:
    value = _whole(value)
    if name in _TRUTHS and type(value) is int and value in (0, 1):
        return bool(value)
    return value


def _whole(value: Any) -> Any:
    # A column of whole numbers with gaps is one of floats to pandas, and one of decimals to many a database.
    if isinstance(value, float | Decimal) and abs(value) < 10**MAX_DIGITS and value == int(value):
        return int(value)
    return value


def is_gap(text: str) -> bool:
    """Tell whether a text is what programs write where they have nothing."""
    return text.strip().lower() in _GAPS


def _is_blank(text: str) -> bool:
    return not text or not text.strip().strip(_INVISIBLE)


# ---------------------------------------------------------------- plain Python


def _check_size(name: str, value: Any) -> None:
    """Refuse what would unfold without end: YAML's aliases, and Python's lists, may refer to one list many times."""
    count, level = 0, [value]
    for _ in range(_MAX_DEPTH):
        inner = []
        for item in level:
            count += len(item)
            if count > _MAX_VALUES:
                raise WrongCell(f"{name or UNNAMED}: holds more than {_MAX_VALUES} values")
            values = item.values() if isinstance(item, Mapping) else item
            inner += [value for value in values if isinstance(value, list | tuple | Mapping)]
        if not inner:
            return
        level = inner
    raise WrongCell(f"{name or UNNAMED}: is nested too deeply")


def _plain(name: str, value: Any) -> Any:
    """Return a value as plain Python, with dates as text, and `None` for what is missing; others as they are."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # numpy's, or an enum's
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Decimal):
        return None if value.is_nan() else value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)  # numpy's float64 is a float
    if isinstance(value, _ISO):
        return None if type(value).__name__ == "NaTType" else value.isoformat()
    if isinstance(value, list | tuple) and type(value).__name__ not in _DURATIONS:
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, (*_REFUSED, tuple)):
        raise _unreadable(name, value)
    return _of_library(name, value)


def _of_library(name: str, value: Any) -> Any:
    """Return a value of numpy, pandas, Polars or PyArrow as plain Python, without importing any of them."""
    kind = type(value)
    if kind.__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return None
    if kind.__module__ == "numpy":
        return _plain(name, _of_numpy(name, value))
    for method in ("to_pylist", "to_list", "tolist", "as_py"):
        convert: Callable[[], Any] | None = getattr(value, method, None)
        if convert is not None:
            try:
                return _plain(name, convert())
            except OverflowError:
                raise WrongCell(f"{name or UNNAMED}: is {OUT_OF_RANGE}") from None
    return value


def _of_numpy(name: str, value: Any) -> Any:
    match value.dtype.kind:
        case "m":
            raise _unreadable(name, value)
        case "M":
            # Of what Python has not, nanoseconds and years beyond 9999, numpy would give the count since 1970.
            found = value.astype("datetime64[us]").tolist() if "ns" in str(value.dtype) else value.tolist()
            if any(isinstance(item, int) for item in (found if isinstance(found, list) else [found])):
                raise WrongCell(f"{name or UNNAMED}: is {OUT_OF_RANGE}")
            return found
        case "f" if not value.shape:
            return float(value)  # a long double's own value is a long double
    return value.tolist()


def _unreadable(name: str, value: Any) -> WrongCell:
    return WrongCell(f"{name or UNNAMED}: is {type(value).__name__}, which a row can't hold; write it as text")
