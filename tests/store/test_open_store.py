"""Which locations are a store, and which of them are the same one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefect_veogen.errors import (
    ConfigurationError,
)
from prefect_veogen.store import open_store


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://no bucket/prefix",
        "s3://user:hunter2@bucket/prefix",
        "s3://bucket?key=hunter2",
        "s3://bucket/\ud800",
        "http://bucket/prefix",
        "gs://bucket/prefix",
        "S3://bucket/c",
        "s3:/bucket",
        "s3:bucket",
        Path("s3://bucket/prefix"),
        "file:/tmp/x",
        "file://",
        "file://relative/x",
        "file:///tmp/x?y",
        "",
        "  ",
        "~nobody-of-that-name/x",
        "a\0b",
        "\ud800",
        b"bytes",
    ],
    ids=ascii,
)
def test_what_is_not_a_valid_store_is_refused_with_examples(url: str | Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid store") as caught:
        open_store(url)
    assert "s3://bucket/prefix, file:///absolute/path or a path (VEOGEN_STORE, store= or --store)" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/dev/null", Path(__file__), Path(__file__).as_uri()], ids=["device", "Path", "URL"])
def test_a_file_is_not_a_store(place: str | Path) -> None:
    with pytest.raises(ConfigurationError, match="is a file, not a directory"):
        open_store(place)


def test_paths_and_file_urls_name_the_same_directory(tmp_path: Path) -> None:
    by_path = open_store(str(tmp_path / "a b"))
    assert open_store((tmp_path / "a b").as_uri()) is by_path
    assert open_store("a b") is by_path
    assert open_store(Path("a b")) is by_path
    assert by_path.key((tmp_path / "a b" / "x").as_uri()) == "x"


def test_another_environment_or_process_is_another_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{bucket}/media")
    assert open_store(f"s3://{bucket}/media/") is store
    child = os.fork()
    if child == 0:
        os._exit(open_store(f"s3://{bucket}/media") is store)
    assert os.waitpid(child, 0)[1] == 0
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert open_store(f"s3://{bucket}/media") is not store
