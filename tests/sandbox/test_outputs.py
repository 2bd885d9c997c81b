"""Outputs: which file is served, where, and what it shows."""

from __future__ import annotations

import io

import av
import httpx
import pytest
from PIL import Image, ImageChops, ImageStat

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE, VIDEO, finish, output_url


def picture(content: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(content))
    opened.load()
    return opened


def frames(content: bytes) -> list[Image.Image]:
    with av.open(io.BytesIO(content), "r") as clip:
        return [frame.to_image() for frame in clip.decode(video=0)]


def test_prompts_decide_the_picture(sandbox: Sandbox, media: httpx.Client) -> None:
    same = [media.get(output_url(sandbox, **IMAGE)).content for _ in range(2)]
    other = media.get(output_url(sandbox, **{**IMAGE, "prompt": "a desert"})).content
    assert same[0] == same[1] != other


def test_a_clip_made_from_one_of_our_pictures_shows_it(sandbox: Sandbox, media: httpx.Client) -> None:
    source = output_url(sandbox, **IMAGE, aspect_ratio="16:9")
    still = picture(media.get(source).content).resize((16, 9)).convert("L")
    from_it = frames(media.get(output_url(sandbox, **VIDEO, image_urls=[source])).content)[0]
    without = frames(media.get(output_url(sandbox, **VIDEO)).content)[0]

    def difference(frame: Image.Image) -> float:
        # Between the label of the clip at the top and that of the still at the bottom.
        middle = (0, 3, 16, 5)
        apart = ImageChops.difference(frame.resize((16, 9)).convert("L").crop(middle), still.crop(middle))
        return ImageStat.Stat(apart).mean[0]

    assert difference(from_it) < difference(without) / 2


def test_foreign_input_urls_are_never_fetched(sandbox: Sandbox, media: httpx.Client) -> None:
    with Sandbox(tiny_media=True) as elsewhere:
        url = output_url(sandbox, **VIDEO, image_urls=[f"{elsewhere.media_url}/storage/generations/a.png"])
        assert len(frames(media.get(url).content)) == 5
        assert elsewhere.requests == ()


def test_only_finished_outputs_are_served(sandbox: Sandbox, media: httpx.Client) -> None:
    assert media.get(f"{sandbox.media_url}/storage/generations/guess.png").status_code == 404
    assert media.get(f"{sandbox.media_url}/").status_code == 404
    assert media.post(output_url(sandbox, **IMAGE)).status_code == 405


def test_an_expired_url_stays_expired_and_the_next_poll_shows_a_fresh_one(
    sandbox: Sandbox, media: httpx.Client
) -> None:
    generation = finish(sandbox, **VIDEO)
    old = generation["output"]["url"]
    sandbox.fault("media-expired")
    assert [media.get(old).status_code for _ in range(2)] == [403, 403]
    headers = {"Authorization": f"Bearer {sandbox.token}"}
    fresh = httpx.get(f"{sandbox.base_url}/generations/{generation['id']}", headers=headers).json()["data"]["output"]
    assert fresh["url"] != old
    assert media.get(fresh["url"]).status_code == 200
    assert media.get(old).status_code == 403


def test_every_video_can_be_given_one_size() -> None:
    with Sandbox(speed=0, media_bytes=300_000) as sandbox:
        assert len(httpx.get(output_url(sandbox, **VIDEO)).content) == 300_000
        assert len(httpx.get(output_url(sandbox, **IMAGE)).content) != 300_000
    with pytest.raises(ValueError, match="media_bytes is at least"):
        Sandbox(media_bytes=1000)
