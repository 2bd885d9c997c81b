"""What a value means: the same from a spreadsheet's text, a DataFrame's scalar and a literal."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from prefect_veogen import Asset
from prefect_veogen.campaign.cells import TWICE, WrongCell, cleaned
from prefect_veogen.campaign.columns import FIELDS


class Shade(StrEnum):
    RED = "red"


class Mixed(str, Enum):  # noqa: UP042 - as it was before StrEnum, whose text is another
    RED = "red"


UNSET = [
    None,
    float("nan"),
    np.float32("nan"),
    Decimal("NaN"),
    pd.NA,
    pd.NaT,
    np.datetime64("NaT"),
    np.ma.masked,
    pa.scalar(None, pa.int64()),
    "",
    " \t\r\n\xa0",
    "\ufeff",
    "\u200b ",
    np.str_(""),
]


@pytest.mark.parametrize("value", UNSET, ids=repr)
@pytest.mark.parametrize("name", ["id", "prompt", "duration", "take", "watermark", "image_urls", "city"])
def test_what_looks_empty_is_unset_in_every_field(name: str, value: Any) -> None:
    assert cleaned(name, value) is None


EIGHTS = [8, 8.0, Decimal(8), Decimal("8.00"), Decimal("8E0"), np.int8(8), np.float32(8), np.longdouble(8), np.array(8)]


@pytest.mark.parametrize("value", [*EIGHTS, "8", " 8 "], ids=repr)
@pytest.mark.parametrize("name", ["duration", "motion_duration", "take"])
def test_eight_is_eight_in_every_spelling(name: str, value: Any) -> None:
    assert type(cleaned(name, value)) is int
    assert cleaned(name, value) == 8


@pytest.mark.parametrize("text", ["8.0", "8.00", "8,0", "8,00"])
def test_a_duration_may_be_written_as_a_decimal_but_no_take(text: str) -> None:
    assert cleaned("duration", text) == 8
    assert cleaned("motion_duration", text) == 8
    assert cleaned("take", text) == text


@pytest.mark.parametrize(
    "value", [8.5, Decimal("8.5"), float("inf"), 1e300, Decimal("1E+999999"), "8,000", "8.5", "08"]
)
def test_no_number_is_rounded_or_guessed(value: Any) -> None:
    assert cleaned("duration", value) == value


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (True, True),
        (np.bool_(False), False),
        (1, True),
        (0.0, False),
        (np.int64(1), True),
        ("TRUE", True),
        ("no", False),
        ("maybe", "maybe"),
        (2, 2),
    ],
)
def test_truths_are_booleans(value: Any, meant: Any) -> None:
    assert cleaned("watermark", value) == meant
    assert type(cleaned("watermark", value)) is type(meant)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (date(2026, 11, 24), "2026-11-24"),
        (datetime(2026, 11, 24), "2026-11-24T00:00:00"),  # noqa: DTZ001 - so it stands in many a table
        (datetime(2026, 11, 24, 12, tzinfo=UTC), "2026-11-24T12:00:00+00:00"),
        (pd.Timestamp("2026-11-24"), "2026-11-24T00:00:00"),
        (pd.Timestamp("2026-11-24T01:02:03.000000004"), "2026-11-24T01:02:03.000000004"),
        (np.datetime64("2026-11-24"), "2026-11-24"),
        (np.datetime64("2026-11-24T00:00:00", "ns"), "2026-11-24T00:00:00"),
        (pa.scalar(date(2026, 11, 24)), "2026-11-24"),
        (time(8, 30), "08:30:00"),
        (np.str_("autumn"), "autumn"),
        (Shade.RED, "red"),
        (Mixed.RED, "red"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["take", "day"])
def test_dates_and_texts_are_plain_text(name: str, value: Any, meant: str) -> None:
    assert cleaned(name, value) == meant
    assert type(cleaned(name, value)) is str


LINKS = ["https://a.b/1.png", "https://a.b/2.png"]


@pytest.mark.parametrize(
    "value",
    [
        LINKS,
        tuple(LINKS),
        " ".join(LINKS),
        "\r\n".join(LINKS),
        np.array(LINKS),
        np.array(LINKS, dtype=object),
        pd.Series(LINKS),
        pd.array(LINKS),
        pl.Series(LINKS),
        pa.array(LINKS),
        pa.scalar(LINKS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_lists_of_every_library_are_lists(value: Any) -> None:
    assert cleaned("image_urls", value) == LINKS
    assert {type(item) for item in cleaned("image_urls", value)} == {str}


def test_an_asset_stays_what_it_is() -> None:
    asset = Asset(uri="file:///p.png", sha256="ab", size=1, content_type="image/png", generation_id="g")
    assert cleaned("image_urls", [asset, np.str_(LINKS[0])]) == [asset, LINKS[0]]


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        bytearray(b"x"),
        {1},
        frozenset(),
        1j,
        np.complex64(1),
        np.bytes_(b"x"),
        timedelta(1),
        np.timedelta64(1, "s"),
        pd.Timedelta("1s"),
        [b"x"],
        {"a": {1}},
        np.array([b"x"]),
        TWICE,
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["prompt", "image_urls", "city"])
def test_what_no_row_holds_is_refused_with_the_field(name: str, value: Any) -> None:
    with pytest.raises(WrongCell, match=f"^{name}: is "):
        cleaned(name, value)


def test_an_unknown_kind_of_value_is_refused_in_another_column() -> None:
    with pytest.raises(WrongCell, match="city: is Period, which a row can't hold"):
        cleaned("city", pd.Period("2026-11"))


@pytest.mark.parametrize(
    "value", [8.0, 8, True, Decimal("8.0"), "8.0", " as it\r\nstands ", "nan", "NULL", [1, "a"], {"a": [1.5]}], ids=repr
)
def test_another_column_keeps_value_and_type(value: Any) -> None:
    assert cleaned("city", value) == value
    assert type(cleaned("city", value)) is type(value)


@pytest.mark.parametrize(
    ("value", "meant"),
    [(np.int64(8), 8), (np.float32(0.5), 0.5), (np.bool_(True), True), (np.array([[1], [2]]), [[1], [2]])],
)
def test_another_column_is_plain_python(value: Any, meant: Any) -> None:
    assert cleaned("city", value) == meant
    assert type(cleaned("city", value)) is type(meant)


FAR = 9223372036854775  # milliseconds, until the year 294247


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64(FAR, "ms"),
        np.datetime64(10**9, "D"),
        np.array([0, FAR], "datetime64[ms]"),
        pa.scalar(FAR, pa.timestamp("ms")),
        pa.array([FAR], pa.timestamp("ms")),
    ],
    ids=["numpy", "numpy's day", "numpy's array", "pyarrow", "pyarrow's array"],
)
@pytest.mark.parametrize("name", ["city", "take"])
def test_a_time_that_python_has_not_is_refused(value: Any, name: str) -> None:
    with pytest.raises(WrongCell, match=f"^{name}: is outside of the years 1 to 9999; write it as text"):
        cleaned(name, value)


# ---------------------------------------------------------------- words for gaps

GAPS = ["nan", "NaN", "NULL", "null", "None", "N/A", "n/a", "NA", "#N/A", "NaT", "<NA>", "undefined", " nan\n", r"\N"]
GAPS += ["#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "(null)", "Loading..."]


@pytest.mark.parametrize("word", GAPS)
@pytest.mark.parametrize("name", ["prompt", "motion_prompt", "model", "take", "duration", "aspect_ratio", "image_urls"])
def test_a_word_for_a_gap_is_refused_instead_of_bought(name: str, word: str) -> None:
    with pytest.raises(WrongCell, match=f"^{name}: reads like a gap; ") as caught:
        cleaned(name, word)
    assert ("leave the cell empty" in str(caught.value)) is (name not in ("model", "prompt")), "they are required"


@pytest.mark.parametrize("text", ["nan bread on a table", "none of them", "The null island", "Undefined shapes", "-"])
def test_a_prompt_that_contains_such_a_word_is_a_prompt(text: str) -> None:
    assert cleaned("prompt", text) == text


def test_a_style_may_be_none_and_an_id_the_code_of_namibia() -> None:
    assert cleaned("style", "none") == cleaned("motion_style", "none") == "none"
    assert cleaned("id", "NA") == "NA"
    with pytest.raises(WrongCell, match=r"^id: reads like a gap; write what is meant"):
        cleaned("id", "nan")


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("name", [*FIELDS, "city"])
def test_what_unfolds_without_end_is_refused_at_once(name: str) -> None:
    bomb: Any = ["x"]
    for _ in range(15):
        bomb = [bomb] * 9
    endless: Any = []
    endless.append({"a": endless})
    for value in (bomb, endless, ["x"] * 10_001):
        with pytest.raises(WrongCell, match=f"^{name}: (holds more than|is nested too deeply)"):
            cleaned(name, value)
