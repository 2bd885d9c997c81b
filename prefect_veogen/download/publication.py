"""Copies of assets under names of the user's own: a stable place for consumers, replaced whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import mimetypes
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from prefect_veogen.errors import ConfigurationError, PersonNeeded
from prefect_veogen.models import Asset
from prefect_veogen.process.concurrency import ConcurrencyLimit, run_uninterrupted
from prefect_veogen.store import FOLDERS, AlreadyExists, VersionConflict, commit_at_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect_veogen.store import Document, Store

# What file systems (255 bytes) and buckets (1,024, with the store's prefix) have room for, less the sidecar's ".json".
_MAX_PART_BYTES = 250
_MAX_BYTES = 1000
# Each copy holds a thread for reading, which waits for another one that writes: the smallest pool, of a machine with a
# single core, has five.
_limit = ConcurrencyLimit(4)


def check_publication_key(key: str, such_as: str) -> None:
    """Validate a name in the store for a published copy; `such_as` is an example for whoever gave a wrong one.

    Raises:
        ConfigurationError: it is not valid.
    """
    if (problem := publication_key_problem(key)) is not None:
        raise ConfigurationError(
            f"Nothing can be published as {key!r}: {problem}",
            next_step=f"Nothing was bought. Give a path such as {such_as}, in none of {', '.join(FOLDERS)}.",
        )


def publication_key_problem(key: str) -> str | None:
    """Return why a published copy can't have a name: it is a relative path, not the store's own; `None` if it can."""
    parts = key.split("/")
    if f"{parts[0].casefold()}/" in FOLDERS:  # one folder where the file system thinks so
        return f"{parts[0]}/ belongs to the store itself"
    if not key.isprintable() or "\\" in key or any(not part.strip() or part.startswith(".") for part in parts):
        return "each part has to be a printable name that begins with no dot"
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return f"a part of it has more than {_MAX_PART_BYTES} bytes"
    if len(key.encode()) > _MAX_BYTES:
        return f"it has more than {_MAX_BYTES:,} bytes"
    return "it holds braces, which nothing fills in here" if {"{", "}"} & {*key} else None


def _check_ending(asset: Asset, key: str) -> None:
    ending = mimetypes.guess_type(key)[0]
    if ending is not None and ending.partition("/")[0] != asset.content_type.partition("/")[0]:
        raise ConfigurationError(
            f"{asset.uri} is {asset.content_type}, and not published as {key}: consumers would take it for {ending}",
            next_step=f"The asset stays where it is. Let the name end in {PurePosixPath(asset.uri).suffix}; in "
            "publish_as and latest of daily_content {ext} stands for it, with its dot.",
        )


async def publish(
    store: Store, asset: Asset, key: str, scheduled: datetime | None = None, take: int | str | None = None
) -> bool:
    """Copy an asset to a key, whole and verified, with a sidecar; return whether it is there now. Free.

    With `scheduled`, what was published there for a later slot stays: a late run must not bring yesterday back. What
    was published for the same `take` is replaced at any hour: its slot is being made again.
    """
    check_publication_key(key, f"site/banner{PurePosixPath(asset.uri).suffix}")
    _check_ending(asset, key)
    if store.key(asset.uri) is None:
        raise ConfigurationError(
            f"{asset.uri} is not in the store {store.uri('')}", next_step="Publish it in the store in which it lies."
        )
    slot = _Slot(scheduled, None if take is None else str(take))
    async with _limit():
        # Not interrupted: a thread would go on, and what came in last would not be compared with what is announced.
        return await run_uninterrupted(_replace(store, asset, key, slot))


@dataclass(frozen=True, slots=True)
class _Slot:
    """What a copy is published for."""

    scheduled: datetime | None
    take: str | None

    def leaves(self, sidecar: Document | None) -> bool:
        """Tell whether what a sidecar announces stays, because it is of a later slot."""
        if sidecar is None or self.scheduled is None:
            return False
        try:
            note = json.loads(sidecar.body)
            is_later = note["scheduled"] is not None and datetime.fromisoformat(note["scheduled"]) > self.scheduled
            is_own = self.take is not None and note.get("take") == self.take  # older versions wrote none
        except (ValueError, KeyError, TypeError):
            return False  # somebody else's: it is replaced
        return is_later and not is_own


class _Overtaken(Exception):
    """Something of a later slot was announced during the copy."""


async def _replace(store: Store, asset: Asset, key: str, slot: _Slot) -> bool:
    """Announce an asset in the sidecar, put it there, and give way to what was announced meanwhile.

    The sidecar decides, by compare-and-swap, when the bytes are ready: it is true but for the moment of the commit, and
    a process that is killed then has already kept earlier slots out. Copies may come in in another order than they
    were announced, so each looks once more: whichever is last leaves what the sidecar says.
    """
    if slot.leaves(await store.read(_sidecar(key))):
        return False
    try:
        await _copy(store, asset, key, lambda: _announce(store, asset, key, slot))
    except _Overtaken:
        return False
    there = asset
    while (named := _announced(store, await store.read(_sidecar(key)))) and named.sha256 != there.sha256:
        await _copy(store, named, key)
        there = named
    return there.sha256 == asset.sha256


async def _announce(store: Store, asset: Asset, key: str, slot: _Slot) -> None:
    """Write the sidecar unless it is of a later slot by now.

    Raises:
        _Overtaken: it is.
    """
    note = {
        "asset": asset.model_dump(mode="json", exclude={"source_url"}, exclude_none=True),
        "scheduled": slot.scheduled.astimezone(UTC).isoformat() if slot.scheduled else None,
    } | ({} if slot.take is None else {"take": slot.take})
    body = json.dumps(note, indent=2).encode()
    while True:
        sidecar = await store.read(_sidecar(key))
        if slot.leaves(sidecar):
            raise _Overtaken
        with contextlib.suppress(AlreadyExists, VersionConflict):
            if sidecar is None:
                await store.create(_sidecar(key), body)
            else:
                await store.replace(_sidecar(key), body, sidecar.version)
            return


def _announced(store: Store, sidecar: Document | None) -> Asset | None:
    """Return the asset which a sidecar names, `None` if it is somebody else's or gone."""
    try:
        asset = Asset.model_validate(json.loads(sidecar.body)["asset"]) if sidecar else None
    except (ValueError, KeyError, TypeError):
        return None
    return asset if asset and store.key(asset.uri) else None


async def _copy(store: Store, asset: Asset, key: str, prepare: Callable[[], Awaitable[None]] | None = None) -> None:
    """Stream an asset to another key of the store; it appears there whole, and only with the right bytes.

    `prepare` is called when these are ready.
    """
    loop, digest = asyncio.get_running_loop(), hashlib.sha256()
    async with commit_at_end(store.writer(key, asset.content_type)) as writer:

        def pass_on(piece: bytes) -> None:
            digest.update(piece)
            # In the reading thread: it goes on reading when the piece is written.
            asyncio.run_coroutine_threadsafe(writer.write(piece), loop).result()

        was_there = await store.read_through(store.key(asset.uri) or "", pass_on) is not None
        if not was_there or digest.hexdigest() != asset.sha256:
            raise not_as_stored(asset, was_there=was_there)
        if prepare is not None:
            await prepare()


def not_as_stored(asset: Asset, *, was_there: bool) -> PersonNeeded:
    """Return the error of an asset which is not any more what was stored."""
    return PersonNeeded(
        f"{asset.uri} is {'not what was stored there' if was_there else 'gone'}",
        generation_id=asset.generation_id,
        next_step="Run the flow again: it is downloaded afresh, and nothing is bought twice.",
    )


def _sidecar(key: str) -> str:
    return f"{key}.json"
