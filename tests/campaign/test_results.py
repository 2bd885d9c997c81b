"""A table of results that went through other programs is a manifest still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from prefect_veogen.campaign.items import CampaignItem, ItemStatus, Step
from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.campaign.packed import Packed
from prefect_veogen.campaign.result_frames import frame_of
from prefect_veogen.campaign.results import RESULTS, campaign_key, read_results, write_results
from prefect_veogen.campaign.table import Table
from prefect_veogen.errors import InvalidManifest
from prefect_veogen.models import Asset, Kind
from prefect_veogen.store import open_store

PRICE = Decimal("0.02")
ASSET = Asset(
    uri="s3://brand/a.png",
    sha256="0" * 64,
    size=12,
    content_type="image/png",
    generation_id="g",
    price_usd=PRICE,
    model="gpt-4o-image",
)
COMMON: dict[str, Any] = {
    "take": "007",
    "finished_at": datetime(2026, 11, 27, 11, 0, 22, 238139, UTC),
    "fields": {"model": "gpt-4o-image", "prompt": "x"},
    "labels": {"team": "7"},
    "carried": {"colour": "red"},
}
WELL = CampaignItem(
    "well", ItemStatus.OK, (Step(Kind.IMAGE, "r", ASSET, "g", PRICE, {"team": "7"}),), reused=False, **COMMON
)
BADLY = CampaignItem("badly", ItemStatus.FAILED, error="refused\nWhat to do", error_type="ContentRejected", **COMMON)
TABLE = Table([WELL, BADLY])


def as_csv() -> str:
    frame: pl.DataFrame = frame_of(TABLE, "polars")
    frame.drop("image_urls", "video_urls", "audio_urls").write_csv("results.csv")
    return "results.csv"


def as_csv_of_pandas() -> str:
    frame_of(TABLE, "pandas").to_csv("results.csv", index=False)
    return "results.csv"


def through_duckdb() -> Any:
    frame_of(TABLE, "polars").write_ndjson("results.jsonl")
    return duckdb.read_json("results.jsonl")


@pytest.mark.parametrize("made", [as_csv, as_csv_of_pandas, through_duckdb, lambda: frame_of(TABLE, "pandas")])
async def test_results_are_the_same_manifest_whatever_they_went_through(made: Callable[[], Any]) -> None:
    rows = await read_manifest(made())
    assert rows.kept == {WELL.key: WELL}
    assert [(row.request.take, row.labels, row.carried) for row in rows] == [
        ("007", {"team": "7"}, {"colour": "red"})
    ] * 2
    assert frame_of(Table([*rows.kept.values(), BADLY]), "pyarrow") == frame_of(TABLE, "pyarrow")


@pytest.mark.parametrize("prompt", ["like {character}", r"like \{character\}"])
async def test_results_have_prompts_as_they_were_sent(prompt: str) -> None:
    item = replace(BADLY, fields={"model": "gpt-4o-image", "prompt": prompt})
    (row,) = await read_manifest(frame_of(Table([item]), "pandas"), motion_template=r"the {colour} one \{turns\}")
    assert row.motion is not None
    assert (row.request.prompt, row.motion["prompt"]) == (prompt, "the red one {turns}")


@pytest.mark.parametrize(
    ("column", "value"),
    [("finished_at", "27.11.26 11:00"), ("image_price_usd", "0,02 $"), ("reused", "FALSCH"), ("image_bytes", "1E")],
)
async def test_results_that_a_spreadsheet_changed_are_refused_with_their_row(column: str, value: Any) -> None:
    record = next(TABLE.records()) | {column: value}
    with pytest.raises(InvalidManifest, match=r"row 1 \(well\): its outcome can't be read: .*as the campaign wrote it"):
        await read_manifest([record])


async def test_a_large_table_is_written_and_read_without_keeping_others_from_the_loop(tmp_path: Path) -> None:
    store, items = open_store(str(tmp_path)), Packed(replace(WELL, id=str(number)) for number in range(5000))
    for work in (write_results(store, "large", items), read_results(store, campaign_key("large", RESULTS))):
        started = before = time.monotonic()
        pauses: list[float] = []
        running = asyncio.create_task(work)
        while not running.done():
            await asyncio.sleep(0.01)
            pauses.append(time.monotonic() - before)
            before = time.monotonic()
        assert max(pauses) < (before - started) / 3
    assert running.result() == items


# ---------------------------------------------------------------- edited by hand


NEW = {"id": "new", "model": "gpt-4o-image", "prompt": "y", "colour": "blue"}


@pytest.mark.parametrize("carry", ["*", ["colour"]])
async def test_new_rows_below_a_table_of_results_leave_its_columns_empty(carry: Any) -> None:
    frame = pl.concat([frame_of(TABLE, "polars"), pl.DataFrame([NEW])], how="diagonal_relaxed")
    rows = await read_manifest(frame, carry=carry)
    assert [(row.id, row.carried) for row in rows] == [
        ("well", {"colour": "red"}),
        ("badly", {"colour": "red"}),
        ("new", {"colour": "blue"}),
    ]
    assert rows.kept == {WELL.key: WELL}


async def test_a_column_that_came_along_empty_stays_a_column() -> None:
    table = Table([replace(WELL, carried={"colour": None}), replace(BADLY, carried={"colour": None})])
    rows = await read_manifest(frame_of(table, "polars"))
    assert [row.carried for row in rows] == [{"colour": None}] * 2


@pytest.mark.parametrize("status", [None, "", "redo", "OK"])
async def test_a_status_that_was_changed_is_told_as_that_alone(status: str | None) -> None:
    records = [record | {"status": status} for record in Table([WELL]).records()]
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(records)
    (problem,) = caught.value.problems
    assert problem.startswith("row 1 (well): status: a row of a table of results keeps what it was")
    assert problem.endswith("; allowed: ok, failed, blocked, unknown")


async def test_variants_of_a_row_of_results_are_refused_instead_of_ignored() -> None:
    records = [*Table([WELL, BADLY]).records()]
    assert len(await read_manifest([record | {"variants": 1} for record in records], variants=2)) == 2
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest([records[0] | {"variants": 3}])
    (problem,) = caught.value.problems
    assert problem.startswith("row 1 (well): variants: a table of results has a row for each variant; ")


@pytest.mark.parametrize("name", ["Motion_Prompt", "Status", ""])
async def test_a_column_added_to_results_that_can_not_be_one_is_refused(name: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest([record | {name: "x"} for record in TABLE.records()])
    (problem,) = caught.value.problems
    assert problem.startswith(f"row 1 (well): {name or '(no heading)'}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_price_usd", "0,02"),
        ("finished_at", "27.11.2026 11:00"),
        ("image_bytes", "1.234,5"),
        ("reused", "FALSCH"),
        ("finished_at", 46353.5),
    ],
)
async def test_what_a_spreadsheet_made_of_a_number_or_a_time_is_named(name: str, value: Any) -> None:
    records = [record | {name: value} for record in Table([WELL]).records()]
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(records)
    (problem,) = caught.value.problems
    assert problem.startswith(
        f"row 1 (well): its outcome can't be read: {name} is {value!r}; give the table of results"
    )
