"""What is made of clips in the store, free: a clip's last frame, and a film of several; both are assets with a sidecar.

Their keys come from the digests of the clips, so that the same clips give the same asset, and nothing is made twice.
The clips are streamed to temporary files, for media is read back and forth.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from prefect_veogen.download.clips import (
    FILM_TYPE,
    NotJoinable,
    join_clips,
    read_last_frame,
    reason_of,
    temporary_trouble,
)
from prefect_veogen.download.provenance import stamp
from prefect_veogen.download.publication import not_as_stored
from prefect_veogen.errors import ConfigurationError, InputUnavailable, PersonNeeded
from prefect_veogen.models import Asset
from prefect_veogen.process.concurrency import run_uninterrupted
from prefect_veogen.store import AlreadyExists, commit_at_end

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prefect_veogen.store import Store

_FRAMES: Final = "assets/last-frames/"
_FILMS: Final = "assets/films/"
_READ_BYTES: Final = 1024 * 1024
_OTHERS_PICTURE_SECONDS: Final = 5.0
"""How long another worker may take from its sidecar to its picture."""
_POLL_SECONDS: Final = 0.25


# ---------------------------------------------------------------- the last frame


async def find_last_frame(store: Store, clip: Asset) -> Asset | None:
    """Return a clip's last frame if it was extracted before, whether its bytes are still there or not. Free."""
    return await _read_asset(store, _frame_key(clip))


async def extract_last_frame(store: Store, clip: Asset) -> Asset:
    """Return a clip's last frame as a picture in the store, extracted unless it was before. Free.

    Its digest is part of what the next clip is, so it is decided once and for all: by whoever writes the sidecar first.

    Raises:
        PersonNeeded: the clip is gone, has changed, or can't be decoded.
        InputUnavailable: the frame was extracted before, is gone, and this version of FFmpeg makes other bytes of it.
        StoreUnavailable: the temporary folder is full.
    """
    key, known = _frame_key(clip), await find_last_frame(store, clip)
    if known is not None and await store.stat(key) is not None:
        return known
    picture = await _extract(store, clip)
    frame = _asset(store, key, len(picture), hashlib.sha256(picture).hexdigest(), "image/png")
    try:
        await store.create(f"{key}.json", _sidecar(frame, last_frame_of=_source(clip)))
    except AlreadyExists:
        known = await find_last_frame(store, clip)
    if known is not None and known.sha256 != frame.sha256:
        if await _appears(store, key):
            return known
        raise InputUnavailable(
            f"{known.uri} is gone, and this version of FFmpeg makes another picture of the same frame",
            next_step=f"Restore it, or delete {known.uri}.json: then the shots after it are made, and bought, anew.",
        )
    await store.put(key, picture, "image/png")
    return frame


async def _appears(store: Store, key: str) -> bool:
    """Return whether a picture is there, or comes: whoever decided what it is may be about to write it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _OTHERS_PICTURE_SECONDS
    while await store.stat(key) is None:
        if loop.time() >= end:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _frame_key(clip: Asset) -> str:
    return f"{_FRAMES}{clip.sha256}.png"


async def _extract(store: Store, clip: Asset) -> bytes:
    with _temporary_folder() as folder:
        path = await _fetch(store, clip, folder / "clip")
        try:
            return await run_uninterrupted(asyncio.to_thread(read_last_frame, path))
        except (OSError, ValueError) as error:
            raise PersonNeeded(
                f"The last frame of {clip.uri} can't be extracted: {reason_of(error)}",
                generation_id=clip.generation_id,
                next_step="The clip is kept as it is. Look at it; make the shot in another take if it is broken.",
            ) from None


# ---------------------------------------------------------------- the film


async def make_film(store: Store, clips: Mapping[str, Asset]) -> tuple[Asset, bool]:
    """Return the film of clips, one after the other, and whether it was there before. Free.

    The streams are copied as they are: their codecs, sizes and settings have to be the same. Errors call the clips by
    the names that they have here.

    Raises:
        ConfigurationError: a clip differs from the first one, so that they can't be joined without encoding them again.
        PersonNeeded: a clip is gone, or has changed.
        StoreUnavailable: the temporary folder is full: it needs room for the clips and the film.
    """
    key = f"{_FILMS}{hashlib.sha256(' '.join(clip.sha256 for clip in clips.values()).encode()).hexdigest()}.mp4"
    known, stat = await _read_asset(store, key), await store.stat(key)
    if known is not None and stat is not None and stat.size == known.size:
        return known, True
    with _temporary_folder() as folder:
        paths = [await _fetch(store, clip, folder / str(number)) for number, clip in enumerate(clips.values())]
        film = folder / "film.mp4"
        try:
            await run_uninterrupted(asyncio.to_thread(join_clips, paths, film))
        except NotJoinable as problem:
            raise _not_joined(clips, problem) from None
        asset = await _put(store, key, film)
    await store.put(
        f"{key}.json", _sidecar(asset, joined_from=[_source(clip) for clip in clips.values()]), "application/json"
    )
    return asset, False


def _not_joined(clips: Mapping[str, Asset], problem: NotJoinable) -> ConfigurationError:
    name, clip = [*clips.items()][problem.position]
    return ConfigurationError(
        f"The clips can't be joined without encoding them again: {name!r}, {clip.uri}: {problem}",
        next_step="All clips are kept. Make them alike (one model, one resolution) in another take, or run it without "
        "join and edit them elsewhere.",
    )


async def _put(store: Store, key: str, path: Path) -> Asset:
    """Return a local file as an asset, after streaming it into the store."""
    digest, size = hashlib.sha256(), 0
    with await asyncio.to_thread(path.open, "rb") as file:
        async with commit_at_end(store.writer(key, FILM_TYPE)) as writer:
            while chunk := await asyncio.to_thread(file.read, _READ_BYTES):
                digest.update(chunk)
                size += len(chunk)
                await writer.write(chunk)
    return _asset(store, key, size, digest.hexdigest(), FILM_TYPE)


# ---------------------------------------------------------------- from and to the store


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Give a folder that is removed afterwards; a store raises no OSError, so any is about the files in the folder."""
    try:
        with TemporaryDirectory(prefix="veogen-") as folder:
            yield Path(folder)
    except OSError as error:
        raise temporary_trouble(error) from None


async def _fetch(store: Store, clip: Asset, path: Path) -> Path:
    """Return the path to which a clip was streamed, verified."""
    if (key := store.key(clip.uri)) is None:
        raise ConfigurationError(
            f"{clip.uri} is not in the store {store.uri('')}", next_step="Use the store in which it lies."
        )
    digest = hashlib.sha256()
    with await asyncio.to_thread(path.open, "wb") as file:

        def take(piece: bytes) -> None:
            digest.update(piece)
            try:
                file.write(piece)
            except OSError as error:  # the store would take it for its own
                raise temporary_trouble(error) from None

        was_there = await run_uninterrupted(store.read_through(key, take)) is not None
    if not was_there or digest.hexdigest() != clip.sha256:
        raise not_as_stored(clip, was_there=was_there)
    return path


async def _read_asset(store: Store, key: str) -> Asset | None:
    """Return the asset that the sidecar of a key describes, `None` if there is none that can be read."""
    document = await store.read(f"{key}.json")
    try:
        asset = Asset.model_validate(json.loads(document.body)["asset"]) if document else None
    except (ValueError, KeyError, TypeError):
        return None  # somebody else's
    return asset and asset.model_copy(update={"uri": store.uri(key)})  # the store may have been moved or copied


def _asset(store: Store, key: str, size: int, sha256: str, content_type: str) -> Asset:
    return Asset(uri=store.uri(key), sha256=sha256, size=size, content_type=content_type, generation_id="")


def _source(clip: Asset) -> dict[str, Any]:
    return clip.model_dump(mode="json", include={"uri", "sha256", "generation_id", "model"})


def _sidecar(asset: Asset, **sources: Any) -> bytes:
    document = {"format": 1, "asset": asset.model_dump(mode="json", exclude_none=True), **sources, **stamp()}
    return json.dumps(document, indent=1, ensure_ascii=False).encode()
