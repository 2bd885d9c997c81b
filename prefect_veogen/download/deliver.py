"""From the service's media host into the store: one pass, constant memory, verified before it can be seen.

The bearer token never comes near here. A broken connection is resumed where it broke, provided the host confirms that
the rest belongs to the same file; a stale link is replaced by asking the generation again. What fails verification is
kept aside for a person and never becomes the asset. Nothing in here can buy anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prefect_veogen.api.http import ResponseLost
from prefect_veogen.api.outcome import failure_of
from prefect_veogen.download.formats import NotMedia
from prefect_veogen.download.transfer import LEAST_BYTES, Restart, TooLarge, Transfer
from prefect_veogen.download.url_guard import open_media, output_link
from prefect_veogen.errors import DownloadBroken, MediaRejected, OutputMissing, StillRunning, VeogenError
from prefect_veogen.ledger.receipt import Receipt
from prefect_veogen.models import Asset, Generation, Kind, Status, without_secrets
from prefect_veogen.process.concurrency import ConcurrencyLimit

if TYPE_CHECKING:
    from prefect_veogen.api.http import MediaResponse
    from prefect_veogen.session import Session
    from prefect_veogen.store import Store, Writer

_AT_ONCE = 8
_STALE = (401, 403, 404, 410)
_TRIES_WITHOUT_PROGRESS = 4
_PAUSE_SECONDS = (0.2, 0.5, 1.0, 2.0)
_LINK_TRIES = 6
_LIMIT = "VEOGEN_MAX_ASSET_BYTES"
_WHEN_TOO_LARGE = f"If so large a file is due, raise {_LIMIT} and run it again: nothing is bought again."
_WHEN_NOT_KEPT = "The bytes that were served could not be kept."


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
    stored = await intact_asset(session.store, entry.receipt) if entry else None
    if stored is not None:
        return Delivery(stored, reused=True)
    async with _places():
        asset, etag = await _Download(session, generation, entry.receipt if entry else None).run()
    if entry is not None:
        await session.ledger.store(entry, asset, etag)
    return Delivery(asset, reused=False)


async def intact_asset(store: Store, receipt: Receipt) -> Asset | None:
    """Return the receipt's asset if the store still holds it; reads it whole only if something looks changed."""
    asset = receipt.asset
    if asset is None:
        return None
    # A store may have been moved or copied: what counts is what it holds, not what it was called.
    key = store.key(asset.uri) or "/".join(asset.uri.rsplit("/", 3)[1:])
    stat = await store.stat(key)
    if stat is None or stat.size != asset.size:
        return None
    # Copying a bucket or a directory changes etags but not contents.
    if stat.etag != receipt.etag and await store.sha256(key) != asset.sha256:
        return None
    return asset.model_copy(update={"uri": store.uri(key)})


# What keeps the memory of many deliveries at once within bounds.
_places = ConcurrencyLimit(_AT_ONCE)


class _Stale(Exception):
    """The link no longer works; a fresh one may."""


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
        transfer = Transfer(self._session, self._generation.type or await self._kind(), self._key, aside)
        try:
            try:
                await self._transferred(transfer)
            except TooLarge as problem:
                raise self._refusal(str(problem), setting=_LIMIT, next_step=_WHEN_TOO_LARGE) from None
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

    async def _transferred(self, transfer: Transfer) -> None:
        """Return when all bytes are in and judged."""
        failures = farthest = 0
        while True:
            try:
                await self._connect(transfer)
            except Restart:
                await transfer.start_over()
                failures += 1
                reason = "the file changes while it is read"
            except _Stale as stale:
                failures += 1
                reason = str(stale)
                self._url = await self._link(fresh=True)
            except ResponseLost as lost:
                # Only what was never reached before is progress: a file that starts over and over must come to an end,
                # and so must one that trickles.
                failures = 1 if transfer.size >= farthest + LEAST_BYTES else failures + 1
                farthest = max(farthest, transfer.size)
                reason = str(lost)
            else:
                transfer.finish()
                return
            if failures > _TRIES_WITHOUT_PROGRESS:
                raise DownloadBroken(f"The download of generation {self._generation.id} broke off: {reason}")
            await asyncio.sleep(_PAUSE_SECONDS[min(failures, len(_PAUSE_SECONDS)) - 1])

    async def _connect(self, transfer: Transfer) -> None:
        """Read from one connection to the end of the file."""
        if transfer.size and transfer.validator is None:
            raise Restart
        async with open_media(self._session, self._url, transfer.headers()) as answer:
            if answer.status in _STALE:
                raise _Stale(f"the media host answers HTTP {answer.status}")
            if answer.status == 416:
                if answer.headers.get("content-range", "").strip() == f"bytes */{transfer.size}":
                    return  # there is nothing behind what we have
                raise Restart
            if answer.status not in (200, 206):
                raise ResponseLost(f"the media host answers HTTP {answer.status}")
            await transfer.receive(answer)

    async def _link(self, *, fresh: bool = False) -> str:
        """Return a link to the output, asking the service if there is none at hand."""
        known = output_link(self._session, self._generation)
        if known is not None and not fresh:
            return known
        for attempt in range(_LINK_TRIES):
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
            await asyncio.sleep(_PAUSE_SECONDS[min(attempt, len(_PAUSE_SECONDS) - 1)])
        raise OutputMissing(
            f"Generation {self._generation.id} is completed, but the service names no output for it",
            generation_id=self._generation.id,
        )

    async def _rejected(self, transfer: Transfer, problem: str) -> MediaRejected:
        """Quarantine what was served, and return the error that says so."""
        setting, step = (_LIMIT, _WHEN_TOO_LARGE) if transfer.is_cut else (None, MediaRejected.default_next_step)
        if not transfer.size:
            return self._refusal(f"served {problem}", setting=setting, next_step=step)
        kept_at = await self._kept_before(transfer.sha256)
        if kept_at is None:
            kept = await self._kept_aside(transfer)
            kept_at = self._session.store.uri(transfer.aside) if kept else None
            note = {"format": 1, "problem": problem, "size": transfer.size, "sha256": transfer.sha256, "kept": kept}
            note |= {"source_url": without_secrets(self._url), "content_type_claimed": transfer.content_type_claimed}
            note |= {"receipt": self._generation.receipt, "generation_id": self._generation.id}
            body = json.dumps(note, indent=1).encode()
            await self._session.store.put(f"{transfer.aside}.json", body, "application/json")
        where = f"What was read of it is kept at {kept_at}." if kept_at else _WHEN_NOT_KEPT
        return self._refusal(f"served {problem}", kept_at=kept_at, setting=setting, next_step=f"{step} {where}")

    def _refusal(self, doing: str, **facts: Any) -> MediaRejected:
        text = f"Generation {self._generation.id} is paid for, but the media host {doing}"
        return MediaRejected(text, generation_id=self._generation.id, **facts)

    async def _kept_aside(self, transfer: Transfer) -> str | None:
        """Put what was taken where a person can look at it, and return in words what lies there; `None` if nothing."""
        if await transfer.set_aside():
            return "the beginning of it" if transfer.is_cut else "as it was served"
        if not await self._fetched_aside(transfer):
            return None
        return f"{'the beginning of it, ' if transfer.is_cut else ''}read from the link once more"

    async def _kept_before(self, sha256: str) -> str | None:
        """Return where the same bytes were put aside by an earlier attempt: retries must not fill the store."""
        store = self._session.store
        for found in await store.list_objects(f"rejected/{self._stem()}-"):
            document = await store.read(found.key) if found.key.endswith(".json") else None
            if document is not None and _note_tells_of(document.body, sha256):
                return store.uri(found.key.removesuffix(".json"))
        return None

    async def _fetched_aside(self, transfer: Transfer) -> bool:
        """Read the link once more, into where a person can look at it; `False` if it doesn't bring the same again."""
        writer = self._session.store.writer(transfer.aside, "application/octet-stream")
        try:
            async with open_media(self._session, self._url, {}) as answer:
                await self._copy(answer, writer, transfer)
            await writer.commit()
        except BaseException as error:
            with contextlib.suppress(VeogenError):
                await asyncio.shield(writer.abort())
            if isinstance(error, ResponseLost | VeogenError):
                return False
            raise
        return True

    async def _copy(self, answer: MediaResponse, writer: Writer, transfer: Transfer) -> None:
        """Copy as much as was judged; of a file that was judged whole a byte more, if there is one by now.

        Raises:
            ResponseLost: it is not the same as was judged.
        """
        digest, left = hashlib.sha256(), transfer.size + (not transfer.is_cut)
        async for chunk in transfer.decoded(answer):
            piece = chunk[:left]
            digest.update(piece)
            await writer.write(piece)
            left -= len(piece)
            if not left:
                break
        if answer.status != 200 or digest.hexdigest() != transfer.sha256:
            raise ResponseLost("the link brings something else by now")

    async def _kind(self) -> Kind | None:
        """Return what is due when the generation doesn't say (the newer shape of a create answer doesn't)."""
        if self._receipt is None:
            return None
        with contextlib.suppress(VeogenError):
            return (await self._session.catalogue.get_model(self._receipt.request.model)).type
        return None

    def _asset(self, transfer: Transfer) -> Asset:
        return Asset(
            uri=self._session.store.uri(self._key(transfer.extension)),
            sha256=transfer.sha256,
            size=transfer.size,
            content_type=transfer.content_type,
            generation_id=self._generation.id,
            price_usd=self._receipt.price_usd if self._receipt else self._generation.price_usd,
            model=self._receipt.request.model if self._receipt else self._generation.model,
            source_url=without_secrets(self._url),
        )

    def _key(self, extension: str) -> str:
        return f"assets/{self._stem()}{extension}"

    def _stem(self) -> str:
        """Return a name which a person recognises and which no other purchase has."""
        receipt, generation = self._receipt, self._generation
        if receipt is None:
            return f"{_plain(generation.model or 'unknown')}/{quote(generation.id, safe='')}"
        visible, content, take = receipt.receipt_key
        words = _plain(receipt.request.prompt)[:40].strip("-")
        name = "-".join(part for part in (words, visible, content[:8], take) if part)
        return f"{_plain(receipt.request.model)}/{name}"

    async def _write_sidecar(self, transfer: Transfer, asset: Asset) -> None:
        sidecar = _provenance(self._generation, self._receipt, asset)
        sidecar |= {
            "content_type_claimed": transfer.content_type_claimed,
            "bytes_behind_end": transfer.bytes_behind_end,
        }
        sidecar["content_credentials"] = transfer.content_credentials
        body = json.dumps(sidecar, indent=1, ensure_ascii=False, default=str).encode()
        await self._session.store.put(f"{self._key(transfer.extension)}.json", body, "application/json")


def _note_tells_of(note: bytes, sha256: str) -> bool:
    try:
        told = json.loads(note)
        return bool(told["sha256"] == sha256 and told["kept"])
    except (ValueError, KeyError, TypeError):
        return False


def _completed_by(known: Generation, told: Generation) -> Generation:
    """Return what the service tells now, with what only we know of it."""
    return told.model_copy(update={"receipt": known.receipt, "price_usd": known.price_usd or told.price_usd})


def _provenance(generation: Generation, receipt: Receipt | None, asset: Asset) -> dict[str, Any]:
    known = generation.model_dump(
        mode="json", include={"id", "model", "type", "prompt", "parameters", "created_at", "completed_at"}
    )
    known["parameters"] = _without_secrets(known["parameters"])  # links to inputs may be signed
    bought: dict[str, Any] = {}
    if receipt is not None:
        shown = {"request", "take", "links", "api", "quote_usd", "sent_at"}
        bought = receipt.model_dump(mode="json", include=shown) | {
            "request": receipt.request.model_dump(mode="json", exclude_none=True)
        }
        bought["receipt"] = receipt.key
    return {
        "format": 1,
        "asset": asset.model_dump(mode="json", exclude={"price_usd"}),
        "price_usd": None if asset.price_usd is None else str(asset.price_usd),
        **bought,
        "generation": known,
        "stored_at": datetime.now(UTC).isoformat(),
        "made_with": f"prefect-veogen {version('prefect-veogen')}",
    }


def _plain(text: str) -> str:
    """Return text as part of a file name: lower-case ASCII letters, digits, dots and dashes."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", ascii_only).strip("-.") or "x"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return without_secrets(value) if isinstance(value, str) and "://" in value else value
