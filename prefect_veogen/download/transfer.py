"""The bytes of one file on their way into the store: digested and inspected in one pass, invisible until committed."""

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
# A host that sends less within the request timeout counts as one that broke off.
LEAST_BYTES = 64 * 1024


class Restart(Exception):
    """The host serves another version of the file than the one begun: start at its first byte."""


class TooLarge(Exception):
    """The host announces more than the limit; nothing was read."""


class Transfer:
    """The bytes received so far of one version of a file, on their way into the store."""

    def __init__(self, session: Session, kind: Kind | None, key_for: Callable[[str], str], quarantine_key: str) -> None:
        self.quarantine_key = quarantine_key
        self._store = session.store
        self._max_bytes = session.settings.max_asset_bytes
        self._timeout_seconds = session.settings.request_timeout_seconds
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
        """Whether what was received is only the beginning of a file that is too large."""
        return max(self.size, self._received) > self._max_bytes

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
        """Return the request headers for everything, or for the rest of the version that was begun."""
        if not self.size or self.validator is None:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.validator}

    async def receive(self, response: MediaResponse) -> None:
        """Receive a response to its end.

        Raises:
            ResponseLost: it broke off.
            Restart: it is not the rest of the version that was begun, or not encoded as its headers say.
            TooLarge: it announces more than the limit.
            NotMedia: it exceeds the limit.
        """
        self._begin(response)
        async with contextlib.aclosing(_read_ahead(_batch(response.read_chunks(), self._timeout_seconds))) as batches:
            async for batch in batches:
                self._received += len(batch)
                await self._take_decoded(batch)
        if self.length is not None and self._received < self.length:
            raise ResponseLost(f"{self._received} of {self.length} bytes arrived")
        if self.length is not None and self._received > self.length:
            raise Restart
        if self._decoder is not None and not self._decoder.has_ended:
            if self.length is None:
                raise ResponseLost("the response ends in the middle of its encoding")
            self._restart_undecoded("its end is missing")

    def _begin(self, response: MediaResponse) -> None:
        headers = response.headers
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", "").strip())
            if found is None or int(found[1]) != self.size or (self.length and found[2] not in ("*", str(self.length))):
                raise Restart
            # A host without If-Range support sends the rest of whatever version the file is now.
            if not _is_same_file(self._whole_headers, headers) or content_codings(headers) != self._codings:
                raise Restart
            return
        if self.size:
            # The whole file again: it changed, or the host does not support ranges.
            raise Restart
        self._whole_headers = headers
        self._codings = content_codings(headers)
        self._decoder = self._decoder_for(headers)
        # Lengths, ranges and digests count encoded bytes; the store holds decoded ones.
        self.validator = None if self._decoder else _validator(headers)
        length = headers.get("content-length", "")
        self.length = int(length) if length.isdigit() else None
        if self.length is not None and self.length > self._max_bytes:
            raise TooLarge(f"announces {self.length} bytes, more than {self._max_bytes} (VEOGEN_MAX_ASSET_BYTES)")
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

    def _restart_undecoded(self, reason: str) -> NoReturn:
        """Restart without decoding: some hosts label what they never encoded; anything else is to be quarantined."""
        self._undecodable = reason
        raise Restart

    async def _take_decoded(self, batch: bytes) -> None:
        try:
            async for piece in _decode(self._decoder, batch):
                await self._take(piece)
        except Undecodable as reason:
            self._restart_undecoded(str(reason))
        if self.is_cut:  # by its encoded size
            raise self._too_much()

    async def decode_again(self, response: MediaResponse) -> AsyncIterator[bytes]:
        """Yield another response of the same file, decoded as the first one was.

        Raises:
            ResponseLost: it broke off, or can't be decoded.
        """
        decoder = self._decoder and decoder_of(self._codings)
        async for chunk in _reject_trickle(response.read_chunks(), self._timeout_seconds):
            try:
                async for piece in _decode(decoder, chunk):
                    yield piece
            except Undecodable as reason:
                raise ResponseLost(f"the response can't be decoded: {reason}") from None

    def _too_much(self) -> NotMedia:
        return NotMedia(f"more than {self._max_bytes} bytes (VEOGEN_MAX_ASSET_BYTES)")

    async def _take(self, batch: bytes) -> None:
        # A file that is too large is always cut at the same byte, however it is chunked: it is quarantined once.
        batch = batch[: self._max_bytes + 1 - self.size]
        # Bytes that can't be what was paid for are still read to their end: they are quarantined whole.
        self.size += len(batch)
        if self._writer is None:
            self._first += batch
            await asyncio.to_thread(self._inspect, batch)
        else:
            inspecting = asyncio.create_task(asyncio.to_thread(self._inspect, batch))
            try:
                # A task cancelled here aborts next, which must not overtake a write in progress.
                await self._writer.write(batch)
            finally:
                await inspecting
        if self.is_cut:
            raise self._too_much()
        if self._writer is None and (self._problem is not None or self._inspector.is_recognised):
            await self._open()

    def finish(self) -> None:
        """Verify the file as a whole.

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
            raise NotMedia("bytes whose digest differs from the one in their header")

    async def commit(self) -> str:
        """Make the object visible and return its etag."""
        return await (await self._open()).commit()

    async def abort(self) -> None:
        """Leave nothing in the store."""
        if self._writer is not None:
            await self._writer.abort()
            self._writer = None

    async def quarantine(self) -> bool:
        """Move what was received into quarantine; `False` if the store could not."""
        if self._writer is None:
            await self._store.put(self.quarantine_key, bytes(self._first), "application/octet-stream")
            return True
        return await self._writer.quarantine(self.quarantine_key)

    async def _open(self) -> Writer:
        if self._writer is None:
            is_media = self._problem is None
            key = self._key_for(self.extension) if is_media else self.quarantine_key
            self._writer = self._store.writer(key, self.content_type if is_media else "application/octet-stream")
            await self._writer.write(bytes(self._first))
            self._first.clear()
        return self._writer

    def _inspect(self, batch: bytes) -> None:
        self._digest.update(batch)
        if self._problem is None:
            try:
                self._inspector.feed(batch)
            except NotMedia as problem:
                self._problem = problem


async def _decode(decoder: Decoder | None, chunk: bytes) -> AsyncIterator[bytes]:
    if decoder is None:
        yield chunk
        return
    pieces = decoder.decode(chunk)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


async def _batch(chunks: AsyncIterator[bytes], timeout_seconds: float) -> AsyncIterator[bytes]:
    """Yield larger pieces, including what arrived before a connection broke."""
    batch: list[bytes] = []
    size = 0
    try:
        async for chunk in _reject_trickle(chunks, timeout_seconds):
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


async def _reject_trickle(chunks: AsyncIterator[bytes], timeout_seconds: float) -> AsyncIterator[bytes]:
    """Yield the chunks; only time spent waiting for the host counts.

    Raises:
        ResponseLost: too little arrived within the timeout.
    """
    waited, arrived = 0.0, 0
    while True:
        began = time.monotonic()
        chunk = await anext(chunks, None)
        waited += time.monotonic() - began
        if chunk is None:
            return
        arrived += len(chunk)
        yield chunk
        if waited > timeout_seconds:
            if arrived < LEAST_BYTES:
                raise ResponseLost(f"only {arrived} bytes arrived in {waited:.0f} seconds")
            waited, arrived = 0.0, 0


async def _read_ahead(batches: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the pieces while the next one is being read, so that reads and writes overlap."""
    upcoming = asyncio.ensure_future(anext(batches, None))
    try:
        while (batch := await upcoming) is not None:
            upcoming = asyncio.ensure_future(anext(batches, None))
            yield batch
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return the validator of this version of the file if it is usable in If-Range, which must be ASCII."""
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    if etag.startswith('"') and etag.isascii():
        return etag
    return modified if modified and modified.isascii() else None


def _is_same_file(whole: Mapping[str, str], rest: Mapping[str, str]) -> bool:
    """Return whether a part's headers match the version that was begun, as far as they can be compared."""
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
