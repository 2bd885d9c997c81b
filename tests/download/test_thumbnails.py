"""Small pictures of assets: for pictures and clips alike, and none where one can't be made."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from prefect_veogen.download.thumbnails import make_thumbnail, store_thumbnail
from prefect_veogen.models import Asset
from prefect_veogen.store import Store, open_store
from tests.support.media import png

MEDIA = Path(__file__).parent / "media_files"


def wide_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (1920, 1080), (255, 0, 0, 128)).save(file, "PNG")
    return file.getvalue()


async def stored(store: Store, name: str, body: bytes, content_type: str) -> Asset:
    await store.put(f"assets/{name}", body, content_type)
    uri = store.uri(f"assets/{name}")
    sha256 = hashlib.sha256(body).hexdigest()
    return Asset(uri=uri, sha256=sha256, size=len(body), content_type=content_type, generation_id="g")


def size_of(link: str | None) -> tuple[int, int]:
    assert link is not None
    assert link.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).size


async def test_a_picture_becomes_a_small_one_of_the_same_shape(store_url: str) -> None:
    store = open_store(store_url)
    assert size_of(await make_thumbnail(store, await stored(store, "wide.png", wide_png(), "image/png"))) == (240, 135)
    assert size_of(await make_thumbnail(store, await stored(store, "tiny.png", png(), "image/png"))) == (4, 4)


async def test_a_stored_thumbnail_is_made_once_and_is_none_of_what_can_not_be_shown(store_url: str) -> None:
    store = open_store(store_url)
    picture = await stored(store, "wide.png", wide_png(), "image/png")
    key = await store_thumbnail(store, picture)
    assert key == f"thumbnails/{picture.sha256}.jpg"
    await store.put("assets/wide.png", b"gone", "image/png")
    assert await store_thumbnail(store, picture) == key
    assert await store_thumbnail(store, await stored(store, "bad.png", b"no picture", "image/png")) is None


async def test_a_clip_shows_its_first_frame(store_url: str) -> None:
    store = open_store(store_url)
    clip = (MEDIA / "mp4-with-a-line-break-behind.mp4").read_bytes()
    width, height = size_of(await make_thumbnail(store, await stored(store, "clip.mp4", clip, "video/mp4")))
    assert 0 < height <= width <= 240


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "image/png"),
        (b"<html>no picture</html>", "image/png"),
        (png()[:40], "image/png"),
        (b"no clip", "video/mp4"),
    ],
    ids=["empty", "html", "cut", "no clip"],
)
async def test_what_can_not_be_decoded_has_none(body: bytes, content_type: str, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert await make_thumbnail(store, await stored(store, "odd", body, content_type)) is None


async def test_it_is_made_once_and_then_read_from_the_store(store_url: str) -> None:
    store = open_store(store_url)
    asset = await stored(store, "wide.png", wide_png(), "image/png")
    made = await make_thumbnail(store, asset)
    await store.put("assets/wide.png", b"no picture any more", "image/png")
    assert await make_thumbnail(store, asset) == made
    kept = await store.read(f"thumbnails/{asset.sha256}.jpg")
    assert kept is not None
    assert kept.body.startswith(b"\xff\xd8")


async def test_an_asset_that_is_gone_elsewhere_or_too_large_has_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    asset = await stored(store, "a.png", png(), "image/png")
    assert await make_thumbnail(store, asset.model_copy(update={"uri": store.uri("assets/gone.png")})) is None
    assert await make_thumbnail(store, asset.model_copy(update={"uri": "s3://other/a.png"})) is None
    assert await make_thumbnail(store, asset.model_copy(update={"size": 100 * 1024 * 1024})) is None
