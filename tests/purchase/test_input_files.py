"""Inputs in buckets and local files: known by their bytes, read once, uploaded only to be bought with."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from prefect_veogen import GenerationRequest
from prefect_veogen.errors import (
    ConfigurationError,
    InputUnavailable,
    InvalidRequest,
    StoreRefused,
    StoreUnavailable,
    VeogenError,
)
from prefect_veogen.models import Asset
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase import input_files
from prefect_veogen.purchase.inputs import PRESIGNED_SECONDS, find_link, identify_inputs
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.buyers import bought_and_stored
from tests.support.media import png, wav
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.stores import opened, refusing
from tests.support.upkeep import make_plan

# A file that has only just changed may change again within a tick of its clock, so that it isn't remembered yet.
_SETTLED_SECONDS = 2.1

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket as the store, with the inputs beside it."""
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    return bucket


@pytest.fixture
def s3_requests(store: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Request]]:
    """All requests that reach the S3 server from here on."""
    seen: list[Request] = []

    def recorded(request: Request) -> Reply:
        seen.append(request)
        return relayed(s3_server, request)

    with serving(recorded) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        yield seen


def request(*images: Any, field: str = "image_urls", **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "gpt-4o-image", "prompt": "in ink", field: images, **fields})


def put(bucket: str, key: str, body: bytes) -> str:
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=body)
    return f"s3://{bucket}/{key}"


def keys(bucket: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix="media/").get("Contents", ())
    return [str(item["Key"]) for item in found]


def copies(bucket: str) -> list[str]:
    return [key for key in keys(bucket) if "/inputs/" in key]


def file(path: Path, body: bytes) -> Path:
    path.write_bytes(body)
    os.utime(path, (0, 0))
    return path


async def bought(*images: Any, **fields: Any) -> str:
    return (await on_io(buy(open_session(), request(*images, **fields)))).generation.id


async def identified(*images: Any, field: str = "image_urls") -> Asset:
    found = await on_io(identify_inputs(open_session(), request(*images, field=field)))
    return next(item for item in getattr(found, field) if isinstance(item, Asset))


async def refusal(*images: Any, field: str = "image_urls") -> VeogenError:
    """Return the error of a purchase that is refused."""
    with pytest.raises(VeogenError) as caught:
        await on_io(buy(open_session(), request(*images, field=field)))
    return caught.value


# ---------------------------------------------------------------- one purchase


async def test_the_same_bytes_are_one_purchase_wherever_they_lie(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    everywhere = [
        put(store, "refs/fox.png", png()),
        put(store, "elsewhere/same.bin", png()),
        file(tmp_path / "fox.png", png()),
        str(file(tmp_path / "a fox, again.png", png())),
        file(tmp_path / "a fox, again.png", png()).as_uri(),
        "./fox.png",
    ]
    assert len({await bought(place) for place in everywhere}) == 1
    assert len(sandbox.bill) == 1


async def test_an_asset_with_these_bytes_is_the_same_purchase(sandbox: Sandbox, store: str) -> None:
    place = put(store, "fox.png", png())
    known = (await identified(place)).model_copy(update={"generation_id": "a", "uri": "s3://elsewhere/x.png"})
    assert await bought(place) == await bought(known)


async def test_other_bytes_are_another_purchase(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    first = await bought(put(store, "fox.png", png("red")))
    assert await bought(put(store, "fox.png", png("blue"))) != first
    assert await bought(file(tmp_path / "fox.png", png("red"))) == first
    assert await bought(file(tmp_path / "fox.png", png("green"))) != first
    assert len(sandbox.bill) == 3


@pytest.mark.parametrize("how", ["written over", "replaced"])
async def test_a_file_that_changes_without_its_size_and_time_is_noticed(
    how: str, sandbox: Sandbox, store: str, tmp_path: Path
) -> None:
    place = file(tmp_path / "fox.png", png() + b"1")
    await asyncio.sleep(_SETTLED_SECONDS)
    before = await identified(place)
    changed = file(place if how == "written over" else tmp_path / "new", png() + b"2")
    changed.replace(place)
    assert (await identified(place)).sha256 != before.sha256


async def test_the_service_gets_a_presigned_link_to_the_very_bytes(
    sandbox: Sandbox, store: str, tmp_path: Path
) -> None:
    await bought(put(store, "refs/a fox?.png", png("red")), file(tmp_path / "b.png", png("blue")))
    for link, body in zip(sandbox.generations[-1].parameters["image_urls"], (png("red"), png("blue")), strict=True):
        assert f"X-Amz-Expires={PRESIGNED_SECONDS}" in link
        assert (await opened(link)).content == body


async def test_a_link_signed_anew_buys_nothing_again(
    sandbox: Sandbox, store: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await bought(put(store, "fox.png", png()))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert await bought(f"s3://{store}/fox.png") == first


async def test_an_object_of_a_bucket_works_with_a_directory_as_the_store(
    sandbox: Sandbox, bucket: str, tmp_path: Path
) -> None:
    await bought(put(bucket, "fox.png", png()))
    assert (await opened(sandbox.generations[-1].parameters["image_urls"][0])).content == png()


async def test_a_purchase_whose_response_was_lost_is_found_again(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    sandbox.fault("502-after-charge")
    await bought(file(tmp_path / "fox.png", png()))
    assert len(sandbox.bill) == 1


# ---------------------------------------------------------------- read once, uploaded once


def reads(seen: list[Request], key: str) -> int:
    return sum(request.method == "GET" and request.path.partition("?")[0].endswith(key) for request in seen)


async def test_one_reference_of_many_rows_is_read_once(
    sandbox: Sandbox, store: str, s3_requests: list[Request]
) -> None:
    place = put(store, "fox.png", png())
    rows = [request(place, prompt=f"pose {number}") for number in range(200)]
    await make_plan(open_session(), rows)
    await make_plan(open_session(), rows)
    assert reads(s3_requests, "/fox.png") == 1
    put(store, "fox.png", png("blue"))
    await make_plan(open_session(), rows)
    assert reads(s3_requests, "/fox.png") == 2


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what is read")
async def test_a_local_file_is_read_once(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    place = tmp_path / "fox.png"

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    async def read_for_another() -> int:
        before = bytes_read()
        await identified(place)
        return bytes_read() - before

    for _ in range(10):
        began = time.monotonic()
        file(place, png() + bytes(30_000_000))
        reads = await read_for_another(), await read_for_another()
        if time.monotonic() - began < input_files._SETTLED_SECONDS:  # or a busy machine may remember it already
            break
    assert min(reads) > 30_000_000
    await asyncio.sleep(_SETTLED_SECONDS)
    assert await read_for_another() > 30_000_000
    assert await read_for_another() < 1_000_000


async def test_a_plan_knows_what_was_bought_and_uploads_nothing(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    one, two = file(tmp_path / "one.png", png("red")), file(tmp_path / "two.png", png("blue"))
    await bought(put(store, "one.png", png("red")))
    before = keys(store)
    plan = await make_plan(open_session(), [request(one), request(two), request(str(two))])
    assert [item.already_bought for item in plan.items] == [True, False, True]
    assert keys(store) == before


async def test_what_was_bought_before_is_not_uploaded(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    await bought(put(store, "fox.png", png()))
    await bought(file(tmp_path / "fox.png", png()))
    assert copies(store) == []


async def test_a_local_file_is_uploaded_once_under_its_digest(
    sandbox: Sandbox, store: str, s3_requests: list[Request], tmp_path: Path
) -> None:
    one, two = file(tmp_path / "one.png", png()), file(tmp_path / "two", png())
    await on_io(many(one, two))
    key = f"media/inputs/{hashlib.sha256(png()).hexdigest()}.png"
    assert copies(store) == [key]
    assert boto3.client("s3").head_object(Bucket=store, Key=key)["ContentType"] == "image/png"
    assert sum(seen.method == "PUT" and seen.path.endswith(key) for seen in s3_requests) == 1


async def many(*places: Path) -> None:
    session = open_session()
    requests = [request(place, take=take) for place in places for take in range(6)]
    await asyncio.gather(*(buy(session, each) for each in requests))


async def test_an_upload_that_breaks_off_leaves_nothing_half_and_buys_nothing(
    sandbox: Sandbox, store: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = file(tmp_path / "fox.png", png() + bytes(20 * 1024 * 1024))

    def breaking(request: Request) -> Reply | None:
        return None if "partNumber=2" in request.path else relayed(s3_server, request)

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with serving(breaking) as endpoint, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        assert isinstance(await refusal(large), StoreUnavailable)
    assert copies(store) == []
    assert not boto3.client("s3").list_multipart_uploads(Bucket=store).get("Uploads")
    await bought(large)
    assert len(sandbox.bill) == len(copies(store)) == 1


async def test_what_a_killed_upload_left_is_swept(sandbox: Sandbox, store: str) -> None:
    boto3.client("s3").create_multipart_upload(Bucket=store, Key="media/inputs/half.png")
    assert await on_io(open_session().store.clear_unfinished(-60)) == 1


# ---------------------------------------------------------------- refused before anything is bought


async def test_a_directory_store_refuses_a_local_file(sandbox: Sandbox, tmp_path: Path) -> None:
    error = await refusal("https://example.com/a.png", file(tmp_path / "fox.png", png()))
    assert isinstance(error, ConfigurationError)
    assert f"image_urls: item 1: {(tmp_path / 'fox.png').as_uri()} is a local file" in str(error)
    assert "Use a bucket as VEOGEN_STORE" in error.next_step
    assert len(sandbox.bill) == 0
    with pytest.raises(ConfigurationError, match="Use a bucket as VEOGEN_STORE"):
        await make_plan(open_session(), [request(tmp_path / "fox.png")])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is nothing at all"),
        (b"<!doctype html><p>Sign in", "is an HTML page"),
        (b"just a text", "is plain text ('just a text' …)"),
        (b"\x00\x01\x02" * 30, "is bytes of an unknown media format"),
        (png()[:-9], "is a truncated PNG"),
        (wav(), "is audio/wav, where an image is expected"),
    ],
    ids=["empty", "html", "text", "unknown", "truncated", "audio"],
)
async def test_what_is_no_picture_is_refused(
    body: bytes, says: str, sandbox: Sandbox, store: str, tmp_path: Path
) -> None:
    place = put(store, "fox.png", body)
    error = await refusal("https://example.com/a.png", place, file(tmp_path / "x.png", body))
    assert isinstance(error, InvalidRequest)
    assert [problem.field for problem in error.problems] == ["image_urls", "image_urls"]
    assert f"image_urls: item 1: {place} {says}" in str(error)
    assert f"image_urls: item 2: {(tmp_path / 'x.png').as_uri()} {says}" in str(error)
    assert "Nothing was bought" in error.next_step
    assert (len(sandbox.bill), copies(store)) == (0, [])
    plan = await make_plan(open_session(), [request(place), request("https://example.com/a.png")])
    assert [item.problem is None for item in plan.items] == [False, True]


async def test_what_is_missing_is_refused(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    places = {
        f"s3://{store}/missing.png": "does not exist: there is no such bucket, or no such object in it",
        "s3://no-such-bucket-here/a.png": "does not exist",
        (tmp_path / "missing.png").as_uri(): "does not exist on this machine",
        (tmp_path / "folder").as_uri(): "is a directory",
        (tmp_path / "pipe").as_uri(): "is not a file",
        "file:///a%00b": "can't be read on this machine",
    }
    error = await refusal(*places)
    assert isinstance(error, InvalidRequest)
    for problem, (position, (place, says)) in zip(error.problems, enumerate(places.items()), strict=True):
        assert f"image_urls: item {position}: {place} {says}" in str(problem)
    assert len(sandbox.bill) == 0


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(403, "AccessDenied", StoreRefused), (503, "SlowDown", StoreUnavailable)]
)
async def test_a_bucket_that_refuses_to_be_read_is_named(
    status: int, code: str, kind: type[VeogenError], sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with serving(refusing(status, code)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        error = await refusal(f"s3://{bucket}/fox.png")
    assert isinstance(error, kind)
    assert f"image_urls: item 0: s3://{bucket}/fox.png can't be read" in str(error)
    assert len(sandbox.bill) == 0


async def test_audio_and_video_are_known_by_their_content(sandbox: Sandbox, store: str) -> None:
    assert (await identified(put(store, "x.png", wav()), field="audio_urls")).content_type == "audio/wav"
    with pytest.raises(InvalidRequest, match="is image/png, where a video is expected"):
        await identified(put(store, "x.mp4", png()), field="video_urls")


async def test_an_object_that_changes_before_it_is_offered_is_refused(sandbox: Sandbox, store: str) -> None:
    asset = await identified(put(store, "fox.png", png("red")))
    put(store, "fox.png", png("blue"))
    with pytest.raises(InputUnavailable, match="has changed since it was read"):
        await on_io(find_link(open_session(), asset))


async def test_a_file_that_changes_before_it_is_offered_is_refused(
    sandbox: Sandbox, store: str, tmp_path: Path
) -> None:
    asset = await identified(file(tmp_path / "fox.png", png("red")))
    file(tmp_path / "fox.png", png("blue"))
    with pytest.raises(InputUnavailable, match="has changed since it was read"):
        await on_io(find_link(open_session(), asset))
    assert copies(store) == []


async def test_a_link_that_shows_something_else_is_refused(
    sandbox: Sandbox, store: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = put(store, "fox.png", png())

    def denying(request: Request) -> Reply:
        return Reply(403) if "X-Amz-Signature" in request.path else relayed(s3_server, request)

    with serving(denying) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        error = await refusal(place)
    assert isinstance(error, InputUnavailable)
    assert f"presigned link to {place}" in error.message
    assert len(sandbox.bill) == 0


# ---------------------------------------------------------------- what is written


async def test_no_signature_is_stored_and_the_place_is(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    sandbox.advance(600)
    place = put(store, "refs/fox.png", png("red"))
    wanted = request(place, file(tmp_path / "b.png", png("blue")))
    asset = await on_io(bought_and_stored(wanted))
    client = boto3.client("s3")
    bodies = {key: client.get_object(Bucket=store, Key=key)["Body"].read() for key in keys(store)}
    assert not [key for key, body in bodies.items() if b"X-Amz" in body or b"Signature" in body]
    sidecar = bodies[asset.uri.partition(f"{store}/")[2] + ".json"].decode()
    for body in (png("red"), png("blue")):
        assert hashlib.sha256(body).hexdigest() in sidecar
    assert f"{store}/refs/fox.png" in sidecar


def test_what_is_remembered_is_bounded() -> None:
    content = input_files.Content("0", 1, "image/png", ".png")
    for number in range(input_files._MAX_KNOWN + 5):
        input_files._remember(number, content)
    assert [*input_files._known] == [*range(5, input_files._MAX_KNOWN + 5)]
