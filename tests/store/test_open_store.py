"""Which locations are a store, and which of them are the same one."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from prefect_veogen.errors import (
    ConfigurationError,
)
from prefect_veogen.store import S3Access, S3Store, open_beside, open_store


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


# In a process of its own: a fork beside the threads of other tests may find their locks locked for ever.
FORKING = """
import os
from prefect_veogen.store import open_store

store = open_store("s3://bucket/media")
assert open_store("s3://bucket/media") is store
child = os.fork()
if child == 0:
    os._exit(open_store("s3://bucket/media") is store)
print(os.waitpid(child, 0)[1])
"""


def test_another_process_has_another_store() -> None:
    assert subprocess.check_output([sys.executable, "-c", FORKING], text=True) == "0\n"


def test_another_environment_is_another_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{bucket}/media")
    assert open_store(f"s3://{bucket}/media/") is store
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert open_store(f"s3://{bucket}/media") is not store


def test_credentials_of_their_own_make_another_store_of_the_same_bucket() -> None:
    mine, equal = (S3Access("the block x", "digest", object, {}) for _ in range(2))
    store = open_store("s3://bucket/media", mine)
    assert open_store("s3://bucket/media", equal) is store
    assert open_store("s3://bucket/media") is not store
    assert open_store("s3://bucket/media", S3Access("the block x", "other", object, {})) is not store
    assert store.uri("a") == open_store("s3://bucket/media").uri("a")


def test_what_lies_in_the_bucket_of_a_store_is_reached_as_that_is_and_nothing_else() -> None:
    store = open_store("s3://bucket/media", S3Access("the block x", "digest", object, {}))
    assert isinstance(store, S3Store)
    for location in ("s3://bucket", "s3://bucket/other"):
        beside = open_beside(store, location)
        assert isinstance(beside, S3Store)
        assert beside.access is store.access
    for location in ("s3://bucket2", "s3://bucke", "s3://other/bucket"):
        beside = open_beside(store, location)
        assert isinstance(beside, S3Store)
        assert beside.access is None
    assert open_beside(None, "s3://bucket") is open_store("s3://bucket")


@pytest.mark.parametrize(("lifetime", "sessions"), [(math.inf, 1), (0.0, 3)])
async def test_a_session_that_expires_is_opened_again(
    lifetime: float, sessions: int, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_session() -> boto3.Session:
        opened.append(1)
        return boto3.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name)
    access = S3Access("x", f"digest-{lifetime}", open_session, {"endpoint_url": s3_server}, lifetime)
    store = open_store(f"s3://{bucket}", access)
    for _ in range(3):
        assert await store.read("nothing") is None
    assert len(opened) == sessions


async def test_what_boto3_can_not_do_with_credentials_of_a_block_names_the_block() -> None:
    access = S3Access("the block s3-bucket/x", "digest-wrong", boto3.Session, {"endpoint_url": "nowhere"})
    with pytest.raises(ConfigurationError, match="as it is set up by the block s3-bucket/x"):
        await open_store("s3://bucket", access).read("x")
