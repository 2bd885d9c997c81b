"""Thumbnails of assets, for pages that show them without a link to a private store.

They are made once, and stored by the asset's digest under `thumbnails/`. They need Pillow and PyAV
(`pip install "prefect-veogen[media]"`); without them none are made.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prefect_veogen.errors import VeogenError
from prefect_veogen.process.concurrency import ConcurrencyLimit
from prefect_veogen.store import THUMBNAILS

if TYPE_CHECKING:
    from prefect_veogen.models import Asset
    from prefect_veogen.store import Store

_MAX_BYTES = 64 * 1024 * 1024
_WIDTH = 240
_TYPE = "image/jpeg"
# Each is read whole and decoded: hundreds at once must neither fill the memory nor delay the ledger's requests.
_decoding_limit = ConcurrencyLimit(2)


async def make_thumbnail(store: Store, asset: Asset) -> str | None:
    """Return a small JPEG of a picture or a clip's first frame as a data link; `None` if it can't be made."""
    async with _decoding_limit():
        try:
            stored = await store.read(_key(asset))
            small = await _make(store, asset) if stored is None else stored.body
            if stored is None and small is not None:
                with contextlib.suppress(VeogenError):  # it can be made again
                    await store.put(_key(asset), small, _TYPE)
        except VeogenError:
            return None  # all is made and paid for: a failing store must not fail what would show it
    return None if small is None else f"data:{_TYPE};base64,{base64.b64encode(small).decode()}"


async def store_thumbnail(store: Store, asset: Asset) -> str | None:
    """Return the key of such a JPEG in the store, where it is made if it is missing; `None` if it can't be made."""
    key = _key(asset)
    try:
        if await store.stat(key) is None:
            async with _decoding_limit():
                small = await _make(store, asset)
            if small is None:
                return None
            await store.put(key, small, _TYPE)
    except VeogenError:
        return None
    return key


async def _make(store: Store, asset: Asset) -> bytes | None:
    key = store.key(asset.uri)
    if key is None or asset.size > _MAX_BYTES or not (find_spec("av") and find_spec("PIL")):
        return None
    document = await store.read(key)
    return None if document is None else await asyncio.to_thread(_small, document.body, asset.content_type)


def _key(asset: Asset) -> str:
    return f"{THUMBNAILS}{asset.sha256}.jpg"


def _small(body: bytes, content_type: str) -> bytes | None:
    try:
        import av
        from PIL import Image

        if content_type.startswith("video/"):
            with av.open(io.BytesIO(body), "r") as container:
                image = next(container.decode(video=0)).to_image()  # type: ignore[no-untyped-call]
        else:
            image = Image.open(io.BytesIO(body))
        image = image.convert("RGB")
        image.thumbnail((_WIDTH, _WIDTH))
        small = io.BytesIO()
        image.save(small, "JPEG", quality=70)
    except Exception:  # noqa: BLE001 - decoders fail in many ways, and a thumbnail is optional
        return None
    return small.getvalue()
