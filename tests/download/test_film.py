"""What is made of clips in the store: found again by the clips' digests, with a sidecar that says of which."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen.download.clips import read_last_frame
from prefect_veogen.download.film import extract_last_frame, find_last_frame, make_film
from prefect_veogen.errors import ConfigurationError, InputUnavailable, PersonNeeded, StoreUnavailable
from prefect_veogen.models import Asset
from prefect_veogen.store import Store, open_store
from tests.support.clips import frame_times, write_clip

MIB = 1024 * 1024


async def stored(store: Store, body: bytes, name: str) -> Asset:
    key, digest = f"assets/{name}.mp4", hashlib.sha256(body).hexdigest()
    await store.put(key, body, "video/mp4")
    return Asset(uri=store.uri(key), sha256=digest, size=len(body), content_type="video/mp4", generation_id=f"g-{name}")


async def clip_in(store: Store, folder: Path, name: str = "a", **options: Any) -> Asset:
    return await stored(store, write_clip(folder / f"{name}.mp4", **options).read_bytes(), name)


def named(*clips: Asset) -> dict[str, Asset]:
    return {f"shot {number}": clip for number, clip in enumerate(clips, 1)}


async def body_of(store: Store, uri: str) -> bytes:
    key = store.key(uri)
    assert key is not None
    document = await store.read(key)
    assert document is not None
    return document.body


async def sidecar_of(store: Store, asset: Asset) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(await body_of(store, f"{asset.uri}.json"))
    return document


# ---------------------------------------------------------------- the last frame


async def test_the_last_frame_is_a_picture_in_the_store_that_says_of_which_clip_it_is(
    store_url: str, tmp_path: Path
) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    assert await find_last_frame(store, clip) is None
    frame = await extract_last_frame(store, clip)
    body = await body_of(store, frame.uri)
    assert body == read_last_frame(tmp_path / "a.mp4")
    assert (frame.sha256, frame.size) == (hashlib.sha256(body).hexdigest(), len(body))
    assert (frame.content_type, frame.generation_id) == ("image/png", "")
    sidecar = await sidecar_of(store, frame)
    assert sidecar["last_frame_of"] == {"uri": clip.uri, "sha256": clip.sha256, "generation_id": "g-a", "model": None}
    assert Asset.model_validate(sidecar["asset"]) == frame
    assert await find_last_frame(store, clip) == frame


async def test_it_is_extracted_once_and_the_clip_is_not_read_again(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    frame = await extract_last_frame(store, clip)
    await store.put("assets/a.mp4", b"gone", "video/mp4")
    assert await extract_last_frame(store, clip) == frame


async def test_killed_between_sidecar_and_bytes_the_next_one_writes_the_same_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    clip = await clip_in(store, tmp_path)
    frame = await extract_last_frame(store, clip)
    (tmp_path / "store" / "assets" / "last-frames" / f"{clip.sha256}.png").unlink()
    assert await find_last_frame(store, clip) == frame, "what was bought with it has its digest"
    assert await extract_last_frame(store, clip) == frame
    assert hashlib.sha256(await body_of(store, frame.uri)).hexdigest() == frame.sha256


async def test_many_at_once_agree_on_one_frame(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    assert (
        len({frame.sha256 for frame in await asyncio.gather(*(extract_last_frame(store, clip) for _ in range(4)))}) == 1
    )


async def test_other_bytes_of_another_ffmpeg_never_take_the_place_of_what_the_next_clip_was_bought_with(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path / "store")
    clip = await clip_in(store, tmp_path)
    frame = await extract_last_frame(store, clip)
    sidecar = tmp_path / "store" / "assets" / "last-frames" / f"{clip.sha256}.png.json"
    other = "0" * 64
    sidecar.write_text(sidecar.read_text().replace(frame.sha256, other))
    assert (await extract_last_frame(store, clip)).sha256 == other, (
        "the bytes are there: whoever uses them verifies them"
    )
    sidecar.with_suffix("").unlink()
    with pytest.raises(InputUnavailable, match=r"delete .*\.png\.json: then the shots after it are made, and bought"):
        await extract_last_frame(store, clip)
    assert not sidecar.with_suffix("").exists()


@pytest.mark.parametrize("asked", ["before the sidecar", "after it"])
async def test_another_ffmpegs_picture_that_is_about_to_be_written_is_awaited_and_used(
    asked: str, store_url: str, tmp_path: Path
) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    mine = await extract_last_frame(store, clip)
    (copied,) = [key for key in [store.key(mine.uri)] if key is not None]
    theirs = mine.model_copy(update={"sha256": hashlib.sha256(b"theirs").hexdigest(), "size": len(b"theirs")})
    document = {**await sidecar_of(store, mine), "asset": theirs.model_dump(mode="json")}
    store = open_store(f"{store_url}/other")
    clip = await clip_in(store, tmp_path)

    async def decide() -> None:
        await store.create(f"{copied}.json", json.dumps(document).encode())

    async def write_picture() -> None:
        await asyncio.sleep(1)
        await store.put(copied, b"theirs", "image/png")

    if asked == "after it":
        await decide()
        frame, _ = await asyncio.gather(extract_last_frame(store, clip), write_picture())
    else:
        extracting = asyncio.create_task(extract_last_frame(store, clip))
        await asyncio.sleep(0)
        await decide()
        frame, _ = await asyncio.gather(extracting, write_picture())
    assert frame.sha256 == theirs.sha256
    assert await body_of(store, frame.uri) == b"theirs"


async def test_what_was_copied_to_another_store_is_found_there(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    clip = await clip_in(store, tmp_path)
    frame = await extract_last_frame(store, clip)
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = await find_last_frame(open_store(tmp_path / "moved"), clip)
    assert moved is not None
    assert (moved.sha256, moved.uri) == (frame.sha256, frame.uri.replace("/store/", "/moved/"))


@pytest.mark.parametrize("what", ["changed", "gone", "no clip"])
async def test_a_clip_that_is_not_as_it_was_stored_gives_no_frame(what: str, tmp_path: Path, store_url: str) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    match what:
        case "changed":
            await store.put("assets/a.mp4", b"other", "video/mp4")
        case "gone":
            clip = clip.model_copy(update={"uri": store.uri("assets/nowhere.mp4")})
        case _:
            clip = await stored(store, b"no clip", "b")
    said = {"changed": "is not what was stored", "gone": "is gone", "no clip": "can't be extracted"}
    with pytest.raises(PersonNeeded, match=said[what]) as caught:
        await extract_last_frame(store, clip)
    assert caught.value.generation_id == clip.generation_id
    assert await find_last_frame(store, clip) is None


# ---------------------------------------------------------------- the film


async def test_a_film_lies_under_its_clips_digests_and_says_what_it_is_made_of(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    clips = [await clip_in(store, tmp_path, name, seconds=seconds) for name, seconds in (("a", 1), ("b", 2))]
    film, was_there = await make_film(store, named(*clips))
    body = await body_of(store, film.uri)
    assert (film.sha256, film.size, was_there) == (hashlib.sha256(body).hexdigest(), len(body), False)
    (tmp_path / "film.mp4").write_bytes(body)
    assert len(frame_times(tmp_path / "film.mp4")) == 24 * 3
    sidecar = await sidecar_of(store, film)
    assert [clip["sha256"] for clip in sidecar["joined_from"]] == [clip.sha256 for clip in clips]
    assert [clip["generation_id"] for clip in sidecar["joined_from"]] == ["g-a", "g-b"]
    backwards, _ = await make_film(store, named(*clips[::-1]))
    assert backwards.uri != film.uri


async def test_joined_again_it_is_the_same_and_no_clip_is_read(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    film, _ = await make_film(store, named(clip, clip))
    await store.put("assets/a.mp4", b"gone", "video/mp4")
    assert await make_film(store, named(clip, clip)) == (film, True)


@pytest.mark.parametrize("left", ["film", "sidecar"])
async def test_killed_between_film_and_sidecar_it_is_joined_again(left: str, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    clip = await clip_in(store, tmp_path)
    film, _ = await make_film(store, named(clip))
    key = store.key(film.uri)
    assert key is not None
    (tmp_path / "store" / f"{key}{'.json' if left == 'film' else ''}").unlink()
    assert await make_film(store, named(clip)) == (film, False)
    assert (await sidecar_of(store, film))["asset"]["sha256"] == film.sha256


async def test_a_clip_that_differs_is_named_and_no_film_is_left(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    clips = [await clip_in(store, tmp_path), await clip_in(store, tmp_path, "large", size="320x180")]
    with pytest.raises(ConfigurationError, match=r"again: 'shot 2', .*large\.mp4: its size is 320x180") as no:
        await make_film(store, named(*clips))
    assert not no.value.retryable
    assert await store.list_objects("assets/films/") == []


async def test_a_clip_that_is_not_as_it_was_stored_is_not_joined(tmp_path: Path, store_url: str) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    await store.put("assets/a.mp4", b"other", "video/mp4")
    with pytest.raises(PersonNeeded, match="is not what was stored"):
        await make_film(store, named(clip))
    with pytest.raises(ConfigurationError, match="is not in the store"):
        await make_film(store, named(clip.model_copy(update={"uri": "s3://other/a.mp4"})))
    assert await store.list_objects("assets/films/") == []


@pytest.mark.parametrize(
    "make", [extract_last_frame, lambda *of: make_film(of[0], named(of[1]))], ids=["last frame", "film"]
)
async def test_a_full_temporary_folder_is_a_reason_to_try_again_and_not_to_buy(
    make: Callable[[Store, Asset], Awaitable[Any]], store_url: str, tmp_path: Path
) -> None:
    store = open_store(store_url)
    clip = await clip_in(store, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # no file of this process may grow above that
    try:
        with pytest.raises(StoreUnavailable, match=r"(?s)temporary file.*TMPDIR.*nothing has to be bought") as full:
            await make(store, clip)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full.value.retryable
    assert await find_last_frame(store, clip) is None
    await make(store, clip)


async def test_large_clips_are_joined_in_little_memory(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    small = await clip_in(store, tmp_path)
    await make_film(store, named(small))  # what is loaded at the first use
    body = (tmp_path / "a.mp4").read_bytes()
    free = (30 * MIB).to_bytes(4, "big") + b"free" + bytes(30 * MIB - 8)
    large = await stored(store, body + free, "large")
    del free
    tracemalloc.start()
    await make_film(store, named(large, small, large))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB
