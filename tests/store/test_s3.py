"""A bucket as a store: conditional writes, listings, presigned links and the setup of boto3."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

from prefect_veogen.errors import (
    ConfigurationError,
    StoreRefused,
    StoreUnavailable,
    UnsafeStore,
)
from prefect_veogen.store import S3Store, open_store
from prefect_veogen.store.s3_writer import PART_BYTES
from tests.support.servers import Once, Reply, Request, relayed, serving, without
from tests.support.stores import MIB, failures, in_bucket, opened, refusing, unfinished, written


@pytest.mark.parametrize("step", ["create", "replace"])
async def test_a_repeated_write_whose_response_was_lost_is_recognised_as_our_own(
    step: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await open_store(f"s3://{bucket}/media").create("old", b"1")
    forget = Once(lambda request: request.method == "PUT")

    def forgetful(request: Request) -> Reply | None:
        reply = relayed(s3_server, request)
        return None if forget(request) else reply

    with serving(forgetful) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        reported = await (store.create("new", b"2") if step == "create" else store.replace("old", b"2", version))
        document = await store.read("new" if step == "create" else "old")
    assert forget.happened
    assert document is not None
    assert (document.body, document.version) == (b"2", reported)


async def test_a_conflict_is_retried(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = Once(lambda request: request.method == "PUT")
    body = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
    with serving(lambda r: Reply(409, {}, body) if conflict(r) else relayed(s3_server, r)) as proxy:
        await in_bucket(monkeypatch, proxy, bucket).create("one", b"1")
    assert conflict.happened


async def test_an_s3_server_that_verifies_checksums_is_accepted(
    strict_s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_bucket(monkeypatch, strict_s3)
    store.client().create_bucket(Bucket=store.bucket)
    await store.check()
    digest, _ = await written(store, "assets/clip.mp4", PART_BYTES + MIB)
    assert await store.sha256("assets/clip.mp4") == digest


@pytest.mark.parametrize("ignored", ["if-none-match", "if-match"])
async def test_an_s3_server_that_ignores_conditions_is_refused(
    ignored: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(request: Request) -> Reply:
        return relayed(s3_server, without(request, ignored))

    with serving(careless) as proxy, pytest.raises(UnsafeStore, match="both buy"):
        await in_bucket(monkeypatch, proxy, bucket).check()


@pytest.mark.parametrize("unknown", ["if-none-match", "if-match"])
async def test_an_s3_server_without_conditions_is_refused(
    unknown: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(request: Request) -> Reply:
        if unknown in request.headers:
            return Reply(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
        return relayed(s3_server, request)

    with serving(respond) as proxy, pytest.raises(UnsafeStore, match="both buy"):
        await in_bucket(monkeypatch, proxy, bucket).check()


@pytest.mark.parametrize("folder", ["assets", "budgets", "campaigns", "claims", "receipts", "rejected"])
async def test_a_folder_of_the_bucket_without_write_permission_is_named_before_anything_is_bought(
    folder: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(request: Request) -> Reply:
        closed = request.method in ("PUT", "POST") and f"/media/{folder}/" in request.path
        return refusing(403, "AccessDenied")(request) if closed else relayed(s3_server, request)

    with serving(respond) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        with pytest.raises(StoreRefused, match=f"Allow s3:PutObject on arn:aws:s3:::{bucket}/media/{folder}/\\*"):
            await store.check()
    assert unfinished(store) == 0


async def test_a_listing_reads_all_pages(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []

    def small_pages(request: Request) -> Reply:
        if "list-type=2" in request.path:
            pages.append(request.path)
            request = replace(request, path=f"{request.path}&max-keys=7")
        return relayed(s3_server, request)

    keys = sorted(f"receipts/{number:03}.json" for number in range(20))
    with serving(small_pages) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        await asyncio.gather(*(store.put(key, b"{}", "application/json") for key in [*keys, "assets/other"]))
        assert [found.key for found in await store.list_objects("receipts/")] == keys
    assert len(pages) == 3


async def test_a_presigned_link_can_be_read_by_anyone_until_it_expires(
    strict_s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_bucket(monkeypatch, strict_s3, "links")
    store.client().create_bucket(Bucket="links")
    await store.put("assets/x.png", b"picture", "image/png")
    link, short = await store.presign("assets/x.png", 600), await store.presign("assets/x.png", 1)
    assert link is not None
    assert short is not None
    assert parse_qs(urlsplit(short).query)["X-Amz-Expires"] == ["1"]
    assert (await opened(link)).content == b"picture"
    assert (await opened(link.replace("x.png", "y.png"))).status_code == 403
    await asyncio.sleep(2.1)
    assert (await opened(short)).status_code == 403


async def test_the_user_agent_of_boto3_names_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def respond(request: Request) -> Reply:
        names.append(request.headers["user-agent"])
        return refusing(403, "No")(request)

    with serving(respond) as endpoint, pytest.raises(StoreRefused):
        await in_bucket(monkeypatch, endpoint).put("one", b"1", "text/plain")
    assert "prefect-veogen/" in names[0]


async def test_an_unknown_profile_is_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match="nobody"):
        await open_store("s3://one/media").read("one")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "hunter2\n"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2\r\n"),
        ("AWS_SESSION_TOKEN", "hunt\ner2"),
        ("AWS_ENDPOINT_URL_S3", "http://user:hunter2@127.0.0.1:99999"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:port"),
        ("AWS_ENDPOINT_URL_S3", "ftp://127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_S3", "http://user:hunter2@no host"),
        ("HTTP_PROXY", "socks5://user:hunter2@127.0.0.1:9"),
        ("HTTP_PROXY", "http://user:hunter2@127.0.0.1:port"),
        ("HTTP_PROXY", "http://user:hunter2@127.0.0.1:99999"),
    ],
)
async def test_what_boto3_could_never_use_is_a_setup_error_and_not_shown(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bucket(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    for error in (await failures(S3Store("one", "media"))).values():
        assert isinstance(error, ConfigurationError)
        assert variable in str(error)
        assert "hunt" not in f"{error} {error.__dict__}"


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_a_missing_certificate_bundle_is_reported_by_its_name(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bucket(monkeypatch, "https://127.0.0.1:9")
    monkeypatch.setenv(variable, "/nowhere.pem")
    with pytest.raises(ConfigurationError, match=f"{variable}=/nowhere.pem"):
        await S3Store("one", "media").read("one")


async def test_bytes_damaged_in_transit_are_refused(strict_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging(request: Request) -> Reply:
        if request.body.startswith(b"picture"):
            request = replace(request, body=b"P" + request.body[1:])
        return relayed(strict_s3, request)

    with serving(damaging) as proxy:
        store = in_bucket(monkeypatch, proxy, "damaged")
        store.client().create_bucket(Bucket="damaged")
        with pytest.raises(StoreUnavailable, match="400"):
            await store.put("assets/x.png", b"picture", "image/png")
        assert await store.stat("assets/x.png") is None


def test_the_tests_talk_to_a_real_s3_client(bucket: str) -> None:
    with closing(boto3.client("s3")) as client:
        assert client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPStatusCode"] == 200
