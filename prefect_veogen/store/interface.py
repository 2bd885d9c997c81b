"""Where assets and receipts live, behind one interface: a directory or an S3 bucket.

Documents are small and written whole: *created* exactly once, or *replaced* only if unchanged since they were read. The
ledger's promise rests on these two, so a store that ignores the condition is refused. Media is streamed and becomes
visible only on `commit`.
"""

from __future__ import annotations

import asyncio
import errno
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from prefect_veogen.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


FOLDERS = ("assets/", "budgets/", "campaigns/", "claims/", "receipts/", "rejected/")
"""Whatever is written lies below one of these."""
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Document:
    """A small object as read: its bytes, and the mark by which a change is noticed."""

    body: bytes
    version: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a listing tells of one object."""

    key: str
    modified: datetime
    size: int


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store itself says of one object: size in bytes and a mark which changes with the content."""

    size: int
    etag: str


class AlreadyThere(Exception):
    """The object to be created exists: somebody else was first."""


class Changed(Exception):
    """The object to be replaced is not as it was read: somebody else was faster."""


class Writer(ABC):
    """Media on its way into the store; invisible until `commit`, without a trace after `abort`."""

    @abstractmethod
    async def write(self, chunk: bytes) -> None:
        """Take the next bytes; waits while the store is slower than the source."""

    @abstractmethod
    async def commit(self) -> str:
        """Make the object visible, whole, and return its etag."""

    @abstractmethod
    async def abort(self) -> None:
        """Leave nothing behind; harmless if nothing was written."""

    @abstractmethod
    async def set_aside(self, key: str) -> bool:
        """Move what was written to another key, and abort; `False` if the store can't, and it is gone."""


class Store(ABC):
    """One place for assets and receipts; keys are relative paths with forward slashes.

    Raises:
        StoreUnavailable: it can't be reached or is full; it may pass by itself.
        StoreRefused: a permission, the credentials or the place itself have to be corrected first.
    """

    def __init__(self) -> None:
        self._is_proven = False
        self._proofs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]]
        self._proofs = weakref.WeakKeyDictionary()

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return where an object is to be found, for people and other programs."""

    @abstractmethod
    def key(self, uri: str) -> str | None:
        """Return the key of a URI of this store, `None` if it is elsewhere."""

    @abstractmethod
    async def create(self, key: str, body: bytes) -> str:
        """Write a document that isn't there yet and return its version; exactly one of many callers succeeds.

        Raises:
            AlreadyThere: it exists; nothing was written.
        """

    @abstractmethod
    async def replace(self, key: str, body: bytes, version: str) -> str:
        """Overwrite a document if it is still at `version`, and return its new version.

        Raises:
            Changed: it isn't; nothing was written.
        """

    @abstractmethod
    async def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write a small object, whatever was there."""

    @abstractmethod
    async def read(self, key: str) -> Document | None:
        """Return a document, `None` if there is none."""

    @abstractmethod
    async def find(self, prefix: str) -> list[Found]:
        """Return all objects below a prefix, however many pages that takes."""

    @abstractmethod
    async def stat(self, key: str) -> Stat | None:
        """Return an object's size and etag, `None` if there is none."""

    @abstractmethod
    async def sha256(self, key: str) -> str:
        """Return an object's digest by reading all of it, in constant memory."""

    @abstractmethod
    def writer(self, key: str, content_type: str) -> Writer:
        """Return a stream into an object."""

    @abstractmethod
    async def link(self, key: str, seconds: int) -> str | None:
        """Return a link anybody can read for so long, `None` if the store has no such thing."""

    async def check(self) -> None:
        """Pass a store that guards money and takes all that a purchase brings; leaves next to nothing behind.

        Proven once in a process; who asks at the same time shares the proof, and its failure.

        Raises:
            UnsafeStore: it can't keep two workers from both buying.
            StoreRefused: it lacks a permission that buying or delivering needs; the message names it.
        """
        loop = asyncio.get_running_loop()
        if self._is_proven:
            return
        proof = self._proofs.get(loop)
        if proof is None:
            proof = self._proofs[loop] = loop.create_task(self._proven())
            proof.add_done_callback(lambda _: self._proofs.pop(loop, None))
        await asyncio.shield(proof)

    async def _proven(self) -> None:
        await self._prove()
        self._is_proven = True

    @abstractmethod
    async def _prove(self) -> None:
        """Try everything that buying and delivering needs."""

    @abstractmethod
    async def clear_unfinished(self, older_than_seconds: float) -> int:
        """Remove what killed writers left behind, and return how many such things there were."""


async def in_thread(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
) -> Result:
    """Return what a blocking function returns, run in a thread; no OSError leaves it."""
    try:
        return await asyncio.to_thread(function, *arguments, **keywords)
    except (AlreadyThere, Changed):
        raise
    except OSError as error:
        told = f"The store could not be used: {error}"
        if error.errno in _NOT_OURS:
            step = "Let this user read and write there, then run it again: nothing was lost."
            raise StoreRefused(told, next_step=step) from None
        raise StoreUnavailable(told) from None
