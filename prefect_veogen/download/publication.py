"""Copies of assets under names of the user's own: a stable place for consumers, replaced whole."""

from __future__ import annotations

import asyncio
import hashlib
import json
import mimetypes
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from prefect_veogen.errors import ConfigurationError, PersonNeeded
from prefect_veogen.process.concurrency import ConcurrencyLimit, run_uninterrupted
from prefect_veogen.store import FOLDERS, commit_at_end

if TYPE_CHECKING:
    from prefect_veogen.models import Asset
    from prefect_veogen.store import Store

_MAX_CHARACTERS = 512
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
    if len(key) > _MAX_CHARACTERS:
        return f"it has more than {_MAX_CHARACTERS} characters"
    if not key.isprintable() or "\\" in key or any(not part.strip() or part.startswith(".") for part in parts):
        return "each part has to be a printable name that begins with no dot"
    return "it holds braces, which nothing fills in here" if {"{", "}"} & {*key} else None


def _check_ending(asset: Asset, key: str) -> None:
    ending = mimetypes.guess_type(key)[0]
    if ending is not None and ending.partition("/")[0] != asset.content_type.partition("/")[0]:
        raise ConfigurationError(
            f"{asset.uri} is {asset.content_type}, and not published as {key}: consumers would take it for {ending}",
            next_step=f"The asset stays where it is. Let the name end in {PurePosixPath(asset.uri).suffix}; in "
            "publish_as and latest of daily_content {ext} stands for it, with its dot.",
        )


async def publish(store: Store, asset: Asset, key: str, scheduled: datetime | None = None) -> bool:
    """Copy an asset to a key, whole and verified, with a sidecar; return whether it is there now. Free.

    With `scheduled`, what was published there for a later slot stays: a late run must not bring yesterday back.
    """
    check_publication_key(key, f"site/banner{PurePosixPath(asset.uri).suffix}")
    _check_ending(asset, key)
    source = store.key(asset.uri)
    if source is None:
        raise ConfigurationError(
            f"{asset.uri} is not in the store {store.uri('')}", next_step="Publish it in the store in which it lies."
        )
    if scheduled is not None and await _is_later(store, key, scheduled):
        return False
    await _copy(store, source, key, asset)
    note = {
        "asset": asset.model_dump(mode="json", exclude={"source_url"}, exclude_none=True),
        "scheduled": scheduled.astimezone(UTC).isoformat() if scheduled else None,
    }
    await store.put(_sidecar(key), json.dumps(note, indent=2).encode(), "application/json")
    return True


async def _is_later(store: Store, key: str, scheduled: datetime) -> bool:
    document = await store.read(_sidecar(key))
    try:
        published = json.loads(document.body)["scheduled"] if document else None
        return published is not None and datetime.fromisoformat(published) > scheduled
    except (ValueError, KeyError, TypeError):
        return False  # somebody else's: it is replaced


async def _copy(store: Store, source: str, key: str, asset: Asset) -> None:
    """Stream an object to another key of the store; it appears there whole, and only with the right bytes."""
    loop, digest = asyncio.get_running_loop(), hashlib.sha256()
    async with _limit(), commit_at_end(store.writer(key, asset.content_type)) as writer:

        def pass_on(piece: bytes) -> None:
            digest.update(piece)
            # In the reading thread: it goes on reading when the piece is written.
            asyncio.run_coroutine_threadsafe(writer.write(piece), loop).result()

        # Not interrupted: its thread would go on, and write into what is removed already.
        was_there = await run_uninterrupted(store.read_through(source, pass_on)) is not None
        if not was_there or digest.hexdigest() != asset.sha256:
            raise not_as_stored(asset, was_there=was_there)


def not_as_stored(asset: Asset, *, was_there: bool) -> PersonNeeded:
    """Return the error of an asset which is not any more what was stored."""
    return PersonNeeded(
        f"{asset.uri} is {'not what was stored there' if was_there else 'gone'}",
        generation_id=asset.generation_id,
        next_step="Run the flow again: it is downloaded afresh, and nothing is bought twice.",
    )


def _sidecar(key: str) -> str:
    return f"{key}.json"
