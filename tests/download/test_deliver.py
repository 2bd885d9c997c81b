"""From the media host into the store: exactly the bytes that were bought, however the host behaves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_veogen.api.http import MediaResponse
from prefect_veogen.download.deliver import Delivery, deliver
from prefect_veogen.download.transfer import Transfer
from prefect_veogen.errors import DownloadBroken, GenerationFailed, MediaRejected, StoreRefused
from prefect_veogen.ledger import State
from prefect_veogen.models import Generation, GenerationRequest, Kind, Output, Status
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import FAULTS, Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import S3Store, Store
from prefect_veogen.store.s3_writer import PART_BYTES
from tests.support.environments import s3_environment
from tests.support.servers import Once, Reply, Request, relayed, serving

PICTURE = GenerationRequest(model="gpt-4o-image", prompt="A red fox, ink on paper")
CLIP = GenerationRequest(model="veo-3.1-fast", prompt="A red fox walks through snow")
MIB = 1024 * 1024
LARGE = 9 * MIB

MEDIA_FAULTS = [name for name, fault in FAULTS.items() if fault.place == "media"]
PARAMETERS: dict[str, dict[str, Any]] = {
    "media-slow": {"bytes_per_second": 50_000},
    "media-stalled": {"seconds": 0.2},
    "media-huge": {"size_bytes": 300_000},
}
# What needs no second call, because a download goes on by itself.
HONEST = ["media-truncated", "media-reset", "media-slow", "media-stalled", "media-expired", "media-404", "media-410"]
HONEST += ["media-500", "media-503", "media-redirect", "media-no-range", "media-changed"]


async def bought(sandbox: Sandbox, request: GenerationRequest = CLIP) -> Generation:
    session = open_session()
    generation = (await on_io(buy(session, request))).generation
    sandbox.advance(600)
    return await on_io(wait(session, generation))


async def delivered(generation: Generation) -> Delivery:
    return await on_io(deliver(open_session(), generation))


async def content(store: Store, uri: str) -> bytes:
    key = store.key(uri)
    document = await store.read(key) if key else None
    assert document is not None
    return document.body


async def served(sandbox: Sandbox, generation_id: str) -> bytes:
    """Return what the media host serves for a generation when nothing goes wrong."""
    sandbox.clear_faults()
    url = next(record.output_url for record in sandbox.generations if record.id == generation_id)
    assert url is not None
    async with httpx.AsyncClient() as anybody:
        return (await anybody.get(url)).content


def media_requests(sandbox: Sandbox) -> list[Any]:
    return [record for record in sandbox.requests if record.origin == "media"]


def delete(store: Store, key: str) -> None:
    if isinstance(store, S3Store):
        store.client().delete_object(Bucket=store.bucket, Key=store.prefix + key)
    else:
        Path(store.uri(key).removeprefix("file://")).unlink()


def leftovers(store: Store) -> int:
    if isinstance(store, S3Store):
        return len(store.client().list_multipart_uploads(Bucket=store.bucket).get("Uploads", ()))
    return len(list((Path(store.uri("").removeprefix("file://")) / ".unfinished").glob("*")))


# ---------------------------------------------------------------- every fault


@pytest.mark.parametrize("name", MEDIA_FAULTS)
async def test_whatever_the_host_does_the_served_bytes_are_stored_and_bought_once(
    name: str, sandbox: Sandbox, store_url: str
) -> None:
    generation = await bought(sandbox)
    sandbox.fault(name, **PARAMETERS.get(name, {}))
    store, errors, delivery = open_session().store, [], None
    for _ in range(3):
        try:
            delivery = await delivered(generation)
            break
        except (MediaRejected, DownloadBroken) as error:
            errors.append(error)
    assert delivery is not None
    assert not errors or name not in HONEST
    stored = await content(store, delivery.asset.uri)
    assert stored == await served(sandbox, generation.id)
    assert (delivery.asset.size, delivery.asset.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert len(sandbox.bill) == 1
    assert leftovers(store) == 0
    assert (await delivered(generation)).reused
    assert not any(record.had_authorization for record in media_requests(sandbox))


@pytest.mark.parametrize("fault", ["media-truncated", "media-reset"])
async def test_a_broken_download_goes_on_where_it_broke(fault: str, sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox)
    sandbox.fault(fault, share=0.7)
    delivery = await delivered(generation)
    first, second = media_requests(sandbox)
    start = int(second.headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert second.status == 206
    assert second.headers["if-range"].startswith('"')
    assert "range" not in first.headers
    # What had arrived by then is not transferred again; a reset may take the last pieces with it.
    assert start == int(delivery.asset.size * 0.7) if fault == "media-truncated" else start >= 0


async def test_a_file_that_changed_meanwhile_starts_over(sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox)
    before = await served(sandbox, generation.id)
    sandbox.fault("media-truncated")
    sandbox.fault("media-changed")
    delivery = await delivered(generation)
    stored = await content(open_session().store, delivery.asset.uri)
    assert stored != before
    assert stored == await served(sandbox, generation.id)
    assert leftovers(open_session().store) == 0


async def test_a_stale_link_is_replaced_by_asking_the_generation(sandbox: Sandbox) -> None:
    generation = await bought(sandbox)
    assert generation.output is not None
    sandbox.fault("media-expired")
    delivery = await delivered(generation)
    assert delivery.asset.source_url != generation.output.url
    assert [record.status for record in media_requests(sandbox)] == [403, 200]


@pytest.mark.parametrize("fault", ["media-truncated", "media-500", "media-404"])
async def test_a_host_that_never_delivers_is_given_up_without_leftovers(fault: str, sandbox: Sandbox) -> None:
    generation = await bought(sandbox)
    parameters: dict[str, Any] = {"share": 0.0} if fault == "media-truncated" else {}
    sandbox.fault(fault, times=None, **parameters)
    with pytest.raises(DownloadBroken, match=generation.id):
        await delivered(generation)
    assert len(media_requests(sandbox)) <= 8
    store = open_session().store
    assert leftovers(store) == 0
    assert await store.list_objects("assets/") == []
    assert len(sandbox.bill) == 1


# ---------------------------------------------------------------- a host of our own


CLIP_BYTES = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\0\x2cmoov\0\0\0\x24trak\0\0\0\x1cmdia"
CLIP_BYTES += b"\0\0\0\x14hdlr" + bytes(8) + b"vide" + (16 + 3_000_000).to_bytes(4, "big") + b"mdat"
CLIP_BYTES += bytes(range(256)) * (3_000_008 // 256) + bytes(3_000_008 % 256)


def elsewhere(url: str, kind: Kind = Kind.VIDEO) -> Generation:
    """Return a completed generation, bought elsewhere, whose file lies on another server."""
    return Generation(id="gen-1", status=Status.COMPLETED, type=kind, output=Output(url=url))


async def test_a_host_without_validators_is_read_again_from_the_start_but_not_for_ever(sandbox: Sandbox) -> None:
    asked: list[Request] = []

    def breaking(request: Request) -> Reply:
        asked.append(request)
        return Reply(200, {}, CLIP_BYTES, cut_at=2_000_000)

    with serving(breaking) as host, pytest.raises(DownloadBroken):
        await asyncio.wait_for(delivered(elsewhere(f"{host}/x.mp4")), 30)
    assert len(asked) <= 6
    assert not any("range" in request.headers for request in asked)


@pytest.mark.parametrize("headers", [{"etag": '"\xe9"'}, {"last-modified": "mardi 24 d\xe9cembre"}])
async def test_a_validator_that_no_request_can_say_is_none(headers: dict[str, str], sandbox: Sandbox) -> None:
    breaks = Once(lambda request: True)
    with serving(lambda r: Reply(200, headers, CLIP_BYTES, cut_at=2_000_000 if breaks(r) else None)) as host:
        asset = (await delivered(elsewhere(f"{host}/x.mp4"))).asset
    assert asset.sha256 == hashlib.sha256(CLIP_BYTES).hexdigest()


async def test_a_file_that_changes_at_every_look_is_given_up(sandbox: Sandbox) -> None:
    looks = 0

    def changing(request: Request) -> Reply:
        nonlocal looks
        looks += 1
        return Reply(200, {"etag": f'"{looks}"'}, CLIP_BYTES, cut_at=1_500_000)

    with serving(changing) as host, pytest.raises(DownloadBroken):
        await asyncio.wait_for(delivered(elsewhere(f"{host}/x.mp4")), 40)
    assert looks < 20


async def test_a_rest_that_does_not_fit_is_not_glued_on(sandbox: Sandbox) -> None:
    def lying(request: Request) -> Reply:
        if "range" in request.headers:
            headers = {"content-range": f"bytes 0-{len(CLIP_BYTES) - 1}/{len(CLIP_BYTES)}", "etag": '"1"'}
            return Reply(206, headers, CLIP_BYTES)
        return Reply(200, {"etag": '"1"'}, CLIP_BYTES, cut_at=None if request.path.endswith("2") else 2_000_000)

    with serving(lying) as host, pytest.raises(DownloadBroken):
        await delivered(elsewhere(f"{host}/1"))
    with serving(lying) as host:
        assert (await delivered(elsewhere(f"{host}/2"))).asset.sha256 == hashlib.sha256(CLIP_BYTES).hexdigest()


@pytest.mark.parametrize("validator", ["etag", "last-modified"])
async def test_the_rest_of_another_version_is_not_glued_on(validator: str, sandbox: Sandbox) -> None:
    versions = [CLIP_BYTES, CLIP_BYTES[:1000] + bytes(len(CLIP_BYTES) - 1000)]
    names = ['"1"', '"2"'] if validator == "etag" else [f"Tue, 24 Nov 2026 10:00:0{n} GMT" for n in (1, 2)]

    def changing(request: Request) -> Reply:
        if not asked:
            asked.append(request)
            return Reply(200, {validator: names[0]}, versions[0], cut_at=2_000_000)
        if (start := request.headers.get("range", "").removeprefix("bytes=").removesuffix("-")) == "":
            return Reply(200, {validator: names[1]}, versions[1])
        # Such a host knows no If-Range.
        headers = {"content-range": f"bytes {start}-{len(CLIP_BYTES) - 1}/{len(CLIP_BYTES)}", validator: names[1]}
        return Reply(206, headers, versions[1][int(start) :])

    asked: list[Request] = []
    with serving(changing) as host:
        asset = (await delivered(elsewhere(f"{host}/x.mp4"))).asset
    assert asset.sha256 == hashlib.sha256(versions[1]).hexdigest()


async def test_a_host_that_trickles_is_given_up(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_REQUEST_TIMEOUT_SECONDS", "0.3")
    generation = await bought(sandbox)
    sandbox.fault("media-slow", bytes_per_second=2000, times=None)
    with pytest.raises(DownloadBroken, match="bytes arrived in"):
        await asyncio.wait_for(delivered(generation), 30)
    assert leftovers(open_session().store) == 0


async def test_a_failed_generation_is_said_to_have_failed_and_not_to_lack_an_output(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    generation = (await on_io(buy(open_session(), CLIP))).generation
    sandbox.advance(600)
    with pytest.raises(GenerationFailed, match="not charged"):
        await delivered(generation)


@pytest.mark.parametrize(
    "header",
    [
        "repr-digest: sha-256=:{}:",
        "content-digest: sha-256=:{}:",
        "digest: SHA-256={}",
        "x-amz-checksum-sha256: {}",
    ],
)
async def test_a_digest_that_the_host_states_is_checked(header: str, sandbox: Sandbox) -> None:
    name, _, value = header.partition(": ")
    right = base64.b64encode(hashlib.sha256(CLIP_BYTES).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    digests = {"/right": right, "/wrong": wrong}
    with serving(lambda request: Reply(200, {name: value.format(digests[request.path])}, CLIP_BYTES)) as host:
        await delivered(elsewhere(f"{host}/right"))
        with pytest.raises(MediaRejected, match="digest"):
            await delivered(elsewhere(f"{host}/wrong"))


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "http://a..b/",
        "http://127.0.0.1:99999/",
        "ftp://127.0.0.1/x",
        "javascript:alert(1)",
        "http://",
        "",
    ],
)
async def test_a_redirect_to_nowhere_is_an_error_of_ours(location: str, sandbox: Sandbox) -> None:
    nowhere = Reply(302, {"location": location})
    with serving(lambda request: nowhere) as host, pytest.raises((MediaRejected, DownloadBroken)):
        await delivered(elsewhere(f"{host}/x.mp4"))


@pytest.mark.parametrize("url", ["not a link", "file:///etc/passwd", "data:video/mp4;base64,AAAA"])
async def test_an_output_that_is_no_link_is_refused(url: str, sandbox: Sandbox) -> None:
    with pytest.raises(MediaRejected, match="not a valid http") as caught:
        await delivered(elsewhere(url))
    assert "kept" not in str(caught.value)


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize("setting", [None, "false"])
async def test_a_redirect_to_a_link_local_address_is_refused_without_connecting(
    setting: str | None, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting:
        monkeypatch.setenv("VEOGEN_ALLOW_PRIVATE_MEDIA", setting)
        generation = elsewhere("http://169.254.169.254/latest/meta-data/")
    else:
        generation = await bought(sandbox)
        sandbox.fault("media-redirect-private")
    began = time.monotonic()
    with pytest.raises(MediaRejected, match=r"private address 169\.254\.169\.254") as caught:
        await delivered(generation)
    assert "VEOGEN_ALLOW_PRIVATE_MEDIA=true" in str(caught.value)
    assert time.monotonic() - began < 3


TUNNELS_TO_LINK_LOCAL = ["[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[2001:0:4136:e378:8000:63bf:5601:5601]"]
TUNNELS_TO_PRIVATE = ["[64:ff9b::7f00:1]", "[2002:a00:1::1]"]
NO_HOSTS = ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]"]


@pytest.mark.parametrize("host", [*NO_HOSTS, *TUNNELS_TO_LINK_LOCAL])
async def test_addresses_that_no_service_has_are_refused_even_beside_a_private_api(host: str, sandbox: Sandbox) -> None:
    with pytest.raises(MediaRejected, match="private address"):
        await delivered(elsewhere(f"http://{host}:9/x.mp4"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "[::1]", "192.168.1.1", "[fd00:ec2::254]", "localhost", *TUNNELS_TO_PRIVATE]
)
async def test_a_public_api_gets_no_media_from_private_addresses(
    host: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BASE_URL", "http://192.0.2.1.invalid/api/v1")
    with pytest.raises(MediaRejected, match="private address"):
        await delivered(elsewhere(f"http://{host}:9/x.mp4"))


async def test_a_name_that_changes_its_address_after_the_check_gets_nothing_in(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_ALLOW_PRIVATE_MEDIA", "false")
    resolve, answers = socket.getaddrinfo, ["93.184.215.14", "127.0.0.1"]

    def rebinding(host: Any, *arguments: Any, **keywords: Any) -> Any:
        named = str(host).startswith(("rebinding", "b'rebinding"))
        return resolve(answers.pop(0) if named else host, *arguments, **keywords)

    with serving(lambda request: Reply(200, {}, CLIP_BYTES)) as host:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        with pytest.raises(MediaRejected, match="private address rebinding"):
            await delivered(elsewhere(host.replace("127.0.0.1", "rebinding.example") + "/x.mp4"))
    assert answers == []


async def test_the_setting_opens_every_address(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_ALLOW_PRIVATE_MEDIA", "true")
    with serving(lambda request: Reply(200, {}, CLIP_BYTES)) as host:
        delivery = await delivered(elsewhere(host.replace("127.0.0.1", "0.0.0.0") + "/x.mp4"))
    assert delivery.asset.size == len(CLIP_BYTES)


# ---------------------------------------------------------------- what is rejected is kept


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("media-html", "an HTML page"),
        ("media-html-as-media", "an HTML page"),
        ("media-json", "a JSON document"),
        ("media-wrong-type", "image/png, where a video is expected"),
        ("media-truncated-silently", "a truncated MP4"),
    ],
)
async def test_what_was_rejected_is_kept_with_a_note(fault: str, words: str, sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox)
    sandbox.fault(fault)
    with pytest.raises(MediaRejected, match=words) as caught:
        await delivered(generation)
    store = open_session().store
    assert caught.value.kept_at is not None
    kept = await content(store, caught.value.kept_at)
    note = json.loads(await content(store, f"{caught.value.kept_at}.json"))
    assert words in note["problem"]
    assert (note["size"], note["receipt"], note["generation_id"]) == (len(kept), generation.receipt, generation.id)
    assert await store.list_objects("assets/") == []
    assert (await receipt_of(generation)).state is State.BOUGHT


async def test_nothing_at_all_is_not_said_to_be_kept(sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox)
    sandbox.fault("media-empty")
    with pytest.raises(MediaRejected, match="nothing at all") as caught:
        await delivered(generation)
    assert caught.value.kept_at is None
    assert "kept" not in str(caught.value)
    assert await open_session().store.list_objects("rejected/") == []


async def test_the_same_bytes_are_kept_aside_once_however_often_they_are_served(
    sandbox: Sandbox, store_url: str
) -> None:
    generation = await bought(sandbox)
    sandbox.fault("media-html", times=3)
    kept = set()
    for _ in range(3):
        with pytest.raises(MediaRejected) as caught:
            await delivered(generation)
        kept.add(caught.value.kept_at)
    store = open_session().store
    assert {str(store.key(str(uri))) for uri in kept} | {f"{store.key(str(uri))}.json" for uri in kept} == {
        found.key for found in await store.list_objects("rejected/")
    }
    assert (len(kept), leftovers(store)) == (1, 0)


@pytest.mark.parametrize("body", [b"<html>" + b"x" * LARGE, CLIP_BYTES[:-1] + b"", b"\x1aX" + bytes(LARGE)])
async def test_large_rejected_bytes_are_kept_whole(body: bytes, sandbox: Sandbox, store_url: str) -> None:
    if not body.startswith((b"<", b"\x1a")):
        body = BROKEN_CLIP
    with serving(lambda request: Reply(200, {}, body)) as host, pytest.raises(MediaRejected) as caught:
        await delivered(elsewhere(f"{host}/x.mp4"))
    store = open_session().store
    assert caught.value.kept_at is not None
    assert await content(store, caught.value.kept_at) == body
    assert [found.size for found in await store.list_objects("rejected/") if not found.key.endswith(".json")] == [
        len(body)
    ]
    assert await store.list_objects("assets/") == []
    assert leftovers(store) == 0


BROKEN_CLIP = CLIP_BYTES + (LARGE + 100).to_bytes(4, "big") + b"free" + bytes(LARGE)
EXPIRED = b"<html>This link works once"


async def nothing_is_kept_of(generation: Generation, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    with pytest.raises(MediaRejected, match="could not be stored") as caught:
        await delivered(generation)
    store = open_session().store
    assert caught.value.kept_at is None
    (note,) = await store.list_objects("")
    assert json.loads(await content(store, store.uri(note.key)))["kept"] is None
    assert leftovers(store) == 0


@pytest.mark.parametrize(
    "later",
    [Reply(403, {}, EXPIRED), Reply(200, {}, EXPIRED), Reply(403, {}, BROKEN_CLIP), Reply(200, {}, BROKEN_CLIP + b"x")],
    ids=["expired", "a page", "refused", "longer"],
)
async def test_something_else_is_not_kept_in_the_place_of_large_rejected_bytes(
    later: Reply, sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_first = Once(lambda request: True)
    with serving(lambda request: Reply(200, {}, BROKEN_CLIP) if is_first(request) else later) as host:
        await nothing_is_kept_of(elsewhere(f"{host}/x.mp4"), bucket, monkeypatch)


async def test_a_host_that_trickles_when_rejected_bytes_are_to_be_kept_is_given_up(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (await bought(sandbox)).output
    assert slow is not None
    sandbox.fault("media-slow", bytes_per_second=20, times=None)
    monkeypatch.setenv("VEOGEN_REQUEST_TIMEOUT_SECONDS", "2")
    is_first, moved = Once(lambda request: True), Reply(302, {"location": slow.url})
    with serving(lambda request: Reply(200, {}, BROKEN_CLIP) if is_first(request) else moved) as host:
        await asyncio.wait_for(nothing_is_kept_of(elsewhere(f"{host}/x.mp4"), bucket, monkeypatch), 60)


TOO_LARGE = CLIP_BYTES + (2 * LARGE).to_bytes(4, "big") + b"free" + bytes(2 * LARGE - 8)


async def test_a_file_announced_above_the_limit_is_refused_without_a_trace(
    sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_MAX_ASSET_BYTES", str(LARGE))
    told = rf"announces {len(TOO_LARGE)} bytes, more than {LARGE} \(VEOGEN_MAX_ASSET_BYTES\)"
    with serving(lambda request: Reply(200, {}, TOO_LARGE)) as host, pytest.raises(MediaRejected, match=told) as caught:
        await delivered(elsewhere(f"{host}/x.mp4"))
    store = open_session().store
    assert "kept" not in str(caught.value)
    assert caught.value.kept_at is None
    assert await store.list_objects("") == []
    assert leftovers(store) == 0


@contextmanager
def serving_without_a_length(body: bytes, header: str = "Server: none") -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header(*header.split(": "))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def test_of_a_file_that_turns_out_to_be_above_the_limit_the_same_beginning_is_kept_once(
    sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_MAX_ASSET_BYTES", str(LARGE))
    places = set()
    with serving_without_a_length(TOO_LARGE) as host:
        for _ in range(2):
            with pytest.raises(MediaRejected, match="VEOGEN_MAX_ASSET_BYTES") as caught:
                await delivered(elsewhere(f"{host}/x.mp4"))
            places.add(str(caught.value.kept_at))
    (place,) = places
    store = open_session().store
    assert await content(store, place) == TOO_LARGE[: LARGE + 1]
    assert json.loads(await content(store, f"{place}.json"))["kept"].startswith("the beginning of it")
    assert len(await store.list_objects("")) == 2
    assert leftovers(store) == 0


# ---------------------------------------------------------------- what is in the store


async def receipt_of(generation: Generation) -> Any:
    assert generation.receipt is not None
    entry = await open_session().ledger.read(generation.receipt)
    assert entry is not None
    return entry.receipt


async def test_the_sidecar_tells_where_an_asset_comes_from(sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox, PICTURE)
    asset = (await delivered(generation)).asset
    sidecar = json.loads(await content(open_session().store, f"{asset.uri}.json"))
    assert sidecar["asset"] == asset.model_dump(mode="json", exclude={"price_usd"})
    assert sidecar["request"] == {"model": PICTURE.model, "prompt": PICTURE.prompt}
    assert sidecar["generation"]["id"] == generation.id
    assert (sidecar["price_usd"], sidecar["receipt"], sidecar["take"]) == ("0.02", generation.receipt, "1")
    assert asset.uri.endswith(".png")
    assert "/assets/gpt-4o-image/a-red-fox-ink-on-paper-" in asset.uri


async def test_the_sidecar_tells_labels_and_campaign_it_was_bought_with_and_what_is_carried_along(
    sandbox: Sandbox, store_url: str
) -> None:
    labelled = replace(open_session(labels={"project": "spring"}), campaign="sale")
    await on_io(buy(labelled, PICTURE))
    generation = await bought(sandbox, PICTURE)
    carrying = replace(open_session(labels={"project": "autumn"}), campaign="fair", carried={"sku": 7, "note": None})
    asset = (await on_io(deliver(carrying, generation))).asset
    sidecar = json.loads(await content(open_session().store, f"{asset.uri}.json"))
    assert (sidecar["labels"], sidecar["campaign"]) == ({"project": "spring"}, "sale")
    assert sidecar["carried"] == {"sku": 7, "note": None}


async def test_a_sidecar_of_nothing_labelled_and_nothing_carried_says_no_more_than_that(sandbox: Sandbox) -> None:
    asset = (await delivered(await bought(sandbox, PICTURE))).asset
    sidecar = json.loads(await content(open_session().store, f"{asset.uri}.json"))
    assert sidecar["labels"] == {}
    assert not {"campaign", "carried"} & sidecar.keys()


async def test_no_secret_gets_into_the_store(sandbox: Sandbox, store_url: str) -> None:
    secret = "https://example.com/in.png?X-Amz-Signature=hunter2#hunter2"
    request = GenerationRequest(model="gpt-4o-image", prompt="As in the picture", image_urls=(secret,))
    store = open_session().store
    generation = await bought(sandbox, request)
    assert "hunter2" in str(generation.parameters)
    await delivered(generation)
    everything = [await store.read(found.key) for found in await store.list_objects("")]
    assert len(everything) >= 4
    for document in everything:
        assert document is not None
        assert b"hunter2" not in document.body
        assert sandbox.token.encode() not in document.body


async def test_an_asset_that_is_there_is_not_fetched_again(sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox, PICTURE)
    first = await delivered(generation)
    again = await delivered((await on_io(buy(open_session(), PICTURE))).generation)
    assert (first.reused, again.reused) == (False, True)
    assert again.asset == first.asset
    assert len(media_requests(sandbox)) == 1


@pytest.mark.parametrize("harm", ["deleted", "altered", "shortened"])
async def test_an_asset_that_is_harmed_is_fetched_again_without_a_purchase(
    harm: str, sandbox: Sandbox, store_url: str
) -> None:
    generation = await bought(sandbox, PICTURE)
    asset = (await delivered(generation)).asset
    store = open_session().store
    key, whole = str(store.key(asset.uri)), await content(store, asset.uri)
    if harm == "deleted":
        delete(store, key)
    else:
        await store.put(key, b"X" + whole[1:] if harm == "altered" else whole[:-1], "image/png")
    again = await delivered((await on_io(buy(open_session(), PICTURE))).generation)
    assert not again.reused
    assert again.asset == asset
    assert await content(store, asset.uri) == whole
    assert len(sandbox.bill) == 1


async def test_an_asset_that_was_only_copied_is_not_fetched_again(sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox, PICTURE)
    asset = (await delivered(generation)).asset
    store = open_session().store
    writer = store.writer(str(store.key(asset.uri)), "image/png")
    await writer.write(await content(store, asset.uri))
    await writer.commit()
    assert (await delivered(generation)).reused


async def test_a_store_that_was_moved_still_has_its_assets(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", str(tmp_path / "before"))
    generation = await bought(sandbox, PICTURE)
    asset = (await delivered(generation)).asset
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    monkeypatch.setenv("VEOGEN_STORE", str(tmp_path / "after"))
    moved = await delivered(generation)
    assert (moved.reused, moved.asset.sha256) == (True, asset.sha256)
    assert moved.asset.uri == asset.uri.replace("before", "after")


async def test_content_types_are_what_the_bytes_show(sandbox: Sandbox, bucket: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    store = open_session().store
    assert isinstance(store, S3Store)
    for request, expected in ((PICTURE, "image/png"), (CLIP, "video/mp4")):
        asset = (await delivered(await bought(sandbox, request))).asset
        head = store.client().head_object(Bucket=bucket, Key=f"media/{store.key(asset.uri)}")
        assert (asset.content_type, head["ContentType"]) == (expected, expected)


async def test_many_deliveries_at_once_of_one_asset_agree(sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox)
    deliveries = await asyncio.gather(*(delivered(generation) for _ in range(5)))
    assert len({delivery.asset for delivery in deliveries}) == 1
    assert (await receipt_of(generation)).state is State.STORED
    assert (await delivered(generation)).reused


async def test_a_delivery_that_is_cancelled_leaves_nothing_behind(sandbox: Sandbox, store_url: str) -> None:
    generation = await bought(sandbox)
    sandbox.fault("media-slow", bytes_per_second=1000, times=1)
    delivering = asyncio.create_task(delivered(generation))
    await asyncio.sleep(0.3)
    delivering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivering
    await asyncio.sleep(0.2)
    store = open_session().store
    assert leftovers(store) == 0
    assert await store.list_objects("assets/") == []
    assert not (await delivered(generation)).reused


async def received(transfer: Transfer, chunks: AsyncIterator[bytes]) -> None:
    try:
        await transfer.receive(MediaResponse(httpx.Response(200, content=chunks)))
    except BaseException:
        await transfer.abort()
        raise


async def test_a_transfer_cancelled_while_its_upload_is_created_leaves_none(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    session, loop, freed, occupied = open_session(), asyncio.get_running_loop(), threading.Event(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))

    async def chunks() -> AsyncIterator[bytes]:
        yield CLIP_BYTES[:MIB]
        for _ in range(PART_BYTES // MIB - 1):
            yield bytes(MIB)
        # The chunk that fills the first part is being taken: both its judging and its writing wait for the thread.
        loop.run_in_executor(None, freed.wait)
        occupied.set()
        await asyncio.Event().wait()

    transfer = Transfer(session, Kind.VIDEO, lambda extension: f"assets/x{extension}", "rejected/x")
    receiving = asyncio.create_task(received(transfer, chunks()))
    await occupied.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.wait([receiving], timeout=0.1)
    freed.set()
    await asyncio.gather(receiving, return_exceptions=True)
    await asyncio.to_thread(bool)
    assert leftovers(session.store) == 0


async def test_a_store_that_fails_at_the_end_leaves_no_upload(
    sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(request: Request) -> Reply:
        if request.method == "POST" and "uploadId" in request.path:
            return Reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        return relayed(s3_server, request)

    body = CLIP_BYTES + LARGE.to_bytes(4, "big") + b"free" + bytes(LARGE - 8)
    with serving(refusing) as proxy, serving(lambda request: Reply(200, {}, body)) as host:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        with pytest.raises(StoreRefused, match="s3:PutObject"):
            await delivered(elsewhere(f"{host}/x.mp4"))
        assert leftovers(open_session().store) == 0


# ---------------------------------------------------------------- a gigabyte


@pytest.fixture
def s3_elsewhere() -> Iterator[str]:
    """An S3 server in a process of its own, so that its memory isn't ours."""
    code = "import time; from moto.server import ThreadedMotoServer as S; s = S('127.0.0.1', 0); s.start(); "
    code += "print(s.get_host_and_port()[1], flush=True); time.sleep(600)"
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    try:
        lines = (line for line in server.stdout if line.strip().isdigit())
        yield f"http://127.0.0.1:{next(lines).strip()}"
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["directory", "bucket"])
async def test_a_gigabyte_passes_through_in_little_memory(
    kind: str, sandbox: Sandbox, s3_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "bucket":
        for name, value in s3_environment(s3_elsewhere).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VEOGEN_STORE", "s3://large/media")
        store = open_session().store
        assert isinstance(store, S3Store)
        store.client().create_bucket(Bucket="large")
    await delivered(await bought(sandbox, PICTURE))
    generation = await bought(sandbox)
    sandbox.fault("media-huge", size_bytes=1024**3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asset = (await delivered(generation)).asset
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert asset.size == 1024**3
    assert grown < 100 * 1024, f"{grown / 1024:.0f} MiB"
