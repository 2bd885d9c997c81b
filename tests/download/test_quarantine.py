"""What is rejected is paid for, and kept: whole, once, and with a note."""

from __future__ import annotations

import asyncio
import json

import pytest

from prefect_veogen.errors import MediaRejected
from prefect_veogen.ledger import State
from prefect_veogen.models import Generation
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.deliveries import (
    CLIP_BYTES,
    LARGE,
    bought,
    content,
    delivered,
    elsewhere,
    leftovers,
    receipt_of,
    serving_without_a_length,
)
from tests.support.servers import Once, Reply, serving


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


async def test_the_same_bytes_are_quarantined_once_however_often_they_are_served(
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
    problem = rf"announces {len(TOO_LARGE)} bytes, more than {LARGE} \(VEOGEN_MAX_ASSET_BYTES\)"
    with (
        serving(lambda request: Reply(200, {}, TOO_LARGE)) as host,
        pytest.raises(MediaRejected, match=problem) as caught,
    ):
        await delivered(elsewhere(f"{host}/x.mp4"))
    store = open_session().store
    assert "kept" not in str(caught.value)
    assert caught.value.kept_at is None
    assert await store.list_objects("") == []
    assert leftovers(store) == 0


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
