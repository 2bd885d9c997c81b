"""The bytes of one file on their way into the store: digested and judged while they pass, invisible until committed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import time
from typing import TYPE_CHECKING, NoReturn

from prefect_veogen.api.http import ResponseLost
from prefect_veogen.download.content_encoding import Undecodable, content_codings, decoder_of
from prefect_veogen.download.formats import Inspector, NotMedia

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from prefect_veogen.api.http import MediaResponse
    from prefect_veogen.download.content_encoding import Decoder
    from prefect_veogen.models import Kind
    from prefect_veogen.session import Session
    from prefect_veogen.store import Writer

_BATCH_BYTES = 1024 * 1024
# A host that lets less through in the time in which a request has to be answered is taken for one that broke off.
LEAST_BYTES = 64 * 1024


class Restart(Exception):
    """The host offers another file than the one begun: start at its first byte."""


class TooLarge(Exception):
    """The host announces more than is taken; nothing of it was read."""


class Transfer:
    """The bytes received so far of one version of a file, on their way into the store."""

    def __init__(self, session: Session, kind: Kind | None, key_for: Callable[[str], str], aside: str) -> None:
        self.aside = aside
        self._store = session.store
        self._most = session.settings.max_asset_bytes
        self._patience_seconds = session.settings.request_timeout_seconds
        self._kind = kind
        self._key_for = key_for
        self._writer: Writer | None = None
        self._undecodable: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._inspector = Inspector(self._kind)
        self._problem: NotMedia | None = None
        self._codings: tuple[str, ...] = ()
        self._decoder: Decoder | None = None
        self._received = 0
        self.size = 0
        self._digest = hashlib.sha256()
        self._first = bytearray()
        self._stated_sha256: str | None = None
        self._whole_headers: Mapping[str, str] = {}
        self.validator: str | None = None
        self.length: int | None = None
        self.content_type_claimed: str | None = None

    async def start_over(self) -> None:
        """Forget everything received so far."""
        await self.abort()
        self._reset()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def is_cut(self) -> bool:
        """Whether what was taken is only the beginning of a file that is too large."""
        return max(self.size, self._received) > self._most

    @property
    def content_type(self) -> str:
        return self._inspector.content_type

    @property
    def bytes_behind_end(self) -> int:
        return self._inspector.bytes_behind_end

    @property
    def content_credentials(self) -> str | None:
        return self._inspector.content_credentials

    @property
    def extension(self) -> str:
        return self._inspector.extension

    def headers(self) -> dict[str, str]:
        """Return what to ask for: everything, or the rest of the very file that was begun."""
        if not self.size or self.validator is None:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.validator}

    async def receive(self, answer: MediaResponse) -> None:
        """Take what an answer brings, to its end.

        Raises:
            ResponseLost: it broke off.
            Restart: it is not the rest of the file that was begun, or not encoded as it says.
            TooLarge: it would be too much.
            NotMedia: it is too much.
        """
        self._begin(answer)
        async with contextlib.aclosing(_ahead(_batched(answer.chunks(), self._patience_seconds))) as batches:
            async for batch in batches:
                self._received += len(batch)
                await self._take_decoded(batch)
        if self.length is not None and self._received < self.length:
            raise ResponseLost(f"{self._received} of {self.length} bytes came")
        if self.length is not None and self._received > self.length:
            raise Restart
        if self._decoder is not None and not self._decoder.has_ended:
            if self.length is None:
                raise ResponseLost("what came ends in the middle of its encoding")
            self._take_as_it_is("it ends in its middle")

    def _begin(self, answer: MediaResponse) -> None:
        headers = answer.headers
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", "").strip())
            if found is None or int(found[1]) != self.size or (self.length and found[2] not in ("*", str(self.length))):
                raise Restart
            # A host that knows no If-Range sends the rest of whatever the file is now.
            if not _is_same_file(self._whole_headers, headers) or content_codings(headers) != self._codings:
                raise Restart
            return
        if self.size:
            # The whole file again: it changed, or the host knows no ranges.
            raise Restart
        self._whole_headers = headers
        self._codings = content_codings(headers)
        self._decoder = self._decoder_for(headers)
        # Lengths, ranges and digests count what is encoded, which isn't what is stored.
        self.validator = None if self._decoder else _validator(headers)
        length = headers.get("content-length", "")
        self.length = int(length) if length.isdigit() else None
        if self.length is not None and self.length > self._most:
            raise TooLarge(f"announces {self.length} bytes, more than {self._most} (VEOGEN_MAX_ASSET_BYTES)")
        self.content_type_claimed = headers.get("content-type")
        self._stated_sha256 = None if self._decoder else _stated_sha256(headers)

    def _decoder_for(self, headers: Mapping[str, str]) -> Decoder | None:
        if not self._codings or self._undecodable is not None:
            return None
        try:
            return decoder_of(self._codings)
        except Undecodable as reason:
            self._undecodable = str(reason)
            return None

    def _take_as_it_is(self, reason: str) -> NoReturn:
        """Start again without decoding: some hosts label what they never encoded, and a person is to see the rest."""
        self._undecodable = reason
        raise Restart

    async def _take_decoded(self, batch: bytes) -> None:
        try:
            async for piece in _decoded(self._decoder, batch):
                await self._take(piece)
        except Undecodable as reason:
            self._take_as_it_is(str(reason))
        if self.is_cut:  # not of its own size, but of what is read to come to it
            raise self._too_much()

    async def decoded(self, answer: MediaResponse) -> AsyncIterator[bytes]:
        """Yield what another answer brings, in the form in which the first one was judged.

        Raises:
            ResponseLost: it broke off, or can't be decoded.
        """
        decoder = self._decoder and decoder_of(self._codings)
        async for chunk in _unless_too_slow(answer.chunks(), self._patience_seconds):
            try:
                async for piece in _decoded(decoder, chunk):
                    yield piece
            except Undecodable as reason:
                raise ResponseLost(f"what comes can't be decoded: {reason}") from None

    def _too_much(self) -> NotMedia:
        return NotMedia(f"more than {self._most} bytes (VEOGEN_MAX_ASSET_BYTES)")

    async def _take(self, batch: bytes) -> None:
        # Wherever its pieces end, of a file that is too large the same is taken each time, and so it is kept once.
        batch = batch[: self._most + 1 - self.size]
        # Bytes that can't be what was paid for are read to their end all the same: a person is to see them whole.
        self.size += len(batch)
        if self._writer is None:
            self._first += batch
            await asyncio.to_thread(self._judge, batch)
        else:
            judging = asyncio.create_task(asyncio.to_thread(self._judge, batch))
            try:
                # Whoever is cancelled here aborts next, which must not overtake a write that is still going on.
                await self._writer.write(batch)
            finally:
                await judging
        if self.is_cut:
            raise self._too_much()
        if self._writer is None and (self._problem is not None or self._inspector.is_recognised):
            await self._opened()

    def finish(self) -> None:
        """Judge the file as a whole.

        Raises:
            NotMedia: it is not what was paid for.
        """
        try:
            if self._problem is not None:
                raise self._problem
            self._inspector.finish()
        except NotMedia as problem:
            if not self._codings or self._undecodable is None:
                raise
            sent = ", ".join(self._codings)
            raise NotMedia(f"{problem}, sent as {sent}, which can't be decoded: {self._undecodable}") from None
        if self._stated_sha256 is not None and self._stated_sha256 != self.sha256:
            raise NotMedia("bytes which do not have the digest that their own header states")

    async def commit(self) -> str:
        """Make the object visible and return its etag."""
        return await (await self._opened()).commit()

    async def abort(self) -> None:
        """Leave nothing in the store."""
        if self._writer is not None:
            await self._writer.abort()
            self._writer = None

    async def set_aside(self) -> bool:
        """Put what was received where a person can look at it; `False` if the store could not."""
        if self._writer is None:
            await self._store.put(self.aside, bytes(self._first), "application/octet-stream")
            return True
        return await self._writer.quarantine(self.aside)

    async def _opened(self) -> Writer:
        if self._writer is None:
            is_media = self._problem is None
            key = self._key_for(self.extension) if is_media else self.aside
            self._writer = self._store.writer(key, self.content_type if is_media else "application/octet-stream")
            await self._writer.write(bytes(self._first))
            self._first.clear()
        return self._writer

    def _judge(self, batch: bytes) -> None:
        self._digest.update(batch)
        if self._problem is None:
            try:
                self._inspector.feed(batch)
            except NotMedia as problem:
                self._problem = problem


async def _decoded(decoder: Decoder | None, chunk: bytes) -> AsyncIterator[bytes]:
    if decoder is None:
        yield chunk
        return
    pieces = decoder.decode(chunk)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


async def _batched(chunks: AsyncIterator[bytes], patience_seconds: float) -> AsyncIterator[bytes]:
    """Yield larger pieces, and what came before a connection broke too."""
    batch: list[bytes] = []
    size = 0
    try:
        async for chunk in _unless_too_slow(chunks, patience_seconds):
            batch.append(chunk)
            size += len(chunk)
            if size >= _BATCH_BYTES:
                yield b"".join(batch)
                batch, size = [], 0
    except ResponseLost:
        if batch:
            yield b"".join(batch)
        raise
    if batch:
        yield b"".join(batch)


async def _unless_too_slow(chunks: AsyncIterator[bytes], patience_seconds: float) -> AsyncIterator[bytes]:
    """Yield what comes; our own pauses are not the host's.

    Raises:
        ResponseLost: too little came in the time in which a request has to be answered.
    """
    waited, came = 0.0, 0
    while True:
        asked_at = time.monotonic()
        chunk = await anext(chunks, None)
        waited += time.monotonic() - asked_at
        if chunk is None:
            return
        came += len(chunk)
        yield chunk
        if waited > patience_seconds:
            if came < LEAST_BYTES:
                raise ResponseLost(f"only {came} bytes came in {waited:.0f} seconds")
            waited, came = 0.0, 0


async def _ahead(batches: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the pieces while the next one is already being read, so that reads and writes overlap."""
    coming = asyncio.ensure_future(anext(batches, None))
    try:
        while (batch := await coming) is not None:
            coming = asyncio.ensure_future(anext(batches, None))
            yield batch
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return what names this version of the file, if it is something a request can say again: that must be ASCII."""
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    if etag.startswith('"') and etag.isascii():
        return etag
    return modified if modified and modified.isascii() else None


def _is_same_file(whole: Mapping[str, str], rest: Mapping[str, str]) -> bool:
    """Tell whether a part's headers belong to the file that was begun, as far as they say."""
    for name in ("etag", "last-modified"):
        if name in whole and name in rest:
            return whole[name] == rest[name]
    return True


def _stated_sha256(headers: Mapping[str, str]) -> str | None:
    """Return the digest of the whole file, in hex, if the host states one."""
    for name in ("repr-digest", "content-digest", "digest", "x-amz-checksum-sha256"):
        found = re.fullmatch(r"(?:.*sha-256=)?:?([A-Za-z0-9+/]{43}=):?(?:,.*)?", headers.get(name, ""), re.IGNORECASE)
        if found:
            return base64.b64decode(found[1]).hex()
    return None
