"""Files of a directory store: written under a temporary name, flushed to disk, then moved into place."""

from __future__ import annotations

import errno
import os
import uuid
from typing import TYPE_CHECKING

from prefect_veogen.process.concurrency import run_uninterrupted
from prefect_veogen.store.interface import Stat, Writer, in_thread

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

UNFINISHED = ".unfinished/"
"""The folder of temporary files, which are not objects of the store."""
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalWriter(Writer):
    """A stream into a temporary file, renamed on commit."""

    def __init__(self, root: Path, key: str) -> None:
        self._root = root
        self._key = key
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    async def write(self, chunk: bytes) -> None:
        await run_uninterrupted(in_thread(self._write, chunk))

    async def commit(self) -> str:
        return await run_uninterrupted(in_thread(self._commit))

    async def abort(self) -> None:
        await in_thread(self._abort)

    async def quarantine(self, key: str) -> bool:
        self._key = key
        await self.commit()
        return True

    def _write(self, chunk: bytes) -> None:
        self._open().write(chunk)

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._path, self._file = open_temporary(self._root)
        return self._file

    def _commit(self) -> str:
        file = self._open()
        flush_to_disk(file)
        file.close()
        target = make_parent_folders(self._root / self._key)
        assert self._path is not None
        self._path.replace(target)
        self._path = None
        sync_directory(target.parent)
        return stat_file(target).etag

    def _abort(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            # On a full disk closing fails as well: it writes out what is still buffered.
            if self._path is not None:
                self._path.unlink(missing_ok=True)


def open_temporary(root: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary file below the store's root, on the same file system, and return its path and handle."""
    path = make_parent_folders(root / f"{UNFINISHED}{uuid.uuid4().hex}")
    return path, path.open("xb")


def make_parent_folders(target: Path) -> Path:
    """Create the folders above a file, and return its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def stat_file(path: Path) -> Stat:
    """Return a file's size and an etag which changes with it."""
    stat = path.stat()
    return Stat(stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


def flush_to_disk(file: BinaryIO) -> None:
    """Return when the file's content survives a power failure."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(folder: Path) -> None:
    """Return when the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some file systems write folders by themselves
            raise
    finally:
        os.close(descriptor)
