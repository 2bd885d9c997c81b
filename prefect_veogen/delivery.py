"""From the service's media host into the store: one pass, constant memory, verified before it can be seen.

The bearer token never comes near here. A broken connection is resumed where it broke, provided the host confirms that
the rest belongs to the same file; a stale link is replaced by asking the generation again. What fails verification is
kept aside for a person and never becomes the asset. Nothing in here can buy anything.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import unicodedata
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prefect_veogen.addresses import check_address
from prefect_veogen.errors import DownloadBroken, MediaRejected, OutputMissing, StillRunning, VeogenError
from prefect_veogen.ledger import Entry, Receipt, State
from prefect_veogen.media import Inspector, NotMedia
from prefect_veogen.models import Asset, Generation, Kind, Status
from prefect_veogen.store import Changed
from prefect_veogen.transport import AnswerLost, MediaAnswer, joined_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from prefect_veogen.session import Session
    from prefect_veogen.store import Store, Writer

_AT_ONCE = 4
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_STALE = (401, 403, 404, 410)
_TRIES_WITHOUT_PROGRESS = 4
_PAUSE_SECONDS = (0.2, 0.5, 1.0, 2.0)
_BATCH_BYTES = 1024 * 1024
_LINK_TRIES = 6


@dataclass(frozen=True, slots=True)
class Delivery:
    """An asset, and whether it had been stored before."""

    asset: Asset
    reused: bool


async def deliver(session: Session, generation: Generation) -> Delivery:
    """Return the asset of a completed generation, downloaded unless the store has it intact.

    Free, and safe to call again at any time; the store then holds one object more, its sidecar, and the receipt's end.
    """
    entry = await session.ledger.read(generation.receipt) if generation.receipt else None
    if entry is not None and entry.receipt.asset is not None and await is_intact(session.store, entry.receipt):
        return Delivery(entry.receipt.asset, reused=True)
    async with _bound():
        asset, etag = await _Download(session, generation, entry.receipt if entry else None).run()
    if entry is not None:
        await _write_down(session, entry, asset, etag)
    return Delivery(asset, reused=False)


async def is_intact(store: Store, receipt: Receipt) -> bool:
    """Tell whether the store still holds the receipt's asset; reads it whole only if something looks changed."""
    asset = receipt.asset
    key = store.key(asset.uri) if asset is not None else None
    stat = await store.stat(key) if key is not None else None
    if asset is None or key is None or stat is None or stat.size != asset.size:
        return False
    # Copying a bucket or a directory changes etags but not contents.
    return stat.etag == receipt.etag or await store.sha256(key) == asset.sha256


async def _write_down(session: Session, entry: Entry, asset: Asset, etag: str) -> None:
    while entry.receipt.state in (State.BOUGHT, State.STORED):
        try:
            await session.ledger.move(entry, State.STORED, "stored", asset.uri, asset=asset, etag=etag, holder=None)
        except Changed:
            current = await session.ledger.read(entry.receipt.key)
            if current is None:
                return
            entry = current
        else:
            return


_bounds: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def _bound() -> asyncio.Semaphore:
    """Return what keeps the memory of many deliveries at once within bounds."""
    return _bounds.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE))


class _Stale(Exception):
    """The link no longer works; a fresh one may."""


class _Restart(Exception):
    """The host offers another file than the one begun: start at its first byte."""


class _Download:
    """One asset's way into the store: as many connections as it takes."""

    def __init__(self, session: Session, generation: Generation, receipt: Receipt | None) -> None:
        self._session = session
        self._generation = generation
        self._receipt = receipt
        self._url = ""

    async def run(self) -> tuple[Asset, str]:
        """Return the asset and its etag.

        Raises:
            DownloadBroken: the host kept breaking off.
            MediaRejected: what it served is not the media that was paid for.
        """
        self._url = await self._link()
        aside = f"rejected/{self._stem()}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        transfer = _Transfer(self._session, self._generation.type or await self._kind(), self._key, aside)
        try:
            try:
                await self._transferred(transfer)
            except NotMedia as problem:
                raise await self._rejected(transfer, str(problem)) from None
            etag = await transfer.commit()
        except BaseException:
            with contextlib.suppress(VeogenError):
                await asyncio.shield(transfer.abort())
            raise
        asset = self._asset(transfer)
        await self._write_sidecar(transfer, asset)
        return asset, etag

    async def _transferred(self, transfer: _Transfer) -> None:
        """Return when all bytes are in and judged."""
        failures = farthest = 0
        while True:
            try:
                await self._connect(transfer)
            except _Restart:
                await transfer.start_over()
                failures += 1
                reason = "the file changes while it is read"
            except _Stale as stale:
                failures += 1
                reason = str(stale)
                self._url = await self._link(fresh=True)
            except AnswerLost as lost:
                # Only what was never reached before is progress: a file that starts over and over must come to an end.
                failures = 1 if transfer.size > farthest else failures + 1
                farthest = max(farthest, transfer.size)
                reason = str(lost)
            else:
                transfer.finish()
                return
            if failures > _TRIES_WITHOUT_PROGRESS:
                raise DownloadBroken(f"The download of generation {self._generation.id} broke off: {reason}")
            await asyncio.sleep(_PAUSE_SECONDS[min(failures, len(_PAUSE_SECONDS)) - 1])

    async def _connect(self, transfer: _Transfer) -> None:
        """Read from one connection to the end of the file."""
        if transfer.size and transfer.validator is None:
            raise _Restart
        url = self._url
        for _ in range(_MAX_REDIRECTS + 1):
            await check_address(self._session, url)
            async with self._session.client.transport.media(url, transfer.headers()) as answer:
                if answer.status not in _REDIRECTS:
                    await self._read(transfer, answer)
                    return
                url = self._redirected(url, answer)
        raise DownloadBroken(f"The media host redirects generation {self._generation.id} in circles")

    def _redirected(self, url: str, answer: MediaAnswer) -> str:
        target = joined_url(url, answer.headers.get("location", ""))
        if url.startswith("https:") and not target.startswith("https:"):
            raise DownloadBroken(f"The media host redirects generation {self._generation.id} to an unencrypted link")
        return target

    async def _read(self, transfer: _Transfer, answer: MediaAnswer) -> None:
        if answer.status in _STALE:
            raise _Stale(f"the media host answers HTTP {answer.status}")
        if answer.status == 416:
            if answer.headers.get("content-range", "").strip() == f"bytes */{transfer.size}":
                return  # there is nothing behind what we have
            raise _Restart
        if answer.status not in (200, 206):
            raise AnswerLost(f"the media host answers HTTP {answer.status}")
        transfer.begin(answer)
        async for batch in _batched(answer.chunks()):
            await transfer.take(batch)
        if transfer.length is not None and transfer.size < transfer.length:
            raise AnswerLost(f"{transfer.size} of {transfer.length} bytes came")

    async def _link(self, *, fresh: bool = False) -> str:
        """Return a link to the output, asking the service if there is none at hand."""
        if self._generation.output is not None and not fresh:
            return self._generation.output.url
        for attempt in range(_LINK_TRIES):
            generation = await self._session.client.get_generation(self._generation.id)
            if generation.output is not None and generation.status is not Status.FAILED:
                self._generation = _completed_by(self._generation, generation)
                return generation.output.url
            if not generation.is_over:
                raise StillRunning(
                    f"Generation {generation.id} is {generation.status_text}: there is nothing to download yet",
                    generation_id=generation.id,
                    next_step="Wait for it with wait_for_generation first.",
                )
            await asyncio.sleep(_PAUSE_SECONDS[min(attempt, len(_PAUSE_SECONDS) - 1)])
        raise OutputMissing(
            f"Generation {self._generation.id} is completed, but the service names no output for it",
            generation_id=self._generation.id,
        )

    async def _rejected(self, transfer: _Transfer, problem: str) -> MediaRejected:
        """Keep aside what was served, and return the error that says so."""
        kept = "as it was served" if await transfer.set_aside() else await self._fetched_aside(transfer.aside)
        note = {"format": 1, "problem": problem, "size": transfer.size, "kept": kept}
        note |= {"source_url": _without_query(self._url), "content_type_claimed": transfer.content_type_claimed}
        note |= {"receipt": self._generation.receipt, "generation_id": self._generation.id}
        body = json.dumps(note, indent=1).encode()
        await self._session.store.put(f"{transfer.aside}.json", body, "application/json")
        return MediaRejected(
            f"Generation {self._generation.id} is paid for, but the media host served {problem}",
            kept_at=self._session.store.uri(transfer.aside) if kept else None,
            generation_id=self._generation.id,
        )

    async def _fetched_aside(self, key: str) -> str | None:
        """Read the same link once more, into where a person can look at it; best effort."""
        writer = self._session.store.writer(key, "application/octet-stream")
        left = self._session.settings.max_asset_bytes
        try:
            await check_address(self._session, self._url)
            async with self._session.client.transport.media(self._url, {}) as answer:
                async for batch in _batched(answer.chunks()):
                    await writer.write(batch[:left])
                    left -= len(batch)
                    if left <= 0:
                        break
            await writer.commit()
        except (AnswerLost, VeogenError):
            await writer.abort()
            return None
        return "read from the link once more"

    async def _kind(self) -> Kind | None:
        """Return what is due when the generation doesn't say (the newer shape of a create answer doesn't)."""
        if self._receipt is None:
            return None
        with contextlib.suppress(VeogenError):
            return (await self._session.catalogue.model(self._receipt.request["model"])).type
        return None

    def _asset(self, transfer: _Transfer) -> Asset:
        return Asset(
            uri=self._session.store.uri(self._key(transfer.extension)),
            sha256=transfer.sha256,
            size=transfer.size,
            content_type=transfer.content_type,
            generation_id=self._generation.id,
            price_usd=self._receipt.price_usd if self._receipt else self._generation.price_usd,
            model=self._receipt.request["model"] if self._receipt else self._generation.model,
            source_url=_without_query(self._url),
        )

    def _key(self, extension: str) -> str:
        return f"assets/{self._stem()}{extension}"

    def _stem(self) -> str:
        """Return a name which a person recognises and which no other purchase has."""
        receipt, generation = self._receipt, self._generation
        if receipt is None:
            return f"{_plain(generation.model or 'unknown')}/{quote(generation.id, safe='')}"
        _version, visible, content, *take = receipt.key.split("-", 3)
        words = _plain(receipt.request["prompt"])[:40].strip("-")
        name = "-".join(part for part in (words, visible, content[:8], *take) if part)
        return f"{_plain(receipt.request['model'])}/{name}"

    async def _write_sidecar(self, transfer: _Transfer, asset: Asset) -> None:
        sidecar = _provenance(self._generation, self._receipt, asset, transfer.content_type_claimed)
        body = json.dumps(sidecar, indent=1, ensure_ascii=False, default=str).encode()
        await self._session.store.put(f"{self._key(transfer.extension)}.json", body, "application/json")


class _Transfer:
    """The bytes received so far of one version of a file, on their way into the store."""

    def __init__(self, session: Session, kind: Kind | None, key_for: Callable[[str], str], aside: str) -> None:
        self.aside = aside
        self._store = session.store
        self._most = session.settings.max_asset_bytes
        self._kind = kind
        self._key_for = key_for
        self._writer: Writer | None = None
        self._reset()

    def _reset(self) -> None:
        self._inspector = Inspector(self._kind)
        self._problem: NotMedia | None = None
        self.size = 0
        self._digest = hashlib.sha256()
        self._first = bytearray()
        self._stated_sha256: str | None = None
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
    def content_type(self) -> str:
        return self._inspector.content_type

    @property
    def extension(self) -> str:
        return self._inspector.extension

    def headers(self) -> dict[str, str]:
        """Return what to ask for: everything, or the rest of the very file that was begun."""
        if not self.size or self.validator is None:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.validator}

    def begin(self, answer: MediaAnswer) -> None:
        """Take note of what the host says of the file; refuse a rest that doesn't fit what is there."""
        headers = answer.headers
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", "").strip())
            if found is None or int(found[1]) != self.size or (self.length and found[2] not in ("*", str(self.length))):
                raise _Restart
            return
        if self.size:
            # The whole file again: it changed, or the host knows no ranges.
            raise _Restart
        etag = headers.get("etag", "")
        self.validator = etag if etag.startswith('"') else headers.get("last-modified")
        length = headers.get("content-length", "")
        self.length = int(length) if length.isdigit() else None
        self.content_type_claimed = headers.get("content-type")
        self._stated_sha256 = _stated_sha256(headers)

    async def take(self, batch: bytes) -> None:
        """Pass the next bytes on, out of sight, and judge them.

        Bytes that can't be what was paid for are read to their end all the same: a person is to see them whole.

        Raises:
            NotMedia: they are too many.
        """
        if self._writer is None:
            self._first += batch
        else:
            await self._writer.write(batch)
        self.size += len(batch)
        await asyncio.to_thread(self._judge, batch)
        if self.size > self._most:
            raise NotMedia(f"more than {self._most} bytes (VEOGEN_MAX_ASSET_BYTES)")
        if self._writer is None and (self._problem is not None or self._inspector.is_recognised):
            await self._opened()

    def finish(self) -> None:
        """Judge the file as a whole.

        Raises:
            NotMedia: it is not what was paid for.
        """
        if self._problem is not None:
            raise self._problem
        self._inspector.finish()
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
        return await self._writer.set_aside(self.aside)

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


async def _batched(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield larger pieces, and what came before a connection broke too."""
    batch = bytearray()
    try:
        async for chunk in chunks:
            batch += chunk
            if len(batch) >= _BATCH_BYTES:
                yield bytes(batch)
                batch.clear()
    except AnswerLost:
        if batch:
            yield bytes(batch)
        raise
    if batch:
        yield bytes(batch)


def _completed_by(known: Generation, told: Generation) -> Generation:
    """Return what the service tells now, with what only we know of it."""
    return told.model_copy(update={"receipt": known.receipt, "price_usd": known.price_usd or told.price_usd})


def _provenance(generation: Generation, receipt: Receipt | None, asset: Asset, claimed: str | None) -> dict[str, Any]:
    known = generation.model_dump(
        mode="json", include={"id", "model", "type", "prompt", "parameters", "created_at", "completed_at"}
    )
    known["parameters"] = _without_queries(known["parameters"])  # links to inputs may be signed
    bought: dict[str, Any] = {}
    if receipt is not None:
        bought = receipt.model_dump(mode="json", include={"request", "take", "links", "api", "quote_usd", "sent_at"})
        bought["receipt"] = receipt.key
    return {
        "format": 1,
        "asset": asset.model_dump(mode="json", exclude={"price_usd"}),
        "price_usd": None if asset.price_usd is None else str(asset.price_usd),
        **bought,
        "generation": known,
        "content_type_claimed": claimed,
        "stored_at": datetime.now(UTC).isoformat(),
        "made_with": f"prefect-veogen {version('prefect-veogen')}",
    }


def _stated_sha256(headers: Mapping[str, str]) -> str | None:
    """Return the digest of the whole file, in hex, if the host states one."""
    for name in ("repr-digest", "digest", "x-amz-checksum-sha256"):
        found = re.fullmatch(r"(?:.*sha-256=)?:?([A-Za-z0-9+/]{43}=):?(?:,.*)?", headers.get(name, ""), re.IGNORECASE)
        if found:
            return base64.b64decode(found[1]).hex()
    return None


def _plain(text: str) -> str:
    """Return text as part of a file name: lower-case ASCII letters, digits, dots and dashes."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", ascii_only).strip("-.") or "x"


def _without_queries(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_queries(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_queries(item) for item in value]
    return _without_query(value) if isinstance(value, str) and "://" in value else value


def _without_query(url: str) -> str:
    return url.partition("?")[0]
