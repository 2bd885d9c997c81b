"""Pictures and clips open, and have the size and length that were requested."""

from __future__ import annotations

import io
from typing import Any

import av
import httpx
import pytest
from PIL import Image

from prefect_veogen.sandbox import Sandbox
from prefect_veogen.sandbox.media import MediaSpec, Studio
from tests.support.sandbox_client import IMAGE, VIDEO, output_url


def picture(content: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(content))
    opened.load()
    return opened


def frames(content: bytes) -> list[Image.Image]:
    with av.open(io.BytesIO(content), "r") as clip:
        return [frame.to_image() for frame in clip.decode(video=0)]


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        ({"model": "gpt-4o-image", "aspect_ratio": "16:9"}, (1024, 576)),
        ({"model": "gpt-4o-image", "aspect_ratio": "9:16"}, (576, 1024)),
        ({"model": "nano-banana-2", "aspect_ratio": "1:1", "resolution": "0.5K"}, (512, 512)),
        ({"model": "gpt-image-2", "aspect_ratio": "21:9", "resolution": "2K"}, (2048, 878)),
    ],
)
def test_a_picture_opens_and_has_the_size_that_was_asked_for(
    media: httpx.Client, request_: dict[str, Any], size: tuple[int, int]
) -> None:
    with Sandbox(speed=0) as sandbox:
        response = media.get(output_url(sandbox, prompt="a lighthouse", **request_))
        assert response.headers["Content-Type"] == "image/png"
        assert picture(response.content).size == size


@pytest.mark.parametrize(
    ("request_", "size", "seconds"),
    [
        ({"model": "veo-3.1-fast", "aspect_ratio": "16:9"}, (1280, 720), 8),
        ({"model": "seedance-2.0", "aspect_ratio": "9:16", "resolution": "480p", "duration": 4}, (480, 854), 4),
        ({"model": "sora-2-pro", "resolution": "1080p", "aspect_ratio": "9:16"}, (1080, 1920), 10),
    ],
)
def test_a_clip_plays_and_has_the_size_and_length_that_were_asked_for(
    media: httpx.Client, request_: dict[str, Any], size: tuple[int, int], seconds: int
) -> None:
    with Sandbox(speed=0) as sandbox:
        response = media.get(output_url(sandbox, prompt="waves", **request_))
    assert response.headers["Content-Type"] == "video/mp4"
    with av.open(io.BytesIO(response.content), "r") as clip:
        stream = clip.streams.video[0]
        assert (stream.width, stream.height, stream.codec_context.name) == (*size, "h264")
        assert clip.duration is not None
        assert clip.duration / 1e6 == pytest.approx(seconds, abs=0.2)
        assert len(list(clip.decode(stream))) == stream.frames


def test_tiny_media_keep_the_ratio_and_are_small(sandbox: Sandbox, media: httpx.Client) -> None:
    still = media.get(output_url(sandbox, **IMAGE, aspect_ratio="9:16")).content
    clip = media.get(output_url(sandbox, **VIDEO)).content
    assert picture(still).size == (90, 160)
    assert len(still) + len(clip) < 50_000
    assert {frame.size for frame in frames(clip)} == {(160, 90)}


def test_a_studio_forgets_the_oldest_files() -> None:
    studio = Studio(memory_bytes=20_000)
    specs = [MediaSpec("image", 160, 90, f"prompt {number}") for number in range(20)]
    first = studio.file(specs[0])
    assert studio.file(specs[0]) is first
    for spec in specs[1:]:
        studio.file(spec)
    again = studio.file(specs[0])
    assert again is not first
    assert again.content == first.content
    assert studio.cached_bytes <= 20_000
