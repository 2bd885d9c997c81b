"""The chapter on tables says what the program does: fields, options, endings, columns, kinds."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.campaign import campaign
from prefect_veogen.campaign.columns import FIELDS, RESULT_COLUMNS
from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.reading import DEFAULT_MOTION_MODEL, MAX_ID_CHARACTERS
from prefect_veogen.campaign.result_frames import frame_of
from prefect_veogen.campaign.source import ENDINGS
from prefect_veogen.campaign.table import Table
from prefect_veogen.cli.arguments import parser

PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
KINDS = {"text": "x", "integer": 1, "number": 1.5, "boolean": True}


def section(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without their headings."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_fields_are_all_named_and_no_other() -> None:
    named = [name for cells in rows_of(section("The fields of a row")) for name in names_in(cells[0])]
    assert sorted(named) == sorted([*FIELDS, "label_NAME"])
    assert f"at most {MAX_ID_CHARACTERS} characters" in PAGE
    assert f"unset: {DEFAULT_MOTION_MODEL}" in PAGE


def test_the_columns_of_the_results_are_all_named_with_their_kinds() -> None:
    table = PAGE.partition("<!-- result-columns -->")[2].partition("<!-- /result-columns -->")[0]
    kinds = {name: cells[1] for cells in rows_of(table) for name in names_in(cells[0])}
    assert {name: kind for name, kind in kinds.items() if "NAME" not in name} == RESULT_COLUMNS
    assert {f"`{status}`" for status in ItemStatus} <= set(re.findall(r"`[a-z]+`", table))


def test_the_options_are_those_of_the_flow_and_of_plan() -> None:
    named = [name for cells in rows_of(section("Options of all rows")) for name in names_in(cells[0])]
    options = {name.partition("=")[0] for name in named} - {"option"}
    known = inspect.signature(campaign.fn).parameters
    others = {"manifest", "budget_usd", "at_once", "timeout_seconds", "credentials", "store"}
    assert options == set(known) - others
    flags = [name.split()[0] for cells in rows_of(section("Options of all rows")) for name in names_in(cells[1])]
    for flag in flags:
        if flag.startswith("--"):
            parser().parse_args(["plan", "rows.csv", flag, "1=1" if flag == "--label" else "1"])


def test_the_forms_of_a_file_are_those_that_are_read() -> None:
    (row,) = [cells for cells in rows_of(section("What a manifest may be")) if cells[0] == "a file"]
    named = {name.strip().lower() for name in re.split(r",| or ", re.sub(r"\(.*?\)", "", row[1]))}
    forms = {"json lines": "jsonl", "feather": "arrow"}
    assert {forms.get(name, name) for name in named} == set(ENDINGS.values())


@pytest.mark.parametrize("kind", ["pyarrow", "polars", "pandas"])
def test_the_kinds_are_those_of_the_frames(kind: Any) -> None:
    heading = {"pyarrow": 1, "polars": 2, "pandas": 3}[kind]
    written = {cells[0]: cells[heading] for cells in rows_of(PAGE.partition("| kind | Parquet")[2]) if len(cells) == 5}
    table = Table([CampaignItem("a", ItemStatus.OK, carried=KINDS)])
    frame = frame_of(table, kind)
    if kind == "pyarrow":
        types = {field.name: str(field.type) for field in frame.schema}
    elif kind == "polars":
        types = {name: str(dtype) for name, dtype in frame.schema.items()}
    else:
        types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    for name, of in table.columns.items():
        assert plain(types[name]).startswith(plain(written[of]).partition(",of")[0]), name
    assert isinstance(frame_of(table, "polars"), pl.DataFrame)


def plain(dtype: str) -> str:
    """Return a type's name without what libraries spell differently."""
    texts = {r"time_unit=|precision=|scale=|time_zone=|tz=|['\" ]": "", "list<.*>": "listofstring"}
    for pattern, text in texts.items():
        dtype = re.sub(pattern, text, dtype)
    return dtype.replace("μs", "us")
