"""Inputs that lie in a bucket or in a local file: what their bytes are, and a copy of a local file in the store.

A link to them differs from run to run, and the same bytes may lie in many places; so only their digest says what is
bought. Each version of an object or file is read once per process, in constant memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_veogen.download.formats import Inspector, NotMedia
from prefect_veogen.errors import InputUnavailable
from prefect_veogen.models import file_at, object_at
from prefect_veogen.store import commit_at_end

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from prefect_veogen.models import Asset
    from prefect_veogen.session import Session

INPUTS = "inputs/"
"""Where in the store the copies of local files lie, by their digests."""
_READ_BYTES = 1024 * 1024
_MAX_KNOWN = 10_000
_SETTLED_SECONDS = 2.0
"""How old a change must be for the next one to be visible in the times of the file, on every file system."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the bytes at a location are."""

    sha256: str
    size: int
    content_type: str
    extension: str


# By location and version, oldest first.
_known: dict[Hashable, Content] = {}


async def read_content(session: Session, location: str) -> Content:
    """Return what lies at an S3 object's or local file's location now. Free.

    Raises:
        InputUnavailable: there is nothing, or nothing that is media.
        StoreRefused, StoreUnavailable: the bucket does not let it be read, or not now.
    """
    return await session.shared_reads.get(("input", location, session.store), lambda: _read(session, location))


async def _read(session: Session, location: str) -> Content:
    path = file_at(location)
    try:
        if path is None:
            return await _read_object(session, location)
        return await asyncio.to_thread(_read_file, location, path)
    except NotMedia as found:
        raise InputUnavailable(f"{location} is {found}; an input must be an image, a video or audio") from None


async def _read_object(session: Session, location: str) -> Content:
    found = object_at(location)
    assert found is not None, f"{location} is nothing to be read"
    bucket, key = found
    store = session.store_at(f"s3://{bucket}")
    if (version := await store.stat(key)) is None:
        raise InputUnavailable(f"{location} does not exist: there is no such bucket, or no such object in it")
    if (known := _known.get((location, version))) is not None:
        return known
    examiner = _Examiner()
    if (read := await store.read_through(key, examiner.take)) is None:
        raise InputUnavailable(f"{location} does not exist any more")
    return _remember((location, read), examiner.finish())


def _read_file(location: str, path: Path) -> Content:
    with _open(location, path) as file:
        version, changed_at = _version_of(file)
        if (known := _known.get((location, version))) is not None:
            return known
        examiner = _Examiner()
        for chunk in _read_chunks(file):
            examiner.take(chunk)
        content = examiner.finish()
        if _version_of(file)[0] != version:
            raise InputUnavailable(f"{location} is being written: use it when it is complete")
    return _remember((location, version), content) if time.time() - changed_at > _SETTLED_SECONDS else content


def _remember(version: Hashable, content: Content) -> Content:
    while len(_known) >= _MAX_KNOWN:
        with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread may have removed it
            del _known[next(iter(_known))]
    _known[version] = content
    return content


class _Examiner:
    """Digests and recognises one file, piece by piece."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._inspector = Inspector(None, audio=True)

    def take(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._inspector.feed(chunk)

    def finish(self) -> Content:
        media = self._inspector
        media.finish()
        return Content(self._digest.hexdigest(), media.size, media.content_type, media.extension)


# ---------------------------------------------------------------- local files


@contextlib.contextmanager
def _open(location: str, path: Path) -> Iterator[BinaryIO]:
    try:
        # Opening anything but a regular file, such as a pipe, could block for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputUnavailable(f"{location} is {'a directory' if path.is_dir() else 'not a file'}")
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise InputUnavailable(f"{location} does not exist on this machine") from None
    except (OSError, ValueError) as error:  # no permission, an invalid name
        reason = getattr(error, "strerror", None) or error
        raise InputUnavailable(f"{location} can't be read on this machine: {reason}") from None


def _version_of(file: BinaryIO) -> tuple[Hashable, float]:
    """Return what changes whenever a file's content does, and when it did so last."""
    found = os.fstat(file.fileno())
    version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return version, max(found.st_mtime, found.st_ctime)


def _read_chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_READ_BYTES):
        yield chunk


async def put_into_store(session: Session, asset: Asset) -> str:
    """Return the key of a local file's copy in the store; it is uploaded if there is none yet.

    Raises:
        InputUnavailable: the file is gone, or has changed.
    """
    return await session.shared_reads.get(("copy", asset.sha256, session.store), lambda: _put(session, asset))


async def _put(session: Session, asset: Asset) -> str:
    for found in await session.store.list_objects(f"{INPUTS}{asset.sha256}"):
        if found.size == asset.size:
            return found.key
    content = await read_content(session, asset.uri)
    if content.sha256 != asset.sha256:
        raise has_changed(asset)
    key = f"{INPUTS}{content.sha256}{content.extension}"
    path = file_at(asset.uri)
    assert path is not None
    with _open(asset.uri, path) as file:
        await _upload(session, file, key, asset)
    return key


async def _upload(session: Session, file: BinaryIO, key: str, asset: Asset) -> None:
    digest = hashlib.sha256()
    async with commit_at_end(session.store.writer(key, asset.content_type)) as writer:
        while chunk := await asyncio.to_thread(file.read, _READ_BYTES):
            digest.update(chunk)
            await writer.write(chunk)
        if digest.hexdigest() != asset.sha256:
            raise has_changed(asset)


def has_changed(asset: Asset) -> InputUnavailable:
    """Return the error of an input which is not any more what was identified."""
    return InputUnavailable(
        f"{asset.uri} has changed since it was read",
        next_step="Nothing was bought. Run it again when it is complete: with other bytes it is another purchase.",
    )
