"""From the service's media host into the store: one pass, constant memory, verified before it is visible.

No request here carries the bearer token. A broken connection is resumed where it broke, provided the host confirms that
the rest belongs to the same file; an expired link is replaced by requesting the generation again. What fails
verification is quarantined and never becomes the asset. Nothing in here can buy anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect_veogen.api.http import ResponseLost
from prefect_veogen.api.outcome import failure_of
from prefect_veogen.download.formats import NotMedia
from prefect_veogen.download.provenance import asset_key, asset_stem, describe_asset, sidecar
from prefect_veogen.download.transfer import LEAST_BYTES, Restart, TooLarge, Transfer
from prefect_veogen.download.url_guard import open_media, output_link
from prefect_veogen.errors import DownloadBroken, MediaRejected, OutputMissing, StillRunning, VeogenError
from prefect_veogen.ledger.receipt import Receipt
from prefect_veogen.models import Asset, Delivery, Generation, Kind, Status, without_secrets
from prefect_veogen.process.concurrency import ConcurrencyLimit, backoff_seconds
from prefect_veogen.process.tracing import span

if TYPE_CHECKING:
    from prefect_veogen.api.http import MediaResponse
    from prefect_veogen.session import Session
    from prefect_veogen.store import Store, Writer

_MAX_CONCURRENT = 8
_EXPIRED_STATUSES = (401, 403, 404, 410)
_MAX_TRIES_WITHOUT_PROGRESS = 4
_pause_seconds = partial(backoff_seconds, first=0.25, longest=2.0)
_MAX_LINK_TRIES = 6
_LIMIT = "VEOGEN_MAX_ASSET_BYTES"
_WHEN_TOO_LARGE = f"If you expect so large a file, raise {_LIMIT} and run it again: nothing is bought again."
_WHEN_NOT_KEPT = "The bytes that were served could not be stored."


async def deliver(session: Session, generation: Generation) -> Delivery:
    """Return the asset of a completed generation, downloaded unless the store has it intact.

    Free and idempotent. It leaves the object, its sidecar and the receipt as STORED.
    """
    with span("download", model=generation.model, generation_id=generation.id, receipt=generation.receipt) as traced:
        delivery = await _deliver(session, generation)
        asset = delivery.asset
        traced.note(price_usd=asset.price_usd, reused=delivery.reused, sha256=asset.sha256, size_bytes=asset.size)
    session.delivered(delivery)
    return delivery


async def _deliver(session: Session, generation: Generation) -> Delivery:
    entry = await session.ledger.find(session.client.base_url, generation)
    stored = await find_intact_asset(session.store, entry.receipt) if entry else None
    receipt = entry.receipt if entry else None
    if stored is not None:
        return _describe(generation, receipt, stored, reused=True)
    async with _download_limit():
        asset, etag = await _Download(session, generation, receipt).run()
    if entry is not None:
        await session.ledger.store(entry, asset, etag)
    return _describe(generation, receipt, asset, reused=False)


def _describe(generation: Generation, receipt: Receipt | None, asset: Asset, *, reused: bool) -> Delivery:
    began, ended = generation.created_at, generation.completed_at
    made_in = (ended - began).total_seconds() if began and ended else None
    if receipt is None:
        return Delivery(asset, reused, prompt=generation.prompt, made_in_seconds=made_in)
    return Delivery(
        asset,
        reused,
        prompt=receipt.request.prompt,
        take=receipt.take,
        duration_seconds=receipt.request.duration,
        made_in_seconds=made_in,
        receipt=receipt.key,
        labels=receipt.labels,
        campaign=receipt.campaign,
    )


async def find_intact_asset(store: Store, receipt: Receipt) -> Asset | None:
    """Return the receipt's asset if the store still holds it; the object is read only if its etag has changed."""
    asset = receipt.asset
    if asset is None:
        return None
    # A store may have been moved or copied: its content counts, not the URI that was recorded.
    key = store.key(asset.uri) or "/".join(asset.uri.rsplit("/", 3)[1:])
    stat = await store.stat(key)
    if stat is None or stat.size != asset.size:
        return None
    # Copying a bucket or a directory changes etags but not contents.
    if stat.etag != receipt.etag and await store.sha256(key) != asset.sha256:
        return None
    return asset.model_copy(update={"uri": store.uri(key)})


# Bounded concurrency: each transfer holds some megabytes in memory.
_download_limit = ConcurrencyLimit(_MAX_CONCURRENT)


class _LinkExpired(Exception):
    """The link no longer works; a fresh one may."""


class _Download:
    """One asset's download into the store, over as many connections as it takes."""

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
        self._url = await self._find_link()
        quarantine_key = f"rejected/{self._stem}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        transfer = Transfer(self._session, self._generation.type or await self._find_kind(), self._key, quarantine_key)
        try:
            try:
                await self._transfer(transfer)
            except TooLarge as problem:
                raise self._refusal(str(problem), setting=_LIMIT, next_step=_WHEN_TOO_LARGE) from None
            except NotMedia as problem:
                raise await self._reject(transfer, str(problem)) from None
            etag = await transfer.commit()
        except BaseException:
            with contextlib.suppress(VeogenError):
                await asyncio.shield(transfer.abort())
            raise
        return await self._describe(transfer), etag

    @property
    def _stem(self) -> str:
        return asset_stem(self._generation, self._receipt)

    def _key(self, extension: str) -> str:
        return asset_key(self._stem, extension)

    async def _describe(self, transfer: Transfer) -> Asset:
        """Return the asset, with its sidecar written beside it."""
        store, key = self._session.store, self._key(transfer.extension)
        asset = describe_asset(self._generation, self._receipt, transfer, store.uri(key), self._url)
        body = sidecar(self._generation, self._receipt, transfer, asset, self._session.carried)
        await store.put(f"{key}.json", body, "application/json")
        return asset

    async def _transfer(self, transfer: Transfer) -> None:
        """Receive and verify the whole file."""
        failures = farthest = 0
        while True:
            try:
                await self._connect(transfer)
            except Restart:
                await transfer.start_over()
                failures += 1
                reason = "the file changes during the download"
            except _LinkExpired as expired:
                failures += 1
                reason = str(expired)
                self._url = await self._find_link(fresh=True)
            except ResponseLost as lost:
                # Only bytes beyond the farthest point are progress: a download that keeps starting over, or trickles,
                # must end.
                failures = 1 if transfer.size >= farthest + LEAST_BYTES else failures + 1
                farthest = max(farthest, transfer.size)
                reason = str(lost)
            else:
                transfer.finish()
                return
            if failures > _MAX_TRIES_WITHOUT_PROGRESS:
                raise DownloadBroken(f"The download of generation {self._generation.id} broke off: {reason}")
            await asyncio.sleep(_pause_seconds(failures))

    async def _connect(self, transfer: Transfer) -> None:
        """Read from one connection to the end of the file."""
        if transfer.size and transfer.validator is None:
            raise Restart
        async with open_media(self._session, self._url, transfer.headers()) as response:
            if response.status in _EXPIRED_STATUSES:
                raise _LinkExpired(f"the media host responds with HTTP {response.status}")
            if response.status == 416:
                if response.headers.get("content-range", "").strip() == f"bytes */{transfer.size}":
                    return  # it was complete already
                raise Restart
            if response.status not in (200, 206):
                raise ResponseLost(f"the media host responds with HTTP {response.status}")
            await transfer.receive(response)

    async def _find_link(self, *, fresh: bool = False) -> str:
        """Return a link to the output, from the service if there is none or a fresh one is needed."""
        known = output_link(self._session, self._generation)
        if known is not None and not fresh:
            return known
        for attempt in range(1, _MAX_LINK_TRIES + 1):
            generation = await self._session.client.get_generation(self._generation.id)
            if generation.status is Status.FAILED:
                raise failure_of(generation)
            link = output_link(self._session, generation)
            if link is not None:
                self._generation = _completed_by(self._generation, generation)
                return link
            if not generation.is_over:
                raise StillRunning(
                    f"Generation {generation.id} is {generation.status_text}: there is nothing to download yet",
                    generation_id=generation.id,
                    next_step="Wait for it with wait_for_generation first.",
                )
            await asyncio.sleep(_pause_seconds(attempt))
        raise OutputMissing(
            f"Generation {self._generation.id} is completed, but the service gives no link to its output",
            generation_id=self._generation.id,
        )

    async def _reject(self, transfer: Transfer, problem: str) -> MediaRejected:
        """Quarantine what was served, and return the error to raise."""
        setting, step = (_LIMIT, _WHEN_TOO_LARGE) if transfer.is_cut else (None, MediaRejected.default_next_step)
        if not transfer.size:
            return self._refusal(f"served {problem}", setting=setting, next_step=step)
        kept_at = await self._find_quarantined(transfer.sha256)
        if kept_at is None:
            kept = await self._quarantine(transfer)
            kept_at = self._session.store.uri(transfer.quarantine_key) if kept else None
            note = {"format": 1, "problem": problem, "size": transfer.size, "sha256": transfer.sha256, "kept": kept}
            note |= {"source_url": without_secrets(self._url), "content_type_claimed": transfer.content_type_claimed}
            note |= {"receipt": self._generation.receipt, "generation_id": self._generation.id}
            body = json.dumps(note, indent=1).encode()
            await self._session.store.put(f"{transfer.quarantine_key}.json", body, "application/json")
        where = f"What was read of it is quarantined at {kept_at}." if kept_at else _WHEN_NOT_KEPT
        return self._refusal(f"served {problem}", kept_at=kept_at, setting=setting, next_step=f"{step} {where}")

    def _refusal(self, problem: str, **facts: Any) -> MediaRejected:
        text = f"Generation {self._generation.id} is paid for, but the media host {problem}"
        return MediaRejected(text, generation_id=self._generation.id, **facts)

    async def _quarantine(self, transfer: Transfer) -> str | None:
        """Quarantine what was received, and return in words what is there; `None` if nothing could be stored."""
        if await transfer.quarantine():
            return "the beginning of it" if transfer.is_cut else "as it was served"
        if not await self._fetch_into_quarantine(transfer):
            return None
        return f"{'the beginning of it, ' if transfer.is_cut else ''}read from the link once more"

    async def _find_quarantined(self, sha256: str) -> str | None:
        """Return where an earlier attempt quarantined the same bytes: retries must not fill the store."""
        store = self._session.store
        for found in await store.list_objects(f"rejected/{self._stem}-"):
            document = await store.read(found.key) if found.key.endswith(".json") else None
            if document is not None and _describes(document.body, sha256):
                return store.uri(found.key.removesuffix(".json"))
        return None

    async def _fetch_into_quarantine(self, transfer: Transfer) -> bool:
        """Download the file once more, into quarantine; `False` if the bytes differ from those that were rejected."""
        writer = self._session.store.writer(transfer.quarantine_key, "application/octet-stream")
        try:
            async with open_media(self._session, self._url, {}) as response:
                await self._copy(response, writer, transfer)
            await writer.commit()
        except BaseException as error:
            with contextlib.suppress(VeogenError):
                await asyncio.shield(writer.abort())
            if isinstance(error, ResponseLost | VeogenError):
                return False
            raise
        return True

    async def _copy(self, response: MediaResponse, writer: Writer, transfer: Transfer) -> None:
        """Copy as many bytes as were rejected; of a complete file one more, to notice if it has grown.

        Raises:
            ResponseLost: the bytes differ from those that were rejected.
        """
        digest, left = hashlib.sha256(), transfer.size + (not transfer.is_cut)
        async for chunk in transfer.decode_again(response):
            piece = chunk[:left]
            digest.update(piece)
            await writer.write(piece)
            left -= len(piece)
            if not left:
                break
        if response.status != 200 or digest.hexdigest() != transfer.sha256:
            raise ResponseLost("the link serves other bytes now")

    async def _find_kind(self) -> Kind | None:
        """Return the expected kind when the generation doesn't say (the newer shape of a create response doesn't)."""
        return None if self._receipt is None else await self._session.catalogue.find_kind(self._receipt.request.model)


def _describes(note: bytes, sha256: str) -> bool:
    try:
        document = json.loads(note)
        return bool(document["sha256"] == sha256 and document["kept"])
    except (ValueError, KeyError, TypeError):
        return False


def _completed_by(known: Generation, current: Generation) -> Generation:
    """Return the generation as the service describes it now, with what only the ledger knows of it."""
    return current.model_copy(update={"receipt": known.receipt, "price_usd": known.price_usd or current.price_usd})
