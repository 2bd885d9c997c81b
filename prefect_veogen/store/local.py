"""A directory as a store: whole files by hard link and rename, changes under a lock the kernel releases."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prefect_veogen.errors import StoreRefused, StoreUnavailable, UnsafeStore
from prefect_veogen.process.io_loop import uninterrupted
from prefect_veogen.store.interface import (
    FOLDERS,
    AlreadyThere,
    Changed,
    Document,
    Found,
    Stat,
    Store,
    Writer,
    in_thread,
)

try:
    import fcntl
except ImportError:  # Windows: a directory is refused there, a bucket is not
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

# Beside the objects of a directory, but none of them.
_UNFINISHED = ".unfinished/"
_LOCKS = ".locks/"
# What file systems without hard links (vfat, exfat, some of FUSE and SMB), locks or synced folders say when asked.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LEAST_FREE_BYTES = 16 * 1024 * 1024
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


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

    async def find(self, prefix: str) -> list[Found]:
        return await in_thread(lambda: list(self._find(prefix)))

    async def stat(self, key: str) -> Stat | None:
        return await in_thread(self._stat, key)

    async def sha256(self, key: str) -> str:
        return await in_thread(self._sha256, key)

    def writer(self, key: str, content_type: str) -> Writer:
        return _LocalWriter(self, key)

    async def link(self, key: str, seconds: int) -> str | None:
        return None

    async def _prove(self) -> None:
        if fcntl is None:
            raise UnsafeStore(
                f"A directory can't guard money on {os.name}: this system has no file locks that end with their holder",
                next_step="Use s3://bucket/prefix as VEOGEN_STORE.",
            )
        await in_thread(self._prove_now)

    async def clear_unfinished(self, older_than_seconds: float) -> int:
        return await in_thread(self._clear_unfinished, older_than_seconds)

    def _prove_now(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        space = shutil.disk_usage(self.root)
        if space.total and space.free < _LEAST_FREE_BYTES:  # some file systems tell nothing
            raise StoreUnavailable(
                f"There is no room left in {self.root}: {space.free:,} bytes",
                next_step="Nothing was bought. Free some space, or choose another VEOGEN_STORE.",
            )
        self._prove_locks()
        for folder in (_UNFINISHED, *FOLDERS):
            # What isn't there yet will be made beside the folder of the locks, which was made just now.
            if (self.root / folder).exists():
                self._prove_writing(folder)

    def _prove_locks(self) -> None:
        try:
            with self._locked(""), self._lock_file("").open("wb") as another:
                fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        raise self._unsafe()

    def _prove_writing(self, folder: str) -> None:
        try:
            # No directory can have a second name, which the kernel says last, when there is nothing else against it: so
            # nothing is left behind, however we end.
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
        target = self._made_room_for(key)
        with self._temporary(body) as temporary:
            try:
                # A link appears whole or not at all, and only if the name is free.
                os.link(temporary, target)
            except FileExistsError:
                raise AlreadyThere(key) from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._move_if_absent(temporary, target, key)
            else:
                temporary.unlink()
        _sync_directory(target.parent)
        return _digest(body)

    def _move_if_absent(self, temporary: Path, target: Path, key: str) -> None:
        """Do without a hard link what all who create this object do one after the other."""
        with self._locked(key):
            if target.exists():
                raise AlreadyThere(key)
            temporary.replace(target)

    def _replace(self, key: str, body: bytes, version: str) -> str:
        with self._locked(key):
            document = self._read(key)
            if document is None or document.version != version:
                raise Changed(key)
            self._put(key, body)
        return _digest(body)

    def _put(self, key: str, body: bytes) -> None:
        target = self._made_room_for(key)
        with self._temporary(body) as temporary:
            temporary.replace(target)
        _sync_directory(target.parent)

    def _read(self, key: str) -> Document | None:
        try:
            body = (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Document(body, _digest(body))

    def _find(self, prefix: str) -> Iterator[Found]:
        folder = self.root / prefix.rpartition("/")[0]
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(self.root).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if key.startswith(prefix) and not key.startswith((_UNFINISHED, _LOCKS)) and path.is_file():
                    stat = path.stat()
                    yield Found(key, datetime.fromtimestamp(stat.st_mtime, UTC), stat.st_size)

    def _stat(self, key: str) -> Stat | None:
        try:
            return _file_stat(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _sha256(self, key: str) -> str:
        with (self.root / key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _made_room_for(self, key: str) -> Path:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextlib.contextmanager
    def _temporary(self, body: bytes) -> Iterator[Path]:
        path, file = self._open_temporary()
        try:
            with file:
                file.write(body)
                _flush_to_disk(file)
            yield path
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _open_temporary(self) -> tuple[Path, BinaryIO]:
        path = self._made_room_for(f"{_UNFINISHED}{uuid.uuid4().hex}")
        return path, path.open("xb")

    def _clear_unfinished(self, older_than_seconds: float) -> int:
        oldest, cleared = datetime.now(UTC).timestamp() - older_than_seconds, 0
        for path in (self.root / _UNFINISHED).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_mtime < oldest:
                    path.unlink()
                    cleared += 1
        return cleared

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # The kernel lets go of this lock when its holder dies, however it dies.
        with self._lock_file(key).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _lock_file(self, key: str) -> Path:
        return self._made_room_for(f"{_LOCKS}{hashlib.sha256(key.encode()).hexdigest()[:2]}")


class _LocalWriter(Writer):
    def __init__(self, store: LocalStore, key: str) -> None:
        self._store = store
        self._key = key
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    async def write(self, chunk: bytes) -> None:
        await uninterrupted(in_thread(self._write, chunk))

    async def commit(self) -> str:
        return await uninterrupted(in_thread(self._commit))

    async def abort(self) -> None:
        await in_thread(self._abort)

    async def set_aside(self, key: str) -> bool:
        self._key = key
        await self.commit()
        return True

    def _write(self, chunk: bytes) -> None:
        self._opened().write(chunk)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._path, self._file = self._store._open_temporary()  # noqa: SLF001 - same module
        return self._file

    def _commit(self) -> str:
        file = self._opened()
        _flush_to_disk(file)
        file.close()
        target = self._store._made_room_for(self._key)  # noqa: SLF001 - same module
        assert self._path is not None
        self._path.replace(target)
        self._path = None
        _sync_directory(target.parent)
        return _file_stat(target).etag

    def _abort(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            # On a full disk closing fails as well: it writes out what is still buffered.
            if self._path is not None:
                self._path.unlink(missing_ok=True)


def _file_stat(path: Path) -> Stat:
    stat = path.stat()
    return Stat(stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some file systems write folders by themselves
            raise
    finally:
        os.close(descriptor)
