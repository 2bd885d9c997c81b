"""Where a manifest is: the form of a link without an ending is what the response says, and a page is no manifest."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.campaign.records import Record, read_records
from prefect_veogen.campaign.source import Source, load
from prefect_veogen.errors import ConfigurationError
from tests.support.servers import Reply, Request, serving

CSV = b"id,model,prompt\na,gpt-4o-image,x\n"
PAGE = b"\xef\xbb\xbf\r\n<!DOCTYPE html><html><title>Sign in</title></html>"


@contextmanager
def published(headers: dict[str, str], body: bytes = CSV) -> Iterator[str]:
    with serving(lambda _: Reply(200, headers, body)) as origin:
        yield f"{origin}/spreadsheets/d/e/2PACX-1v/pub?output=csv&gid=0"


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        ("text/csv", "csv"),
        ("Text/CSV; charset=utf-8", "csv"),
        ("text/tab-separated-values; charset=utf-8", "tsv"),
        ("application/json", "json"),
        ("application/x-ndjson", "jsonl"),
        ("application/vnd.apache.parquet", "parquet"),
        ("application/vnd.apache.arrow.file", "arrow"),
        ("application/yaml", "yaml"),
        ("text/x-yaml", "yaml"),
    ],
)
async def test_a_link_without_an_ending_has_the_form_of_its_content_type(content_type: str, form: str) -> None:
    with published({"Content-Type": content_type}) as link:
        assert await load(link) == Source(CSV, form)


@pytest.mark.parametrize(
    "disposition",
    [
        'attachment; filename="Campaign - Rows.csv"',
        "attachment; filename*=UTF-8''B%C3%BCcher.csv",
        "inline;filename=a.CSV",
    ],
)
@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain", None])
async def test_or_that_of_the_name_it_is_to_be_saved_under(disposition: str, content_type: str | None) -> None:
    types = {} if content_type is None else {"Content-Type": content_type}
    with published({"Content-Disposition": disposition, **types}) as link:
        assert (await load(link)).form == "csv"


async def test_the_ending_of_a_link_wins_over_what_a_server_says() -> None:
    with serving(lambda _: Reply(200, {"Content-Type": "text/html"}, CSV)) as origin:
        assert await load(f"{origin}/rows.csv?x=1") == Source(CSV, "csv")


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "text/plain"}, {"Content-Disposition": "attachment; filename"}]
)
async def test_a_form_that_nothing_tells_is_not_guessed(headers: dict[str, str]) -> None:
    with published(headers) as link, pytest.raises(ConfigurationError, match="Content-Type") as caught:
        await load(link)
    assert "/pub has an unknown file extension" in str(caught.value)
    assert "output=csv" not in str(caught.value)
    assert ".csv, .tsv, .json" in caught.value.next_step


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, PAGE),
        ({"Content-Type": "text/csv"}, PAGE),
        ({}, PAGE),
        ({"Content-Type": "text/html"}, b"<script>location = '/ServiceLogin'</script>"),
    ],
)
async def test_a_page_is_told_to_be_one_and_how_to_publish(headers: dict[str, str], body: bytes) -> None:
    with published(headers, body) as link, pytest.raises(ConfigurationError, match="it is an HTML page") as caught:
        await load(link)
    assert "Publish to web" in caught.value.next_step


@pytest.mark.parametrize("status", [302, 303, 307, 308])
async def test_redirects_are_followed_and_no_token_goes_there(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_API_TOKEN", "vg-secret-4711")
    seen: list[Request] = []

    def answer(request: Request) -> Reply:
        seen.append(request)
        if request.path == "/export?format=csv":
            return Reply(status, {"Location": "/there"})
        return Reply(200, {"Content-Type": "text/csv"}, CSV)

    with serving(answer) as origin:
        assert list(await read_records(f"{origin}/export?format=csv")) == [
            Record("line 2", {"id": "a", "model": "gpt-4o-image", "prompt": "x"})
        ]
    assert [request.path for request in seen] == ["/export?format=csv", "/there"]
    assert not [name for request in seen for name in request.headers if name in ("authorization", "cookie")]
    assert "4711" not in str(seen)


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_link_to_more_than_a_table_of_rows_is_refused(compressed: bool) -> None:
    body = b"id,prompt\n" + b"a,x\n" * 9_000_000
    headers = {"Content-Type": "text/csv"} | ({"Content-Encoding": "gzip"} if compressed else {})
    with (
        published(headers, gzip.compress(body, 1) if compressed else body) as link,
        pytest.raises(ConfigurationError, match="too large"),
    ):
        await load(link)


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.XLS", "rows.ods", "rows.numbers", "My sheet.gsheet"])
async def test_a_workbook_is_told_to_be_saved_as_csv(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    for source in (tmp_path / name, f"https://127.0.0.1:9/{name}?sig=s3cret", f"s3://bucket/{name}"):
        with pytest.raises(ConfigurationError, match="is a workbook, which isn't read") as caught:
            await read_records(source)
        assert "CSV UTF-8 (Comma delimited)" in caught.value.next_step
        assert "s3cret" not in str(caught.value)


async def test_a_workbook_behind_a_link_without_an_ending_is_told_too() -> None:
    headers = {"Content-Disposition": 'attachment; filename="rows.xlsx"'}
    with published(headers, b"PK\x03\x04") as link, pytest.raises(ConfigurationError, match="is a workbook"):
        await load(link)


@pytest.mark.parametrize(
    ("source", "problem", "step"),
    [
        (".csv", "has an unknown file extension", "Give it a name that ends in .csv, .tsv"),
        ("rows.txt", "has an unknown file extension", "such as rows.csv."),
        ("folder", "is a directory", "Give the path of a file in it"),
        ("folder.csv", "is a directory", "Give the path of a file in it"),
        ("shop.csv.gz", "is compressed, and isn't read so", "Decompress it, and give that file, such as shop.csv."),
        ("rows.zst", "is compressed, and isn't read so", "such as rows.csv."),
        ("https://127.0.0.1:9/rows.csv.zip", "is compressed, and isn't read so", "Decompress it"),
        ("file://rows.csv", "a path begins with a third slash", "Give the path without file://"),
        ("file://folder/rows.csv", "folder would be a machine", "or file:/// with an absolute one"),
    ],
)
async def test_a_name_that_can_not_be_read_is_told_what_would_do(
    source: str, problem: str, step: str, tmp_path: Path
) -> None:
    for name in ("folder", "folder.csv"):
        (tmp_path / name).mkdir()
    for name in (".csv", "rows.csv", "folder/rows.csv"):
        (tmp_path / name).write_bytes(CSV)
    with pytest.raises(ConfigurationError) as caught:
        await load(source)
    assert problem in caught.value.message
    assert step in caught.value.next_step


@pytest.mark.parametrize("machine", ["", "localhost"])
async def test_a_file_link_is_of_this_machine(machine: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(CSV)
    assert (await load(f"file://{machine}{tmp_path}/rows.csv")).body == CSV


async def test_a_directory_of_partitions_is_told_which_dataframe_has_their_columns(tmp_path: Path) -> None:
    for model in ("m", "n"):
        (tmp_path / f"model={model}").mkdir()
        pl.DataFrame({"id": [f"a {model}"], "prompt": ["x"]}).write_parquet(tmp_path / f"model={model}" / "0.parquet")
    with pytest.raises(ConfigurationError, match="is a directory") as caught:
        await read_manifest(tmp_path)
    told = re.search(r"polars\.scan_parquet\('(.*?)'\)", caught.value.next_step)
    assert told is not None
    assert [row.request.model for row in await read_manifest(pl.scan_parquet(told[1]))] == ["m", "n"]


async def test_a_table_may_lie_in_a_bucket_in_every_form(bucket: str) -> None:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table({"id": ["a"]}), sink)
    for key, body in (("rows.parquet", sink.getvalue().to_pybytes()), ("rows.tsv", b"\xff\xfei\0d\0\n\0a\0")):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=body)
        (record,) = await read_records(f"s3://{bucket}/{key}")
        assert record.fields == {"id": "a"}
