"""From the media host into the store: exactly the bytes that were bought, however the host behaves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen.download.deliver import deliver
from prefect_veogen.errors import DownloadBroken, GenerationFailed, MediaRejected
from prefect_veogen.ledger import State
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import FAULTS, Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import S3Store
from tests.support.deliveries import (
    CLIP,
    CLIP_BYTES,
    PICTURE,
    bought,
    content,
    delete,
    delivered,
    elsewhere,
    leftovers,
    media_requests,
    receipt_of,
    served,
)
from tests.support.servers import Once, Reply, Request, serving

MEDIA_FAULTS = [name for name, fault in FAULTS.items() if fault.place == "media"]
PARAMETERS: dict[str, dict[str, Any]] = {
    "media-slow": {"bytes_per_second": 50_000},
    "media-stalled": {"seconds": 0.2},
    "media-huge": {"size_bytes": 300_000},
}

# What needs no second call, because a download goes on by itself.
HONEST = ["media-truncated", "media-reset", "media-slow", "media-stalled", "media-expired", "media-404", "media-410"]
HONEST += ["media-500", "media-503", "media-redirect", "media-no-range", "media-changed"]


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


async def test_a_file_that_changes_at_every_request_is_given_up(sandbox: Sandbox) -> None:
    requests = 0

    def changing(request: Request) -> Reply:
        nonlocal requests
        requests += 1
        return Reply(200, {"etag": f'"{requests}"'}, CLIP_BYTES, cut_at=1_500_000)

    with serving(changing) as host, pytest.raises(DownloadBroken):
        await asyncio.wait_for(delivered(elsewhere(f"{host}/x.mp4")), 40)
    assert requests < 20


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
    generation = await bought(sandbox)
    monkeypatch.setenv("VEOGEN_REQUEST_TIMEOUT_SECONDS", "0.3")
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


# ---------------------------------------------------------------- what is in the store


async def test_the_sidecar_says_where_an_asset_comes_from(sandbox: Sandbox, store_url: str) -> None:
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
