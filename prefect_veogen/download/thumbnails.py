"""Thumbnails of assets, for pages that show them without a link to a private store.

They need Pillow and PyAV (`pip install "prefect-veogen[media]"`); without them there are none.
"""

from __future__ import annotations

import asyncio
import base64
import io
from typing import TYPE_CHECKING

from prefect_veogen.errors import VeogenError
from prefect_veogen.process.concurrency import ConcurrencyLimit

if TYPE_CHECKING:
    from prefect_veogen.models import Asset
    from prefect_veogen.store import Store

_MAX_BYTES = 64 * 1024 * 1024
_WIDTH = 240
# Each is read whole and decoded: hundreds at once must neither fill the memory nor delay the ledger's requests.
_decoding_limit = ConcurrencyLimit(2)


async def thumbnail(store: Store, asset: Asset) -> str | None:
    """Return a small JPEG of a picture or a clip's first frame as a data link; `None` if it can't be made."""
    key = store.key(asset.uri)
    if key is None or asset.size > _MAX_BYTES:
        return None
    async with _decoding_limit():
        try:
            document = await store.read(key)
        except VeogenError:
            return None  # all is made and paid for: a failing store must not fail what would show it
        return None if document is None else await asyncio.to_thread(_small, document.body, asset.content_type)


def _small(body: bytes, content_type: str) -> str | None:
    try:
        import av
        from PIL import Image
    except ImportError:
        return None
    try:
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
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"
