"""An input's location is one text which means the same later and elsewhere; what names none is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen import Asset, GenerationRequest
from prefect_veogen.errors import InvalidRequest
from prefect_veogen.models import file_at, object_at

PICTURE = Asset(uri="file:///x", sha256="ab" * 32, size=1, content_type="image/png", generation_id="one")


def located(item: Any) -> Any:
    return (GenerationRequest(model="gpt-4o-image", prompt="a", image_urls=[item]).image_urls or ())[0]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("./a.png", "a.png"),
        ("./a b.png", "a b.png"),
        ("./100%25 ?#ä.png", "100%25 ?#ä.png"),
        ("../work/a.png", "../work/a.png"),
        (Path("a.png"), "a.png"),
        (Path("a?b.png"), "a?b.png"),
    ],
)
def test_a_relative_path_means_the_same_after_the_working_directory_has_changed(
    given: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = located(given)
    monkeypatch.chdir("/")
    assert found.startswith("file:///")
    assert file_at(found) == tmp_path / name


def test_a_home_is_resolved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = located("~/a.png")
    monkeypatch.setenv("HOME", "/home/you")
    assert file_at(found) == Path("/home/me/a.png")
    assert file_at(located(Path("~/a.png"))) == Path("/home/you/a.png")


@pytest.mark.parametrize("given", ["/a b.png", Path("/a b.png"), "file:///a%20b.png", "file:///a b.png"])
def test_all_spellings_of_a_path_are_one_location(given: Any) -> None:
    assert located(given) == "file:///a%20b.png"


def test_a_file_name_that_is_no_text_is_kept() -> None:
    path = Path("/") / os.fsdecode(b"\xff.png")
    assert file_at(located(path)) == path


@pytest.mark.parametrize(
    "given",
    ["s3://bucket/a.png", "s3://bucket/deep/er/a b?c#d.png", "s3://bucket//a.png", "https://a.b/c.png", PICTURE],
)
def test_objects_links_and_assets_stay_as_they_are(given: Any) -> None:
    assert located(given) == given


def test_a_location_survives_its_own_text() -> None:
    request = GenerationRequest(model="m", prompt="a", image_urls=["./ä b.png", "s3://bucket/a", PICTURE])
    assert GenerationRequest.model_validate_json(request.model_dump_json()) == request
    assert GenerationRequest(**request.model_dump()) == request


def test_the_key_of_an_object_is_all_that_follows_its_bucket() -> None:
    assert object_at("s3://bucket//a/b?c#d.png") == ("bucket", "/a/b?c#d.png")
    assert object_at("https://bucket/a.png") is None


@pytest.mark.parametrize(
    "given",
    [
        "a.png",
        "folder/a.png",
        "~me/a.png",
        "//cdn.example.com/a.png",
        "",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/folder/",
        "s3:/bucket/a.png",
        "S3://bucket/a.png",
        "file://host/a.png",
        "file:a.png",
        "gs://bucket/a.png",
        "data:image/png;base64,AAAA",
    ],
)
def test_what_names_no_location_is_refused_with_what_would(given: str) -> None:
    with pytest.raises(InvalidRequest, match=r"item 0 .*s3://bucket/key, a local file .*\./path.* or an Asset"):
        located(given)


@pytest.mark.parametrize("given", ["file:///a?b.png", "file:///a.png#b"])
def test_a_file_link_with_a_query_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match="%3F or %23, or give the path"):
        located(given)


def test_a_home_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="image_urls: can't be made an absolute path"):
        located(Path("~nobody-here/a.png"))
