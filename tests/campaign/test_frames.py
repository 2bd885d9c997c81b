"""Tables with types: DataFrames of any library, Parquet and Arrow, in batches and in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import narwhals
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.campaign.records import Record, read_records
from prefect_veogen.errors import ConfigurationError, InvalidManifest
from tests.support.servers import Reply, serving

TABLE = pa.table(
    {
        "id": ["a", "b", None],
        "model": pa.array(["veo-3.1-fast", "gpt-4o-image", " "]).dictionary_encode(),
        " prompt ": ["x\r\ny", "z", ""],
        "duration": pa.array([8, None, None], pa.int32()),
        "take": pa.array([date(2026, 11, 24), None, None]),
        "watermark": [True, None, None],
        "image_urls": pa.array([["https://a.b/1.png", "https://a.b/2.png"], [], None], pa.list_(pa.string())),
        "price": pa.array([Decimal("1.50"), None, None]),
        "score": [8.0, float("nan"), None],
        "seen": pa.array([datetime(2026, 11, 24, tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
    }
)
FIRST = {
    "id": "a",
    "model": "veo-3.1-fast",
    "prompt": "x\ny",
    "duration": 8,
    "take": "2026-11-24",
    "watermark": True,
    "image_urls": ["https://a.b/1.png", "https://a.b/2.png"],
    "price": Decimal("1.50"),
    "score": 8.0,
    "seen": "2026-11-24T00:00:00+00:00",
}
RECORDS = [
    Record("row 1", FIRST),
    Record("row 2", {"id": "b", "model": "gpt-4o-image", "prompt": "z", "image_urls": []}),
    Record("row 3", {}),
]


async def read(manifest: Any) -> list[Record]:
    return list(await read_records(manifest))


def as_pandas_with_index() -> Any:
    return TABLE.to_pandas().set_index("id")


FRAMES: dict[str, Callable[[], Any]] = {
    "pandas": TABLE.to_pandas,
    "pandas with Arrow's types": lambda: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
    "pandas with an index": as_pandas_with_index,
    "polars": lambda: pl.from_arrow(TABLE),
    "polars, lazy": lambda: pl.DataFrame(TABLE).lazy(),
    "pyarrow": lambda: TABLE,
    "pyarrow's batches": TABLE.to_reader,
    "pyarrow's batch": lambda: TABLE.combine_chunks().to_batches()[0],
    "duckdb": lambda: duckdb.from_arrow(TABLE),
    "narwhals": lambda: narwhals.from_native(TABLE),
    "narwhals, lazy": lambda: narwhals.from_native(TABLE).lazy(),
}


@pytest.mark.parametrize("library", FRAMES)
async def test_a_dataframe_of_any_library_says_the_same(library: str) -> None:
    assert without_zone(await read(FRAMES[library]())) == without_zone(RECORDS)


def without_zone(records: list[Record]) -> list[Record]:
    """DuckDB gives times of the machine's zone."""
    seen = [{**record.fields, "seen": record.fields.get("seen", "")[:16]} for record in records]
    return [Record(record.where, fields, record.problems) for record, fields in zip(records, seen, strict=True)]


@pytest.mark.parametrize("dtype", ["float64", "Int64", "object"])
async def test_a_column_of_whole_numbers_with_gaps_is_one_of_whole_numbers(dtype: str) -> None:
    frame = pd.DataFrame({"id": [1, 2], "duration": pd.Series([8, None], dtype=dtype)})
    records = await read(frame)
    assert [record.fields for record in records] == [{"id": 1, "duration": 8}, {"id": 2}]
    assert type(records[0].fields["duration"]) is int


async def test_a_frame_filtered_and_sorted_is_numbered_by_its_rows() -> None:
    frame = pd.DataFrame({"id": [1, 2, 3]}).sort_values("id", ascending=False).iloc[:2]
    assert await read(frame) == [Record("row 1", {"id": 3}), Record("row 2", {"id": 2})]


@pytest.mark.parametrize(
    "frame",
    [
        lambda: pd.DataFrame([["a", "b"]], columns=["id", "id"]),
        lambda: pd.DataFrame([["a", "b"]], columns=["id", " id "]),
        lambda: pa.table([["a"], ["b"]], names=["id", "id"]),
        lambda: pl.DataFrame({"id": ["a"], "id ": ["b"]}),
    ],
)
async def test_two_columns_of_one_name_are_refused(frame: Any) -> None:
    with pytest.raises(InvalidManifest, match=r"same name|more than one column 'id'"):
        await read(frame())


async def test_columns_with_names_of_several_levels_are_told_to_be_joined() -> None:
    frame = pd.DataFrame([["a"]], columns=pd.MultiIndex.from_tuples([("row", "id")]))
    with pytest.raises(InvalidManifest, match="columns have names of 2 levels") as caught:
        await read(frame)
    assert "frame.columns = ['_'.join(map(str, names)) for names in frame.columns]" in caught.value.next_step
    frame.columns = ["_".join(map(str, names)) for names in frame.columns]
    assert await read(frame) == [Record("row 1", {"row_id": "a"})]


@pytest.mark.parametrize("kind", ["relation", "table"])
async def test_an_interval_is_refused_as_any_other_duration(kind: str) -> None:
    relation: Any = duckdb.sql("SELECT 'a' AS id, 'm' AS model, 'x' AS prompt, INTERVAL 1 DAY AS age")
    with pytest.raises(InvalidManifest, match="age: is MonthDayNano, which a row can't hold; write it as text"):
        await read_manifest(relation if kind == "relation" else relation.to_arrow_table(), carry="*")


async def test_a_value_that_no_row_holds_is_told_with_row_and_field() -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "model": "gpt-4o-image", "prompt": ["x", "nan"], "style": [b"x", None]})
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(frame)
    assert [problem.partition(" (got")[0] for problem in caught.value.problems] == [
        "row 1 (a): style: is bytes, which a row can't hold; write it as text",
        "row 2 (b): prompt: reads like a gap; write a prompt",
    ]


@pytest.mark.parametrize(
    "frame",
    [
        lambda: pl.scan_parquet("gone.parquet"),
        lambda: pl.LazyFrame({"id": [1]}).select("prompt"),
        lambda: duckdb.sql("select cast('x' as int) as id"),
    ],
)
async def test_a_query_that_fails_is_told_as_that(frame: Any) -> None:
    with pytest.raises(ConfigurationError, match="The DataFrame can't be read: "):
        await read(frame())


FAR = [0, 9223372036854775]  # the second is in the year 294247


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("ms", "UTC"), pa.date64()], ids=str)
@pytest.mark.parametrize("library", ["parquet", "feather", "pyarrow", "polars", "duckdb", "pandas with Arrow's types"])
async def test_a_time_that_python_has_not_is_told_whatever_holds_it(
    library: str, kind: pa.DataType, tmp_path: Path
) -> None:
    table = pa.table({"id": ["a", "b"], "when": pa.array(FAR, pa.int64()).cast(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "far.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "far.feather")
    manifests: dict[str, Callable[[], Any]] = {
        "parquet": lambda: tmp_path / "far.parquet",
        "feather": lambda: tmp_path / "far.feather",
        "pyarrow": lambda: table,
        "polars": lambda: pl.from_arrow(table),
        "duckdb": lambda: duckdb.from_arrow(table),
        "pandas with Arrow's types": lambda: table.to_pandas(types_mapper=pd.ArrowDtype),
    }
    with pytest.raises(InvalidManifest) as caught:
        await read(manifests[library]())
    (problem,) = caught.value.problems
    assert problem.startswith("row ")
    assert problem.endswith(": a date or time is outside of the years 1 to 9999; write it as text")


async def test_and_a_time_with_a_zone_that_pandas_can_not_give() -> None:
    frame = pa.table({"id": ["a", "b"], "when": pa.array(FAR, pa.timestamp("ms", "Europe/Zurich"))}).to_pandas()
    with pytest.raises(InvalidManifest, match="outside of the years 1 to 9999; write it as text"):
        await read(frame)


@pytest.mark.parametrize("manifest", [pd.Series(["a"]), np.array(["a"]), pl.Series(["a"])])
async def test_a_series_of_texts_is_no_manifest(manifest: Any) -> None:
    with pytest.raises(InvalidManifest, match=r"is str_?, where a mapping of fields is expected"):
        await read_manifest(manifest)


# ---------------------------------------------------------------- files


def parquet(path: Path, **options: Any) -> None:
    pyarrow.parquet.write_table(TABLE, path, **options)


def arrow_stream(path: Path) -> None:
    with pa.ipc.new_stream(path, TABLE.schema) as stream:
        stream.write_table(TABLE)


FILES: dict[str, Callable[[Path], Any]] = {
    "rows.parquet": parquet,
    "groups.parquet": lambda path: parquet(path, row_group_size=1),
    "pandas.parquet": lambda path: TABLE.to_pandas().to_parquet(path),
    "polars.PARQUET": lambda path: pl.DataFrame(TABLE).write_parquet(path),
    "rows.feather": lambda path: pyarrow.feather.write_feather(TABLE, path),
    "polars.arrow": lambda path: pl.DataFrame(TABLE).write_ipc(path),
    "stream.arrow": arrow_stream,
}


@pytest.mark.parametrize("name", FILES)
async def test_a_parquet_or_arrow_file_says_the_same(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    assert await read(tmp_path / name) == RECORDS


@pytest.mark.parametrize("name", ["rows.parquet", "rows.feather"])
async def test_such_a_file_may_be_behind_a_link(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    with serving(lambda _: Reply(body=(tmp_path / name).read_bytes())) as origin:
        assert await read(f"{origin}/{name}?sig=1") == RECORDS


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("rows.parquet", b"PAR1", "it is not valid Parquet: "),
        ("rows.parquet", b"something else", "it is not valid Parquet: "),
        ("rows.arrow", b"ARROW1\0\0", "it is not valid Arrow: "),
        ("rows.feather", b"ARROW1\0\0" + b"x" * 99, "it is not valid Arrow: "),
        ("rows.parquet", b"", "it is empty"),
        ("rows.arrow", b"", "it is empty"),
        ("rows.parquet", b"id,prompt\na,x\n", "it looks like CSV, whose name ends in .csv"),
        ("rows.feather", b"\xef\xbb\xbfid;model\na;x\n", "it looks like CSV, whose name ends in .csv"),
        ("rows.parquet", b'{"id": 1}\n{"id": 2}\n', "it looks like JSON Lines, whose name ends in .jsonl"),
        ("rows.parquet", b"ARROW1\0\0" + b"x" * 99, "it is an Arrow file, whose name ends in .arrow or .feather"),
        ("rows.arrow", b"PAR1", "it is a Parquet file, whose name ends in .parquet"),
        ("rows.feather", b"\x1f\x8b\x08", "it is compressed"),
    ],
)
async def test_what_is_none_is_refused_and_told_what_it_is(name: str, body: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(InvalidManifest) as caught:
        await read(tmp_path / name)
    (problem,) = caught.value.problems
    assert said in problem


async def test_a_file_that_is_cut_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet(path)
    whole = path.read_bytes()
    for body in (whole[:-100], whole[:4] + bytes(200) + whole[204:]):
        path.write_bytes(body)
        with pytest.raises(InvalidManifest, match="it is not valid Parquet"):
            await read(path)


async def test_two_columns_of_one_name_are_refused_in_a_file_too(tmp_path: Path) -> None:
    for name, write in (("a.parquet", pyarrow.parquet.write_table), ("a.feather", write_ipc)):
        write(pa.table([["a"], ["b"]], names=["id", "id "]), tmp_path / name)
        with pytest.raises(InvalidManifest, match="more than one column 'id'"):
            await read(tmp_path / name)


def write_ipc(table: Any, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.feather"])
async def test_without_pyarrow_such_a_file_is_told_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'prefect-veogen\[tables\]'"):
        await read(tmp_path / name)


async def test_without_pyarrow_a_frame_that_comes_through_it_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relation = duckdb.sql("select 'a' as id")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'prefect-veogen\[tables\]'"):
        await read(relation)


async def test_without_pyarrow_other_frames_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [pd.DataFrame({"id": ["a"]}), pl.DataFrame({"id": ["a"]}), pl.LazyFrame({"id": ["a"]})]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for frame in frames:
        assert await read(frame) == [Record("row 1", {"id": "a"})]


# ---------------------------------------------------------------- size

MEASURE = """
import asyncio, re, sys, time
from pathlib import Path
from prefect_veogen.campaign.records import read_records
kind, count = sys.argv[1], int(sys.argv[2])
path = Path(f"rows.{kind}") if kind != "polars" else Path("rows.parquet")
if kind in ("polars", "parquet"):
    import narwhals.stable.v2, polars, pyarrow.parquet
manifest = polars.read_parquet(path) if kind == "polars" else path
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, began = peak(), time.perf_counter()
records = asyncio.run(read_records(manifest))
first = (next(records), time.perf_counter() - began)[1]
assert 1 + sum(1 for _ in records) == count
print(f"{time.perf_counter() - began:.2f} {first:.2f} {peak() - before:.0f}")
"""


def write_rows(count: int) -> None:
    """Write rows of some 350 bytes each, as CSV and Parquet."""
    table = pa.table(
        {
            "id": [f"r{number}" for number in range(count)],
            "model": ["veo-3.1-fast"] * count,
            "prompt": [f"{number}: {'a lighthouse at dusk, waves, ' * 9}" for number in range(count)],
            "duration": [8] * count,
            "city": ["Zürich"] * count,
            "motion_prompt": [f"it turns {number}" for number in range(count)],
        }
    )
    pyarrow.parquet.write_table(table, "rows.parquet")
    pl.DataFrame(table).write_csv("rows.csv")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "megabytes"), [("csv", 150), ("parquet", 120), ("polars", 60)])
def test_a_hundred_thousand_rows_are_read_in_seconds_and_never_all_at_once(kind: str, megabytes: int) -> None:
    write_rows(100_000)
    ran = subprocess.run([sys.executable, "-c", MEASURE, kind, "100000"], capture_output=True, text=True, check=True)
    seconds, first, used = map(float, ran.stdout.split())
    print(f"{kind}: {seconds} s, the first row after {first} s, {used:.0f} MB")
    assert seconds < 30
    assert used < megabytes
