"""A directory as a store: files are created by hard link and replaced by rename, under a lock the kernel releases."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prefect_veogen.errors import StoreRefused, StoreUnavailable, UnsafeStore
from prefect_veogen.store.interface import (
    FOLDERS,
    AlreadyExists,
    Document,
    ListedObject,
    Stat,
    Store,
    VersionConflict,
    in_thread,
)
from prefect_veogen.store.local_writer import (
    UNFINISHED,
    LocalWriter,
    flush_to_disk,
    make_parent_folders,
    open_temporary,
    stat_file,
    sync_directory,
)

try:
    import fcntl
except ImportError:  # Windows: a directory is refused there, a bucket is not
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect_veogen.store.interface import Writer

_LOCKS = ".locks/"  # not objects of the store
# The errors of file systems without hard links (vfat, exfat, some of FUSE and SMB) or locks.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_MIN_FREE_BYTES = 16 * 1024 * 1024
_READ_BYTES = 1024 * 1024


class LocalStore(Store):
    """A directory; several processes on one machine may share it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def uri(self, key: str) -> str:
        return (self.root / key).as_uri()

    def key(self, uri: str) -> str | None:
        if not uri.startswith("file:"):
            return None
        path = Path(unquote(urlsplit(uri).path))
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None

    async def create(self, key: str, body: bytes) -> str:
        return await in_thread(self._create, key, body)

    async def replace(self, key: str, body: bytes, version: str) -> str:
        return await in_thread(self._replace, key, body, version)

    async def put(self, key: str, body: bytes, content_type: str) -> None:
        await in_thread(self._put, key, body)

    async def read(self, key: str) -> Document | None:
        return await in_thread(self._read, key)

    async def list_objects(self, prefix: str) -> list[ListedObject]:
        return await in_thread(lambda: list(self._list_objects(prefix)))

    async def stat(self, key: str) -> Stat | None:
        return await in_thread(self._stat, key)

    async def read_through(self, key: str, take: Callable[[bytes], None]) -> Stat | None:
        return await in_thread(self._read_through, key, take)

    def writer(self, key: str, content_type: str) -> Writer:
        return LocalWriter(self.root, key)

    async def presign(self, key: str, seconds: int) -> str | None:
        return None

    async def _prove(self) -> None:
        if fcntl is None:
            raise UnsafeStore(
                f"A directory can't guard money on {os.name}: this system has no file locks that end with their owner",
                next_step="Use s3://bucket/prefix as VEOGEN_STORE.",
            )
        await in_thread(self._prove_in_thread)

    async def clear_unfinished(self, older_than_seconds: float) -> int:
        return await in_thread(self._clear_unfinished, older_than_seconds)

    def _prove_in_thread(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        space = shutil.disk_usage(self.root)
        if space.total and space.free < _MIN_FREE_BYTES:  # some file systems report nothing
            raise StoreUnavailable(
                f"There is no space left in {self.root}: {space.free:,} bytes",
                next_step="Nothing was bought. Free some space, or choose another VEOGEN_STORE.",
            )
        self._prove_locks()
        for folder in (UNFINISHED, *FOLDERS):
            # A missing folder will be created beside the folder of the locks, which was just created.
            if (self.root / folder).exists():
                self._prove_writing(folder)

    def _prove_locks(self) -> None:
        try:
            with self._lock(""), self._lock_file("").open("wb") as rival:
                fcntl.flock(rival, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        raise self._unsafe()

    def _prove_writing(self, folder: str) -> None:
        try:
            # A directory can't be hard-linked, which the kernel reports only when nothing else forbids it: nothing
            # is left behind, however the process ends.
            os.link(self.root / _LOCKS, self.root / folder / ".probe")
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise StoreRefused(
                    f"{self.root / folder} lies on another file system than {self.root}",
                    next_step="Let all of the store lie on one, or use s3://bucket/prefix; then run it again.",
                ) from None
            if error.errno not in _NO_LINKS:
                raise

    def _unsafe(self) -> UnsafeStore:
        return UnsafeStore(
            f"The file system of {self.root} has no locks, so two workers could both buy",
            next_step="Use s3://bucket/prefix, or a directory on a local disk, as VEOGEN_STORE.",
        )

    def _create(self, key: str, body: bytes) -> str:
        target = make_parent_folders(self.root / key)
        with self._write_temporary(body) as temporary:
            try:
                # A link appears whole or not at all, and only if the name is free.
                os.link(temporary, target)
            except FileExistsError:
                raise AlreadyExists(key) from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._move_if_absent(temporary, target, key)
            else:
                temporary.unlink()
        sync_directory(target.parent)
        return _digest(body)

    def _move_if_absent(self, temporary: Path, target: Path, key: str) -> None:
        """Create an object without a hard link: every creator of it holds the same lock."""
        with self._lock(key):
            if target.exists():
                raise AlreadyExists(key)
            temporary.replace(target)

    def _replace(self, key: str, body: bytes, version: str) -> str:
        with self._lock(key):
            document = self._read(key)
            if document is None or document.version != version:
                raise VersionConflict(key)
            self._put(key, body)
        return _digest(body)

    def _put(self, key: str, body: bytes) -> None:
        target = make_parent_folders(self.root / key)
        with self._write_temporary(body) as temporary:
            temporary.replace(target)
        sync_directory(target.parent)

    def _read(self, key: str) -> Document | None:
        try:
            body = (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Document(body, _digest(body))

    def _list_objects(self, prefix: str) -> Iterator[ListedObject]:
        folder = self.root / prefix.rpartition("/")[0]
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(self.root).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if key.startswith(prefix) and not key.startswith((UNFINISHED, _LOCKS)) and path.is_file():
                    stat = path.stat()
                    yield ListedObject(key, datetime.fromtimestamp(stat.st_mtime, UTC), stat.st_size)

    def _stat(self, key: str) -> Stat | None:
        try:
            return stat_file(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _read_through(self, key: str, take: Callable[[bytes], None]) -> Stat | None:
        try:
            found = stat_file(self.root / key)
            with (self.root / key).open("rb") as file:
                while chunk := file.read(_READ_BYTES):
                    take(chunk)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found

    @contextlib.contextmanager
    def _write_temporary(self, body: bytes) -> Iterator[Path]:
        path, file = open_temporary(self.root)
        try:
            with file:
                file.write(body)
                flush_to_disk(file)
            yield path
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _clear_unfinished(self, older_than_seconds: float) -> int:
        oldest, cleared = datetime.now(UTC).timestamp() - older_than_seconds, 0
        for path in (self.root / UNFINISHED).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_mtime < oldest:
                    path.unlink()
                    cleared += 1
        return cleared

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        # The kernel releases this lock when its owner dies, however it dies.
        with self._lock_file(key).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _lock_file(self, key: str) -> Path:
        return make_parent_folders(self.root / f"{_LOCKS}{hashlib.sha256(key.encode()).hexdigest()[:2]}")


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
