"""Records: the same rows from whatever a manifest is, each with where it stands."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import UserDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.campaign.records import Record, read_records
from prefect_veogen.errors import InvalidManifest

CASES = Path(__file__).parent / "cases"
X = {"model": "gpt-4o-image", "prompt": "x"}
Y = {"model": "gpt-4o-image", "prompt": "y"}
LINES = {"model": "gpt-4o-image", "prompt": "two\nlines"}
CLIP = {"model": "veo-3.1-fast", "prompt": "x", "duration": 8}


async def read(manifest: Any) -> list[Record]:
    return list(await read_records(manifest))


async def refused(manifest: Any) -> InvalidManifest:
    with pytest.raises(InvalidManifest) as caught:
        await read(manifest)
    return caught.value


async def refused_rows(manifest: Any) -> InvalidManifest:
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(manifest)
    return caught.value


@dataclass
class AsDataclass:
    id: str


class AsModel(BaseModel):
    id: str


class AsTuple(NamedTuple):
    id: str


# What Excel, LibreOffice, Numbers, Google Sheets, pandas, R, databases and people write.
READ: dict[str, dict[str, dict[str, Any]]] = {
    "blank-rows-wider-than-the-heading.csv": {"line 2": {"id": "a", **X}},
    "duration-as-8.0.csv": {"line 2": {"id": "a", **CLIP}},
    "excel-csv-utf-8.csv": {
        "line 2": {
            "id": "a",
            "model": "sora-2",
            "prompt": 'a "red" lighthouse, at dusk',
            "duration": 10,
            "watermark": True,
        },
        "line 3": {"id": "b", "model": "sora-2", "prompt": "Zürich bei Nacht", "duration": 15, "watermark": False},
    },
    "excel-german.csv": {
        "line 2": {"id": "a", **CLIP, "prompt": "ein Turm, im Nebel"},
        "line 3": {"id": "b", **CLIP, "prompt": 'zwei "rote"; Türme'},
    },
    "excel-sep-semicolon.csv": {"line 3": {"id": "a", **X, "prompt": "x, and, y"}},
    "excel-unicode-text.tsv": {"line 2": {"id": "a", **X, "prompt": "two\nlines, é"}},
    "google-sheets.csv": {
        "line 2": {"id": "a", **X, "prompt": "first\nsecond", "image_urls": ["https://a.b/1.png", "https://a.b/2.png"]},
        "line 5": {"id": "b", **Y},
    },
    "leading-blank-lines.csv": {"line 4": {"id": "a", **X}},
    "libreoffice-quote-all.csv": {"line 2": {"id": "a", **X, "prompt": "one\ttab"}},
    "mac-classic.csv": {"line 2": {"id": "a", **LINES}, "line 4": {"id": "b", **Y}},
    "numbers-semicolon.csv": {"line 2": {"id": "a", **X}},
    "pandas-no-index.csv": {
        "line 2": {"id": "a", **CLIP, "take": "2026-11-24"},
        "line 3": {"id": "b", "model": "veo-3.1-fast", "prompt": "y"},
    },
    "psql-pipes.csv": {"line 2": {"id": "a", **X, "prompt": "x, y; z"}},
    "python-csv-without-newline.csv": {"line 3": {"id": "a", **X}, "line 5": {"id": "b", **Y}},
    "sep-line.csv": {"line 3": {"id": "a", **X}},
    "two-boms.csv": {"line 2": {"id": "a", **X}},
    "two-lines-in-a-cell-crlf.csv": {"line 2": {"id": "a", **LINES}},
    "two-lines-in-a-cell-lf.csv": {"line 2": {"id": "a", **LINES}},
    "utf-16.csv": {"line 2": {"id": "a", **X, "prompt": "une tasse de café"}},
}
GAP = "reads like a gap; write a prompt"
MOTION_GAP = "reads like a gap; leave the cell empty, or write a prompt"
NO_HEADING = "(no heading): column 1 has no heading, but cells; name it or delete it; pandas writes its index there"
REFUSED: dict[str, list[str]] = {
    "by-hand.csv": ["line 6 (b): (no heading): the line has more cells than the heading; a text with ',' in it needs"],
    "cp1252.csv": ["line 2: it is not UTF-8 text (the byte 0xE9 can't be read)"],
    "excel-ref-errors.csv": [
        f"line 2 (a): prompt: {GAP} (got '#REF!')",
        f"line 3 (b): prompt: {GAP} (got '#N/A')",
    ],
    "gaps-as-words.csv": [
        f"line 2 (a): motion_prompt: {MOTION_GAP} (got 'nan')",
        f"line 3 (b): motion_prompt: {MOTION_GAP} (got 'NULL')",
    ],
    "google-loading.csv": [f"line 2 (a): prompt: {GAP} (got 'Loading...')"],
    "nul.csv": ["line 3: it is not text, but binary"],
    "pandas-na-rep.csv": [
        f"line 2 (a): motion_prompt: {MOTION_GAP} (got 'NULL')",
        "line 3 (b): duration: reads like a gap; leave the cell empty, or write what is meant (got 'NULL')",
        "line 3 (b): take: reads like a gap",
    ],
    "pandas-with-index.csv": [f"line 2 (a): {NO_HEADING}"],
    "quote-without-end.csv": ["it is not valid CSV: line 3: it opens a quote without end"],
    "r-write-csv-2.csv": ["line 3 (b): duration: reads like a gap"],
    "r-write-csv.csv": [f"line 2 (a): {NO_HEADING}", "line 3 (b): duration: reads like a gap"],
    "workbook.csv": ["it is a workbook"],
}


def test_every_case_has_an_outcome() -> None:
    assert {path.name for path in CASES.iterdir()} == {*READ, *REFUSED}


@pytest.mark.parametrize("name", READ)
async def test_a_file_as_the_world_writes_it_is_read_as_it_is_meant(name: str) -> None:
    assert await read(CASES / name) == [Record(where, fields) for where, fields in READ[name].items()]
    assert len(await read_manifest(CASES / name)) == len(READ[name])


@pytest.mark.parametrize("name", REFUSED)
async def test_a_file_that_may_mean_something_else_is_refused_with_its_lines(name: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(CASES / name)
    assert len(caught.value.problems) == len(REFUSED[name])
    for problem, begin in zip(caught.value.problems, REFUSED[name], strict=True):
        assert problem.startswith(begin)


@pytest.mark.parametrize(("name", "step"), [("cp1252.csv", "CSV UTF-8 (Comma delimited)"), ("workbook.csv", "as CSV")])
async def test_what_is_no_text_in_utf_8_is_told_how_to_become_it(name: str, step: str) -> None:
    assert step in (await refused(CASES / name)).next_step


# ---------------------------------------------------------------- arguments


def generated() -> Iterator[dict[str, str]]:
    yield {"id": "a", **X}
    yield {"id": "b", **Y}


@pytest.mark.parametrize(
    "rows",
    [
        lambda: list(generated()),
        lambda: tuple(generated()),
        generated,
        {row["id"]: row for row in generated()}.values,
        lambda: map(UserDict, generated()),
        lambda: {"rows": list(generated())},
        lambda: csv.DictReader(["id,model,prompt", "a,gpt-4o-image,x", "b,gpt-4o-image,y"]),
    ],
    ids=["list", "tuple", "generator", "values", "map of mappings", "mapping", "DictReader"],
)
async def test_any_iterable_of_mappings_is_a_manifest(rows: Any) -> None:
    assert await read(rows()) == [Record("row 1", {"id": "a", **X}), Record("row 2", {"id": "b", **Y})]


class LikeAFrame:
    columns = ("id", "prompt")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize("manifest", [5, None, {"a": 1}, {"a"}, b"rows.csv", bytearray(b"x"), LikeAFrame(), object()])
async def test_what_is_no_manifest_is_told_what_is_one(manifest: Any) -> None:
    error = await refused(manifest)
    assert error.problems == (f"it holds {type(manifest).__name__}, where a list of rows is expected",)
    for accepted in ("list of dicts", "under 'rows'", "pandas, Polars, PyArrow, DuckDB", "path or link"):
        assert accepted in error.next_step


WRAPPED = [{"id": "a", **X}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.json", json.dumps({"data": WRAPPED}), "there is one under 'data': name that 'rows'"),
        ("rows.json", json.dumps({"count": 1, "tags": ["x"], "items": WRAPPED}), "where a list of rows is expected"),
        ("rows.yaml", "items:\n- id: a\n", "there is one under 'items': name that 'rows'"),
        ("rows.json", json.dumps({"id": "a", **X}), "it looks like a row: put it into a list"),
        ("rows.yaml", "id: a\nimage_urls: [https://a.b/c.png]\n", "it looks like a row: put it into a list"),
        ("rows.yaml", "", "it is empty"),
        ("rows.yaml", "# nothing yet\n", "it is empty"),
        ("rows.json", " \n", "it is empty"),
        ("rows.json", "null", "it is empty"),
        ("rows.json", '{"rows": 3}', "where a list of rows is expected"),
    ],
)
async def test_a_file_without_a_list_of_rows_is_told_how_to_have_one(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    error = await refused(tmp_path / name)
    assert said in error.problems[0]
    assert "a list of rows, or a mapping with the list under `rows`" in error.next_step


async def test_the_same_is_said_of_a_mapping() -> None:
    assert "one under 'data': name that 'rows'" in (await refused({"data": WRAPPED})).problems[0]


AS_JSON, AS_LINES = json.dumps(WRAPPED, indent=1), f"{json.dumps(WRAPPED[0])}\n" * 2
AS_CSV, AS_YAML = "id,model,prompt\na,gpt-4o-image,x\n", "- id: a\n  model: gpt-4o-image\n  prompt: x\n"


@pytest.mark.parametrize(
    ("name", "text", "form", "ending"),
    [
        ("rows.json", AS_LINES, "JSON Lines", "jsonl"),
        ("rows.json", AS_CSV, "CSV", "csv"),
        ("rows.json", AS_CSV.replace(",", "\t"), "TSV", "tsv"),
        ("rows.json", AS_YAML, "YAML", "yaml"),
        ("rows.jsonl", AS_JSON, "JSON", "json"),
        ("rows.jsonl", json.dumps(WRAPPED), "JSON", "json"),
        ("rows.jsonl", json.dumps({"rows": WRAPPED}, indent=1), "JSON", "json"),
        ("rows.jsonl", AS_CSV, "CSV", "csv"),
        ("rows.ndjson", AS_YAML, "YAML", "yaml"),
        ("rows.yaml", AS_LINES, "JSON Lines", "jsonl"),
        ("rows.yaml", AS_CSV, "CSV", "csv"),
        ("rows.csv", AS_JSON, "JSON", "json"),
        ("rows.csv", json.dumps(WRAPPED), "JSON", "json"),
        ("rows.tsv", AS_LINES, "JSON Lines", "jsonl"),
    ],
)
async def test_a_file_named_for_another_form_is_told_once_which_it_looks_like_and_is_read_under_that_name(
    name: str, text: str, form: str, ending: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    error = await refused(tmp_path / name)
    (problem,) = error.problems
    assert problem.endswith(f"; it looks like {form}, whose name ends in .{ending}")
    assert "Name it for what it is" in error.next_step
    (tmp_path / name).rename(tmp_path / f"right.{ending}")
    assert (await read(tmp_path / f"right.{ending}"))[0].fields == WRAPPED[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", '[{"id": "a", "prompt": "a \\{color\\} hat"}]'),
        ("rows.jsonl", '{"id": "a", "prompt": "a \\{color\\} hat"}'),
        ("rows.yaml", '- {id: a, prompt: "a \\{color\\} hat"}'),
    ],
)
async def test_a_backslash_in_a_file_that_needs_two_is_told_so(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (problem,) = (await refused(tmp_path / name)).problems
    assert problem.endswith(r"; a backslash is written as two, such as \\{color\\}")
    (tmp_path / name).write_text(text.replace("\\", r"\\"))
    (record,) = await read(tmp_path / name)
    assert record.fields["prompt"] == r"a \{color\} hat"


async def test_a_row_that_is_no_mapping_is_told_among_the_others() -> None:
    bad = "is str, where a mapping of fields is expected"
    assert await read(["a", {"id": "b"}]) == [Record("row 1", {}, (bad,)), Record("row 2", {"id": "b"})]


async def test_a_row_that_can_become_a_mapping_is_told_how() -> None:
    told = (await refused_rows([AsDataclass("a"), AsModel(id="b"), AsTuple("c"), 5])).problems
    assert told == (
        "row 1: is AsDataclass, where a mapping of fields is expected: dataclasses.asdict(row)",
        "row 2: is AsModel, where a mapping of fields is expected: row.model_dump()",
        "row 3: is AsTuple, where a mapping of fields is expected: row._asdict()",
        "row 4: is int, where a mapping of fields is expected",
    )


async def test_an_asynchronous_generator_is_told_how_it_becomes_a_list() -> None:
    async def generate_rows() -> AsyncIterator[dict[str, str]]:
        yield {"id": "a"}

    error = await refused(generate_rows())
    assert error.problems == (
        "it holds async_generator, where a list of rows is expected: [row async for row in rows]",
    )


async def test_a_line_with_more_cells_than_the_heading_is_told_when_the_standard_library_reads_it() -> None:
    reader = csv.DictReader(io.StringIO("id,model,prompt\na,gpt-4o-image,x,y\n"))
    error = await refused_rows(reader)
    assert error.problems == (
        "row 1 (a): (no heading): is a column without a name; name it, or leave it out of your table",
    )


async def test_records_are_made_while_they_are_iterated() -> None:
    taken = []

    def endless() -> Iterator[dict[str, int]]:
        for number in range(10**9):
            taken.append(number)
            yield {"id": number}

    records = await read_records(endless())
    assert [next(records).where for _ in range(3)] == ["row 1", "row 2", "row 3"]
    assert len(taken) == 3


async def test_a_record_with_a_problem_becomes_no_row_and_takes_its_id_too() -> None:
    rows: list[dict[str, Any]] = [{"id": "a", **X, "style": b"x"}, {"id": "a", **X}]
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(rows)
    assert caught.value.problems == (
        "row 1 (a): style: is bytes, which a row can't hold; write it as text",
        "row 2 (a): id: is used by row 1 already",
    )


# ---------------------------------------------------------------- lines


async def test_lines_are_those_an_editor_shows(tmp_path: Path) -> None:
    text = 'id,model,prompt\r\na,gpt-4o-image,"1\r\n2\r\n\r\n4"\r\n\r\nb,gpt-4o-image,one\u2028line\x0b\x85\r\nc,,\r\n'
    (tmp_path / "rows.csv").write_bytes(text.encode())
    assert [record.where for record in await read(tmp_path / "rows.csv")] == ["line 2", "line 7", "line 8"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_lines_of_json_are_too(end: str, tmp_path: Path) -> None:
    text = end.join([json.dumps({"id": "a", "prompt": "x\u2028y"}, ensure_ascii=False), "", "  ", '{"id": "b"}', ""])
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert [record.where for record in await read(tmp_path / "rows.jsonl")] == ["line 1", "line 4"]


async def test_an_error_in_the_middle_of_a_csv_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('id,prompt\na,"1\n2"\nb,"x" y\n')
    (problem,) = (await refused(tmp_path / "rows.csv")).problems
    assert problem.startswith("it is not valid CSV: line 4: ")
    assert problem.endswith('; a text in quotes ends there, and quotes within it are doubled: "a ""red"" hat"')
    (tmp_path / "rows.csv").write_text('id,prompt\na,"A ""red, blue"" hat"\n')
    assert [record.fields["prompt"] for record in await read(tmp_path / "rows.csv")] == ['A "red, blue" hat']


async def test_a_text_with_quotes_and_a_separator_is_told_to_double_its_quotes(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('id,prompt\na,A "red, blue" hat\n')
    ((problem,),) = [record.problems for record in await read(tmp_path / "rows.csv")]
    assert "a text with ',' in it needs quotes right around it, and quotes within it are doubled" in problem


# ---------------------------------------------------------------- separators and headings


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("rows.csv", "id;prompt, in English\na;x, y\n", ["';'"]),
        ("rows.csv", "id\tprompt\na\tx, y\n", [r"'\t'"]),
        ("rows.csv", 'id|"a;b;c;d"\na|x\n', ["'|'"]),
        ("rows.csv", "id,prompt;x\na,x\n", []),
        ("rows.csv", "sep=;\nid;prompt\na;x, y\n", []),
        ("rows.csv", '"sep=;"\nid;prompt\na;x, y\n', []),
        ("rows.tsv", "id\tprompt, in English\na\tx, y\n", []),
        ("rows.tsv", "id,prompt\na,x\n", ["','"]),
        ("rows.csv", "id\na\n", []),
    ],
)
async def test_a_separator_is_what_the_heading_or_its_own_line_says_and_is_told_if_unexpected(
    name: str, text: str, told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_text(text)
    with caplog.at_level(logging.INFO, "prefect_veogen"):
        (record,) = await read(tmp_path / name)
    assert record.fields["id"] == "a"
    assert not record.problems
    assert [message.split(" by ")[1].split(", as")[0] for message in caplog.messages] == told


async def test_a_cell_below_no_heading_is_told_once_and_blank_ones_never(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,,prompt,\na,,x,\nb, ,y\nc,!,z,?\nd,!,z,?\n")
    records = await read(tmp_path / "rows.csv")
    assert [record.problems for record in records if record.where != "line 4"] == [(), (), ()]
    assert records[2].problems == ("(no heading): column 2 has no heading, but cells; name it or delete it (got '!')",)


async def test_a_signed_link_in_a_wrong_cell_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,image_urls\na,https://a.b/1.png?sig=s3cret,https://a.b/2.png?sig=s3cret\n")
    ((problem,),) = [record.problems for record in await read(tmp_path / "rows.csv")]
    assert "https://a.b/2.png?…" in problem
    assert "s3cret" not in problem
