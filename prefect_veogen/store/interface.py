"""Where assets and receipts live, behind one interface: a directory or an S3 bucket.

Documents are small and written atomically: *created* if absent, or *replaced* by compare-and-swap on their version. The
ledger's promise rests on these two, so a store that ignores the condition is refused. Media is streamed and becomes
visible only on `commit`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from prefect_veogen.errors import StoreRefused, StoreUnavailable
from prefect_veogen.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


THUMBNAILS = "thumbnails/"
"""What can be made again, and may be missing."""
FOLDERS = ("assets/", "budgets/", "campaigns/", "claims/", "inputs/", "receipts/", "rejected/", THUMBNAILS)
"""Every object is below one of these."""
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Document:
    """A small object as read: its bytes, and the version to compare when it is replaced."""

    body: bytes
    version: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One object of a listing; its size is in bytes."""

    key: str
    modified: datetime
    size: int


@dataclass(frozen=True, slots=True)
class Stat:
    """An object's size in bytes, and an etag which changes with its content."""

    size: int
    etag: str


class AlreadyExists(Exception):
    """The object to be created exists: another writer was first."""


class VersionConflict(Exception):
    """The object to be replaced is not at the version that was read: another writer changed or removed it."""


class Writer(ABC):
    """A stream into the store: invisible until `commit`, removed by `abort`."""

    @abstractmethod
    async def write(self, chunk: bytes) -> None:
        """Write the next bytes; waits while the store is slower than the source."""

    @abstractmethod
    async def commit(self) -> str:
        """Make the complete object visible, and return its etag."""

    @abstractmethod
    async def abort(self) -> None:
        """Remove what was written; safe if nothing was."""

    @abstractmethod
    async def quarantine(self, key: str) -> bool:
        """Commit what was written under another key; `False` if the store can't rename it, and it is removed."""


@asynccontextmanager
async def commit_at_end(writer: Writer) -> AsyncIterator[Writer]:
    """Commit a writer at the end of the block, or abort it if that raises."""
    try:
        yield writer
        await writer.commit()
    except BaseException:
        await writer.abort()
        raise


class Store(ABC):
    """One place for assets and receipts; keys are relative paths with forward slashes.

    Raises:
        StoreUnavailable: it can't be reached or is full; retryable.
        StoreRefused: a permission, the credentials or the location have to be corrected first.
    """

    def __init__(self) -> None:
        self._is_proven = False
        self._proofs = Registry[None, asyncio.Task[None]]()

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return an object's URI."""

    @abstractmethod
    def key(self, uri: str) -> str | None:
        """Return the key of a URI of this store, `None` if it belongs to another."""

    @abstractmethod
    async def create(self, key: str, body: bytes) -> str:
        """Create a document if it is absent, and return its version; exactly one of many callers succeeds.

        Raises:
            AlreadyExists: it exists; nothing was written.
        """

    @abstractmethod
    async def replace(self, key: str, body: bytes, version: str) -> str:
        """Replace a document if it is still at `version` (compare-and-swap), and return its new version.

        Raises:
            VersionConflict: it is not; nothing was written.
        """

    @abstractmethod
    async def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write a small object, replacing any other."""

    @abstractmethod
    async def read(self, key: str) -> Document | None:
        """Return a document, `None` if it is absent."""

    @abstractmethod
    async def list_objects(self, prefix: str) -> list[ListedObject]:
        """Return all objects whose keys start with a prefix, from as many pages as there are."""

    @abstractmethod
    async def stat(self, key: str) -> Stat | None:
        """Return an object's size and etag, `None` if it is absent."""

    @abstractmethod
    async def read_through(self, key: str, take: Callable[[bytes], None]) -> Stat | None:
        """Pass all of an object to `take`, piece by piece in a thread; return the size and etag of what was read.

        `None` if it is absent. What `take` raises ends the reading, and is raised here.
        """

    async def sha256(self, key: str) -> str:
        """Return an object's digest by reading all of it, in constant memory."""
        digest = hashlib.sha256()
        if await self.read_through(key, digest.update) is None:
            raise StoreUnavailable(f"{self.uri(key)} is gone")
        return digest.hexdigest()

    @abstractmethod
    def writer(self, key: str, content_type: str) -> Writer:
        """Return a stream into an object."""

    @abstractmethod
    async def presign(self, key: str, seconds: int) -> str | None:
        """Return a URL that anyone can GET for that long, `None` if the store has no presigned URLs."""

    async def check(self) -> None:
        """Verify that the store honours conditional writes and permits everything that buying and delivering needs.

        A success is remembered for the life of the process; concurrent callers share one check, and its failure. In a
        bucket it leaves one small object behind.

        Raises:
            UnsafeStore: it can't stop two workers from both buying.
            StoreRefused: a permission that buying or delivering needs is missing; the message names it.
        """
        if not self._is_proven:
            await asyncio.shield(self._proofs.get(None, lambda: asyncio.create_task(self._prove_once())))

    async def _prove_once(self) -> None:
        try:
            await self._prove()
            self._is_proven = True
        finally:
            self._proofs.forget(None)

    @abstractmethod
    async def _prove(self) -> None:
        """Try every operation that buying and delivering needs."""

    @abstractmethod
    async def clear_unfinished(self, older_than_seconds: float) -> int:
        """Remove the unfinished uploads and files of killed writers, and return how many there were."""


async def in_thread(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
) -> Result:
    """Return what a blocking function returns, run in a thread; no OSError leaves it."""
    try:
        return await asyncio.to_thread(function, *arguments, **keywords)
    except (AlreadyExists, VersionConflict):
        raise
    except OSError as error:
        message = f"The store could not be used: {error}"
        if error.errno in _NO_PERMISSION:
            step = "Let this user read and write there, then run it again: nothing was lost."
            raise StoreRefused(message, next_step=step) from None
        raise StoreUnavailable(message) from None
