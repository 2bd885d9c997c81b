"""A manifest: rows from a list, a file or a link; all that is wrong with them is told at once, nothing is guessed."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefect_veogen import Asset, GenerationRequest
from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.campaign.rows import Row
from prefect_veogen.campaign.run import campaign_name
from prefect_veogen.errors import ConfigurationError, InvalidManifest
from tests.support.servers import Reply, serving

ROWS: list[dict[str, Any]] = [
    {"id": "hero", "model": "gpt-4o-image", "prompt": 'a "red" lighthouse, at dusk', "aspect_ratio": "16:9"},
    {"id": "clip", "model": "gpt-4o-image", "prompt": "Zürich\u2028at night", "take": 7, "motion_prompt": "trams pass"},
    {"id": "long", "model": "sora-2", "prompt": "waves", "duration": 10, "watermark": False, "take": "2026-11-24"},
    {
        "id": "edit",
        "model": "gpt-4o-image",
        "prompt": "blend",
        "image_urls": ["https://a.b/1.png", "https://a.b/2.png"],
    },
]


def as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, sorted({name for row in rows for name in row}))
    table.writeheader()
    for row in rows:
        table.writerow({name: " ".join(value) if isinstance(value, list) else value for name, value in row.items()})
    return text.getvalue()


def as_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows)


def as_json_with_heading(rows: list[dict[str, Any]]) -> str:
    return json.dumps({"made by": "hand", "rows": rows})


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def as_yaml(rows: list[dict[str, Any]]) -> str:
    return yaml.safe_dump(rows, allow_unicode=True)


FORMS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "rows.csv": as_csv,
    "rows.CSV": as_csv,
    "rows.json": as_json,
    "heading.json": as_json_with_heading,
    "rows.jsonl": as_jsonl,
    "rows.ndjson": as_jsonl,
    "rows.yaml": as_yaml,
    "rows.yml": as_yaml,
}


async def problems_of(manifest: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(manifest)
    return caught.value.problems


async def read_or_judged(record: dict[str, Any]) -> tuple[Sequence[Row], tuple[str, ...]]:
    try:
        return await read_manifest([record]), ()
    except InvalidManifest as error:
        return [], error.problems


async def problems_in(tmp_path: Path, name: str, text: str | bytes) -> tuple[str, ...]:
    return await problems_of(rows_in(tmp_path, name, text))


def rows_in(tmp_path: Path, name: str, text: str | bytes) -> Path:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


# ---------------------------------------------------------------- where it is, and how it is written


@pytest.mark.parametrize("name", FORMS)
async def test_every_form_says_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name](ROWS), encoding="utf-8", newline="")
    assert await read_manifest(tmp_path / name) == await read_manifest(ROWS)


async def test_rows_become_requests_with_the_campaigns_take_unless_they_have_their_own() -> None:
    rows = await read_manifest(ROWS, take="autumn")
    assert [row.id for row in rows] == ["hero", "clip", "long", "edit"]
    assert [row.request.take for row in rows] == ["autumn", 7, "2026-11-24", "autumn"]
    assert rows[2].request == GenerationRequest(
        model="sora-2", prompt="waves", duration=10, watermark=False, take="2026-11-24"
    )
    assert rows[3].request.image_urls == ("https://a.b/1.png", "https://a.b/2.png")
    assert [row.motion is None for row in rows] == [True, False, True, True]


async def test_a_windows_spreadsheets_csv_is_read_as_it_looks(tmp_path: Path) -> None:
    text = 'id , model,prompt,duration,motion_prompt,\r\n a ,gpt-4o-image,"one ""two"",\r\nthree",,,\r\n,,,,,\r\n\r\n'
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    request = GenerationRequest(model="gpt-4o-image", prompt='one "two",\nthree')
    assert await read_manifest(tmp_path / "rows.csv") == [Row("a", request)]


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.yaml"])
async def test_the_line_ends_of_a_file_make_no_other_campaign(name: str, tmp_path: Path) -> None:
    rows = [{"id": "a", "model": "gpt-4o-image", "prompt": "two\nlines", "motion_prompt": "three\n\nmore"}]
    written = [row | {key: row[key].replace("\n", "\r\n") for key in ("prompt", "motion_prompt")} for row in rows]
    (tmp_path / name).write_text(FORMS[name](written), encoding="utf-8", newline="")
    read = await read_manifest(tmp_path / name)
    assert read == await read_manifest(rows) == await read_manifest(written)
    assert campaign_name(read) == campaign_name(await read_manifest(rows))


async def test_links_signed_anew_make_no_other_campaign_and_are_not_shown_in_errors() -> None:
    def row(signature: str, **fields: Any) -> dict[str, Any]:
        link = f"https://b.example/a.png?X-Amz-Credential=me&X-Amz-Signature={signature}"
        return {"id": "a", "model": "gpt-4o-image", "prompt": "x", "image_urls": f"{link}&id=7", **fields}

    first, second = await read_manifest([row("hunter2")]), await read_manifest([row("other")])
    assert first[0].request.image_urls != second[0].request.image_urls
    assert campaign_name(first) == campaign_name(second)
    (told,) = await problems_of([row("hunter2", image_url="https://b.example/a.png?sig=hunter2")])
    assert "image_url: " in told
    assert "hunter2" not in told


async def test_a_campaign_of_rows_that_sign_nothing_keeps_the_name_it_always_had() -> None:
    assert campaign_name(await read_manifest(ROWS)) == "827f281dad34"


@pytest.mark.parametrize(
    ("written", "read"),
    [("aspect_ratio: 16:9", "16:9"), ("aspect_ratio: 9:16", "9:16"), ("take: 2026-11-24", "2026-11-24")],
)
async def test_yaml_is_read_as_it_looks(written: str, read: str, tmp_path: Path) -> None:
    text = f"- id: 007\n  model: gpt-4o-image\n  prompt: yes\n  motion_prompt:\n  motion_mode: ~\n  {written}\n"
    (tmp_path / "rows.yaml").write_text(text)
    (row,) = await read_manifest(tmp_path / "rows.yaml")
    assert (row.id, row.request.prompt, row.motion) == ("007", "yes", None)
    assert getattr(row.request, written.partition(":")[0]) == read


async def test_yaml_has_numbers_and_truths_where_they_belong(tmp_path: Path) -> None:
    text = "rows:\n- {id: 1, model: sora-2, prompt: waves, duration: 10, watermark: true, private: no, take: 3}\n"
    (tmp_path / "rows.yaml").write_text(text)
    (row,) = await read_manifest(tmp_path / "rows.yaml")
    assert (row.request.duration, row.request.watermark, row.request.private, row.request.take) == (10, True, False, 3)


async def test_yaml_refers_to_what_stands_elsewhere(tmp_path: Path) -> None:
    text = (
        "- &a {id: !!str 1, model: gpt-4o-image, prompt: &p x, take: 3}\n"
        "- &b {id: b, model: sora-2, prompt: y}\n"
        "- {<<: [*b, *a], id: c, motion_prompt: *p}\n"
    )
    rows = await read_manifest(rows_in(tmp_path, "rows.yaml", text))
    assert [row.id for row in rows] == ["1", "b", "c"]
    assert rows[2].request == GenerationRequest(model="sora-2", prompt="y", take=3)
    assert (rows[2].motion or {})["prompt"] == "x"


@pytest.mark.parametrize(
    "value",
    ["!!bool foo", "!!timestamp foo", "!!int ''", "!!binary aGk=", "!own x", "!!set {a}", "!!python/name:os.system"],
)
async def test_yaml_has_no_tags_but_those_of_text(value: str, tmp_path: Path) -> None:
    (problem,) = await problems_in(tmp_path, "rows.yaml", f"- id: a\n  prompt: {value}")
    assert problem.startswith("it is not valid YAML: line 2: the tag ")


@pytest.mark.parametrize("level", ["[{0}]", "{{<<: [{0}]}}", "{{x: [{0}]}}"])
async def test_yaml_that_unfolds_without_end_costs_nothing(level: str, tmp_path: Path) -> None:
    text = "- &a0 {id: a, model: gpt-4o-image}\n"
    for number in range(15):
        text += f"- &a{number + 1} " + level.format(", ".join([f"*a{number}"] * 9)) + "\n"
    began = time.process_time()
    await problems_in(tmp_path, "rows.yaml", f"{text}- {{id: z, prompt: *a15}}")
    assert time.process_time() - began < 10  # 9 to the power of 15 values would take years


async def test_a_path_may_be_relative_or_begin_at_home_or_be_a_file_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "my rows.csv"
    path.write_text(as_csv(ROWS), encoding="utf-8", newline="")
    for source in (path, str(path), "my rows.csv", "./my rows.csv", "~/my rows.csv", path.as_uri()):
        assert len(await read_manifest(source)) == 4, source


async def test_it_may_lie_in_a_bucket(bucket: str) -> None:
    with closing(boto3.client("s3")) as client:
        for key in ("rows.jsonl", "deep/er/rows.jsonl", "/rows.jsonl", "deep//rows.jsonl", "what?#.jsonl"):
            client.put_object(Bucket=bucket, Key=key, Body=as_jsonl(ROWS).encode())
            assert await read_manifest(f"s3://{bucket}/{key}") == await read_manifest(ROWS)
    with pytest.raises(ConfigurationError, match="no manifest at"):
        await read_manifest(f"s3://{bucket}/gone.csv")
    assert await read_manifest(f"S3://{bucket}/rows.jsonl") == await read_manifest(ROWS)


async def test_an_s3_that_is_set_up_wrongly_is_no_missing_manifest(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match="nobody"):
        await read_manifest(f"s3://{bucket}/rows.csv")


async def test_it_may_be_a_link_that_redirects_and_whose_signature_is_never_shown() -> None:
    answers = {
        "/rows.csv?secret=1": Reply(302, {"Location": "/there.csv"}),
        "/there.csv": Reply(body=as_csv(ROWS).encode()),
        "/latin.csv?secret=1": Reply(body="id,model,prompt\na,gpt-4o-image,Zürich\n".encode("latin-1")),
    }
    with serving(lambda request: answers.get(request.path, Reply(404))) as origin:
        assert await read_manifest(f"{origin}/rows.csv?secret=1") == await read_manifest(ROWS)
        with pytest.raises(ConfigurationError, match="HTTP 404") as gone:
            await read_manifest(f"{origin}/gone.csv?secret=1")
        with pytest.raises(InvalidManifest, match="line 2: it is not UTF-8") as latin:
            await read_manifest(f"{origin}/latin.csv?secret=1")
        assert "secret" not in f"{gone.value} {latin.value}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "is an empty text"),
        ("rows", "unknown file extension"),
        ("rows.txt", ".csv, .tsv, .json"),
        ("gone.csv", "no manifest at gone.csv"),
        ("gone/gone.csv", "no manifest at gone/gone.csv"),
        ("ftp://host/rows.csv", "http"),
        ("http://127.0.0.1:9/rows.csv", "can't be read"),
        ("http://[/rows.csv", "can't be read"),
    ],
)
async def test_a_place_without_a_manifest_is_named(source: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await read_manifest(source)
    assert said in str(caught.value)
    assert "VEOGEN_STORE" not in str(caught.value)


@pytest.mark.parametrize("source", [f"{'x' * 300}.csv", "a\0b.csv", "~nobody-of-that-name/rows.csv"])
async def test_what_is_no_file_is_told_by_its_name(source: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be read") as caught:
        await read_manifest(source)
    assert f"The manifest {source} " in str(caught.value)
    assert "VEOGEN_STORE" not in str(caught.value)


@pytest.mark.parametrize("manifest", [None, 5, b"rows.csv", {"rows": 3}, {}, {"a", "b"}])
async def test_what_is_no_list_is_refused_as_an_argument_too(manifest: Any) -> None:
    (problem,) = await problems_of(manifest)
    assert "where a list of rows is expected" in problem


async def test_rows_below_a_heading_are_rows_as_an_argument_too() -> None:
    assert await read_manifest({"made by": "hand", "rows": ROWS}) == await read_manifest(ROWS)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "http://user:s3cret@127.0.0.1:99999/rows.csv",
            "http://127.0.0.1:99999/rows.csv can't be read: it is not a valid link",
        ),
        ("http://user:s3cret@xn--zzzzzz99999/rows.csv", "not a valid link"),
        ("http://user:s3cret@h/\ud800.csv", "not a valid link"),
        ("http://user:s3cret@127.0.0.1:9/rows.csv", "can't be read"),
        ("http://user:s3cret@127.0.0.1:9/rows?sig=s3cret", "http://127.0.0.1:9/rows can't be read"),
        ("file:///rows?sig=s3cret", "The manifest file:///rows has an unknown file extension"),
        ("ftp://user:s3cret@h/rows.csv?sig=s3cret", "ftp://h/rows.csv is not a supported link"),
    ],
)
async def test_a_link_that_cannot_be_followed_is_named_without_its_secrets(source: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await read_manifest(source)
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_a_page_instead_of_the_file_and_a_redirect_into_nothing_are_said_to_be_that() -> None:
    answers = {
        "/login.csv": Reply(body=b"\n<!DOCTYPE html><title>Sign in, please</title>"),
        "/moved.csv": Reply(302, {"Location": "http://127.0.0.1:99999/rows.csv"}),
    }
    with serving(lambda request: answers[request.path]) as origin:
        for path, said in (("login.csv", "it is an HTML page"), ("moved.csv", "not a valid link")):
            with pytest.raises(ConfigurationError, match=said):
                await read_manifest(f"{origin}/{path}")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.csv", "", "no rows"),
        ("rows.csv", "id,model,prompt\n", "no rows"),
        ("rows.csv", "id,model,prompt,prompt\na,gpt-4o-image,b,c\n", "more than one column 'prompt'"),
        ("rows.csv", 'id,model,prompt\na,gpt-4o-image,"b', "not valid CSV"),
        ("rows.csv", b"\xff\xfei\x00d\x00", "no rows"),
        ("rows.json", b"\xe9", "not UTF-8"),
        ("rows.json", "[{]", "not valid JSON"),
        ("rows.json", "[" * 100_000, "not valid JSON"),
        ("rows.json", "[]", "no rows"),
        ("rows.json", '"rows"', "str, where a list"),
        ("rows.json", '{"rows": 3}', "dict, where a list"),
        ("rows.json", "[3]", "row 1: is int"),
        ("rows.jsonl", '{"id": 1}\n{\n\n[\n', "line 2 is not valid JSON"),
        ("rows.jsonl", '{"id": 1}\n{\n\n[\n', "line 4 is not valid JSON"),
        ("rows.yaml", "a: [", "not valid YAML"),
        ("rows.yaml", "", "it is empty"),
        ("rows.yaml", "[]\n---\n[]", "more than one document"),
        ("rows.yaml", "[" * 100_000, "nest"),
        ("rows.yaml", "- " * 100_000, "is nested too deeply"),
        pytest.param("rows.yaml", f"- &a {'x' * 100_001}", "line 1: is a text of 100001 characters", id="long-text"),
        ("rows.yaml", "- &a [*a]", "line 1: *a refers to no complete anchor before it"),
        ("rows.yaml", "- {id: a}\n- {<<: a}", "line 2: << must refer to mappings"),
        ("rows.yaml", "- {[a]: b}", "line 1: has a key that is not text"),
    ],
)
async def test_what_is_no_table_of_rows_is_refused(name: str, text: str | bytes, said: str, tmp_path: Path) -> None:
    assert any(said in problem for problem in await problems_in(tmp_path, name, text))


# ---------------------------------------------------------------- what is wrong with rows


async def test_every_problem_of_every_row_is_told_at_once_with_number_and_id(tmp_path: Path) -> None:
    text = (
        "id,model,prompt,duration,take,motion_prompt,motion_duration,image_urls\n"
        "a,gpt-4o-image,fine,,,,,\n"
        "b,,,ten,,,8.5,\n"
        ",gpt-4o-image,c,,,,,ftp://a.b/c.png\n"
        "a,gpt-4o-image,d,,,,,,one,two\n"
    )
    told = await problems_in(tmp_path, "rows.csv", text)
    expected = [
        "line 3 (b): model: is required",
        "line 3 (b): prompt: is required",
        "line 3 (b): duration: must be a whole number (got 'ten')",
        "line 3 (b): motion_prompt: is required by the other motion_ fields",
        "line 3 (b): motion_duration: must be a whole number (got '8.5')",
        "line 4: id: is required",
        "line 4: image_urls: item 0 ('ftp://a.b/c.png') is not a valid http:// or https:// URL",
        "line 5 (a): id: is used by line 2 already",
        "line 5 (a): (no heading): the line has more cells than the heading; a text with ',' in it needs quotes",
    ]
    assert len(told) == len(expected)
    for problem, begin in zip(told, expected, strict=True):
        assert problem.startswith(begin)


async def test_what_is_wrong_with_a_heading_is_told_once_and_long_lists_of_problems_are_cut(tmp_path: Path) -> None:
    rows = "".join(f"r{number},gpt-4o-image,{{color}},9,7,x\n" for number in range(1000))
    text = f"id,model,prompt,Dauer,ID,\n{rows}"
    with pytest.raises(InvalidManifest) as caught:
        await read_manifest(rows_in(tmp_path, "rows.csv", text))
    unknown, unnamed, other = [problem for problem in caught.value.problems if "placeholder" not in problem]
    assert unnamed.startswith(
        "line 2 (r0): (no heading): column 6 has no heading, but cells; name it or delete it (got 'x')"
    )
    assert other.startswith("line 2 (r0): ID: differs from 'id' in upper and lower case only; name it 'id', ")
    assert unknown.startswith("line 2 (r0): Dauer: is not a field of a row (got '9'); allowed: ")
    assert "variants; or take it along with carry=" in unknown
    assert len(caught.value.problems) == 1002
    assert "… and 952 more" in str(caught.value)
    assert len(str(caught.value)) < 15_000


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        (float("nan"), "is required"),
        ([1, 2], "must be text or a whole number"),
        ({"a": 1}, "must be text or a whole number"),
        (True, "must be text or a whole number"),
        (1.5, "must be text or a whole number"),
        pytest.param(10**5000, "has more than 18 digits", id="huge"),
        pytest.param("x" * 201, "is 201 characters long; at most 200", id="long"),
        pytest.param("\ud800", "contains half a character", id="surrogate"),
        ("a\x1b[31m", "contains the control character"),
        ("a\nb", "must be one line"),
    ],
)
async def test_an_id_is_a_short_text_or_a_whole_number(identity: Any, said: str) -> None:
    (problem,) = await problems_of([{"id": identity, "model": "gpt-4o-image", "prompt": "x"}])
    assert problem.startswith(f"row 1: id: {said}")


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("rows.json", '[{"id": "a", "model": "gpt-4o-image", "prompt": "one", "prompt": "two"}]', "row 1"),
        ("rows.jsonl", '{"id": "a", "model": "gpt-4o-image", "prompt": "one", " prompt ": "two"}', "line 1"),
        ("rows.yaml", "- id: a\n  model: gpt-4o-image\n  prompt: one\n  prompt: two\n", "row 1"),
        ("rows.yaml", "- &a {id: a, prompt: one, prompt: two}\n- {<<: *a, id: b}\n", "row 1"),
    ],
)
async def test_a_field_that_is_there_twice_is_told_of_its_row(name: str, text: str, where: str, tmp_path: Path) -> None:
    assert (await problems_in(tmp_path, name, text))[0] == f"{where} (a): prompt: is set twice"


async def test_only_what_looks_like_a_number_is_one() -> None:
    takes = ["7", "007", "0", "00", "-7", "-0", "+7", "7.0"]
    rows = await read_manifest([{"id": take, "model": "gpt-4o-image", "prompt": "x", "take": take} for take in takes])
    assert [row.request.take for row in rows] == [7, "007", 0, "00", -7, "-0", "+7", "7.0"]
    assert len({row.request.receipt_key("https://a.b") for row in rows}) == len(takes)


async def test_takes_are_filled_in_by_whom_it_was_told() -> None:
    takes = ("{a}", "{b}", None)
    rows = [{"id": n, "model": "gpt-4o-image", "prompt": "x", "take": take} for n, take in enumerate(takes)]
    filled = await read_manifest(rows, "{c}", lambda take: take.strip("{}"))
    assert [row.request.take for row in filled] == ["a", "b", "c"]


async def test_the_id_of_a_wrong_row_is_taken_too() -> None:
    told = await problems_of([{"id": "a"}, {"id": "a", "model": "gpt-4o-image", "prompt": "fine"}])
    assert "row 2 (a): id: is used by row 1 already" in told


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("promt", "nearest: prompt"),
        ("aspectratio", "nearest: aspect_ratio"),
        ("motion_promt", "nearest: motion_prompt"),
        ("motion_durations", "nearest: motion_duration"),
        ("motion_take", "motion_take: is not a field of a row"),
        ("motion_image_urls", "motion_image_urls: is not a field of a row"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_nearest_known_one(field: str, nearest: str) -> None:
    row = {"id": "a", "model": "gpt-4o-image", "prompt": "x", "motion_prompt": "y", field: "z"}
    (problem,) = await problems_of([row])
    assert problem.startswith(f"row 1 (a): {field}: ")
    assert nearest in problem


@pytest.mark.parametrize(
    ("field", "cell"),
    [
        ("take", "x" * 10_000),
        ("take", "9" * 5000),
        ("take", "²"),
        ("take", "--5"),
        ("take", "٣"),
        ("take", "-"),
        ("duration", "²"),
        ("duration", "--5"),
        ("duration", "9" * 5000),
        ("watermark", "maybe"),
        ("image_urls", "nonsense"),
        ("prompt", "x" * 2001),
        ("prompt", "\ud800"),
    ],
)
async def test_a_strange_cell_is_judged_by_the_request_alone(field: str, cell: str) -> None:
    row = {"id": "a", "model": "gpt-4o-image", "prompt": "x", field: cell}
    rows, problems = await read_or_judged(row)
    assert [problem.partition(": ")[2].partition(":")[0] for problem in problems] == [field] * (not rows)
    assert [getattr(made.request, field) for made in rows] in ([], [cell])


@given(
    record=st.dictionaries(
        st.sampled_from(["id", "model", "prompt", "take", "duration", "watermark", "image_urls", "motion_prompt", "x"])
        | st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    )
)
async def test_no_row_breaks_the_reading(record: dict[str, Any]) -> None:
    rows, problems = await read_or_judged(record)
    assert len(rows) == 1 or problems
    named = ("row 1", *(f"{str(name).strip()}: " for name in record))
    assert all(problem.startswith(named) or "are not fields of a row" in problem for problem in problems)


# ---------------------------------------------------------------- image, then animate


async def test_motion_fields_make_the_clip_that_begins_with_the_picture() -> None:
    picture = Asset(uri="file:///p.png", sha256="ab", size=1, content_type="image/png", generation_id="g")
    row = {"id": "a", "model": "gpt-4o-image", "prompt": "x", "aspect_ratio": "9:16", "take": 3, "motion_prompt": "y"}
    (made,) = await read_manifest([row])
    assert made.motion_request(picture) == GenerationRequest(
        model="veo-3.1-fast", prompt="y", aspect_ratio="9:16", image_urls=[picture], take=3
    )


async def test_motion_fields_override_what_the_clip_takes_from_the_picture() -> None:
    own = {"model": "grok-video-1", "aspect_ratio": "1:1", "resolution": "720p", "duration": 6, "mode": "fun"}
    row = {"id": "a", "model": "gpt-4o-image", "prompt": "x", "aspect_ratio": "16:9", "motion_prompt": "y"}
    (made,) = await read_manifest([row | {f"motion_{name}": value for name, value in own.items()}])
    assert made.motion == {"prompt": "y", **own}


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.yaml"])
async def test_five_thousand_rows_take_no_longer_than_their_number(name: str, tmp_path: Path) -> None:
    rows = [
        {"id": f"r{number}", "model": "gpt-4o-image", "prompt": f"picture {number}", "motion_prompt": "it turns"}
        for number in range(5000)
    ]

    async def seconds_for(count: int) -> float:
        (tmp_path / name).write_text(FORMS[name](rows[:count]), encoding="utf-8", newline="")
        began = time.process_time()
        assert len(await read_manifest(tmp_path / name)) == count
        return time.process_time() - began

    few = min([await seconds_for(500) for _ in range(3)])
    assert await seconds_for(5000) < 4 * 10 * few  # each compared with each other would be 100 times
