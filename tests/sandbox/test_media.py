"""The media host of the sandbox: real pictures and clips, ranges, and every way a download goes wrong."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import av
import httpx
import pytest
from PIL import Image, ImageChops, ImageStat

from prefect_veogen.sandbox import Sandbox
from prefect_veogen.sandbox.media import MediaSpec, Studio

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
VIDEO = {"model": "veo-3.1-fast", "prompt": "waves"}
LONG_ENOUGH = 200.0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=0, tiny_media=True, requests_per_minute=None) as running:
        yield running


@pytest.fixture
def media() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


def finished(sandbox: Sandbox, **request: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {sandbox.token}"}
    with httpx.Client(base_url=sandbox.base_url, headers=headers) as api:
        answer = api.post("/generations", json=request)
        assert answer.status_code == 201, answer.text
        sandbox.advance(LONG_ENOUGH)
        data: dict[str, Any] = api.get(f"/generations/{answer.json()['data']['id']}").json()["data"]
        return data


def output_url(sandbox: Sandbox, **request: Any) -> str:
    url: str = finished(sandbox, **request)["output"]["url"]
    return url


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
        answer = media.get(output_url(sandbox, prompt="a lighthouse", **request_))
        assert answer.headers["Content-Type"] == "image/png"
        assert picture(answer.content).size == size


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
        answer = media.get(output_url(sandbox, prompt="waves", **request_))
    assert answer.headers["Content-Type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content), "r") as clip:
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


def test_a_range_is_answered_with_exactly_those_bytes(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url)
    size = len(whole.content)
    assert whole.headers["Accept-Ranges"] == "bytes"
    for asked, part in (
        ("bytes=0-99", slice(0, 100)),
        ("bytes=100-", slice(100, size)),
        ("bytes=-50", slice(size - 50, size)),
        (f"bytes=100-{size * 2}", slice(100, size)),
    ):
        answer = media.get(url, headers={"Range": asked})
        start, stop, _ = part.indices(size)
        assert (answer.status_code, answer.content) == (206, whole.content[part]), asked
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert answer.headers["ETag"] == whole.headers["ETag"]


def test_an_impossible_range_is_416_and_an_odd_one_is_ignored(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    size = len(media.get(url).content)
    for asked in (f"bytes={size}-", "bytes=-0"):
        answer = media.get(url, headers={"Range": asked})
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    for odd in ("bytes=5-2", "bytes=0-1,5-6", f"bytes={'9' * 5000}-", "lines=1-2", "bytes=-"):
        assert media.get(url, headers={"Range": odd}).status_code == 200


def test_if_range_gives_the_rest_only_of_the_same_file(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    headers = media.get(url).headers
    for validator in (headers["ETag"], headers["Last-Modified"]):
        assert media.get(url, headers={"Range": "bytes=10-", "If-Range": validator}).status_code == 206
    assert media.get(url, headers={"Range": "bytes=10-", "If-Range": '"another"'}).status_code == 200
    assert media.get(url, headers={"If-None-Match": headers["ETag"]}).status_code == 304


def test_head_has_the_headers_of_get_and_no_body(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    head, get = media.head(url), media.get(url)
    assert head.content == b""
    for name in ("Content-Length", "Content-Type", "ETag", "Last-Modified"):
        assert head.headers[name] == get.headers[name]


def test_the_download_url_asks_browsers_to_save(sandbox: Sandbox, media: httpx.Client) -> None:
    output = finished(sandbox, **VIDEO)["output"]
    answer = media.get(output["download_url"])
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="')
    assert answer.headers["Content-Disposition"].endswith('.mp4"')
    assert "Content-Disposition" not in media.get(output["url"]).headers


def test_the_log_tells_whether_a_token_reached_the_media_host(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    media.get(url)
    media.get(url, headers={"Authorization": "Bearer leaked"})
    seen = [record for record in sandbox.requests if record.origin == "media"]
    assert [record.had_authorization for record in seen] == [False, True]
    assert not any("leaked" in f"{record} {record.headers}" for record in sandbox.requests)


def test_only_finished_outputs_are_served(sandbox: Sandbox, media: httpx.Client) -> None:
    assert media.get(f"{sandbox.media_url}/storage/generations/guess.png").status_code == 404
    assert media.get(f"{sandbox.media_url}/").status_code == 404
    assert media.post(output_url(sandbox, **IMAGE)).status_code == 405


def test_a_truncated_file_has_the_right_length_in_its_header_only(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    size = len(media.get(url).content)
    sandbox.fault("media-truncated", share=0.25)
    received = b""
    with pytest.raises(httpx.RemoteProtocolError), media.stream("GET", url) as answer:
        assert answer.headers["Content-Length"] == str(size)
        for piece in answer.iter_raw():
            received += piece
    assert len(received) == size // 4
    rest = media.get(url, headers={"Range": f"bytes={len(received)}-", "If-Range": answer.headers["ETag"]})
    assert received + rest.content == media.get(url).content


def test_a_silently_truncated_file_looks_complete(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url).content
    sandbox.fault("media-truncated-silently")
    answer = media.get(url)
    assert answer.headers["Content-Length"] == str(len(answer.content)) == str(len(whole) // 2)
    assert whole.startswith(answer.content)


def test_a_reset_is_a_reset(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-reset")
    with pytest.raises(httpx.ReadError, match="reset"):
        media.get(url)
    assert media.get(url).status_code == 200


def test_a_stalled_file_goes_silent_midway(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-stalled")
    received = b""
    with pytest.raises(httpx.ReadTimeout), media.stream("GET", url, timeout=0.2) as answer:
        for piece in answer.iter_raw():
            received += piece
    assert len(received) == int(answer.headers["Content-Length"]) // 2


def test_a_stalled_file_ends_when_its_time_is_up(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-stalled", seconds=0.05)
    with pytest.raises(httpx.RemoteProtocolError):
        media.get(url)


def test_a_slow_file_arrives_at_the_rate_that_was_set(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url).content
    sandbox.fault("media-slow", bytes_per_second=len(whole) * 3)
    began = time.monotonic()
    assert media.get(url).content == whole
    assert 0.2 < time.monotonic() - began < 2


def test_an_expired_url_stays_dead_and_the_next_look_shows_a_fresh_one(sandbox: Sandbox, media: httpx.Client) -> None:
    generation = finished(sandbox, **VIDEO)
    old = generation["output"]["url"]
    sandbox.fault("media-expired")
    assert [media.get(old).status_code for _ in range(2)] == [403, 403]
    headers = {"Authorization": f"Bearer {sandbox.token}"}
    fresh = httpx.get(f"{sandbox.base_url}/generations/{generation['id']}", headers=headers).json()["data"]["output"]
    assert fresh["url"] != old
    assert media.get(fresh["url"]).status_code == 200
    assert media.get(old).status_code == 403


@pytest.mark.parametrize(
    ("name", "status"), [("media-404", 404), ("media-410", 410), ("media-500", 500), ("media-503", 503)]
)
def test_the_media_host_can_refuse(sandbox: Sandbox, media: httpx.Client, name: str, status: int) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault(name)
    refused = media.get(url)
    assert (refused.status_code, "Retry-After" in refused.headers) == (status, status == 503)
    assert media.get(url).status_code == 200


@pytest.mark.parametrize(
    ("name", "content_type", "start"),
    [
        ("media-html", "text/html; charset=utf-8", b"<!doctype html>"),
        ("media-html-as-media", "video/mp4", b"<!doctype html>"),
        ("media-json", "application/json", b'{"error"'),
        ("media-empty", "video/mp4", b""),
        ("media-wrong-type", "video/mp4", b"\x89PNG"),
    ],
)
def test_something_else_comes_in_the_place_of_the_file(
    sandbox: Sandbox, media: httpx.Client, name: str, content_type: str, start: bytes
) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault(name)
    answer = media.get(url)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, content_type)
    assert answer.content.startswith(start)
    assert bool(answer.content) == bool(start)
    assert media.get(url).content[4:8] == b"ftyp"


def test_a_clip_can_come_in_the_place_of_a_picture(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    sandbox.fault("media-wrong-type")
    answer = media.get(url)
    assert (answer.headers["Content-Type"], answer.content[4:8]) == ("image/png", b"ftyp")


def test_a_wrong_length_is_too_long_or_too_short(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url).content
    sandbox.fault("media-wrong-length", extra=10)
    with pytest.raises(httpx.RemoteProtocolError, match=f"received {len(whole)} bytes, expected {len(whole) + 10}"):
        media.get(url)
    sandbox.fault("media-wrong-length", extra=-10)
    assert media.get(url).content == whole[:-10]
    assert [record.status for record in sandbox.requests[-2:]] == [200, 200]


def test_a_redirect_leads_to_the_file(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url).content
    sandbox.fault("media-redirect", times=None)
    assert media.get(url).status_code == 302
    followed = media.get(url, follow_redirects=True)
    assert followed.content == whole
    assert str(followed.url).startswith(f"{sandbox.media_url}/storage/moved/")


def test_a_redirect_may_lead_nowhere_or_where_nobody_should_go(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-redirect-loop")
    with pytest.raises(httpx.TooManyRedirects):
        media.get(url, follow_redirects=True)
    sandbox.fault("media-redirect-private")
    assert media.get(url).headers["Location"].startswith("http://169.254.169.254/")
    assert media.get(url).status_code == 200


def test_a_range_may_be_ignored(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-no-range")
    whole = media.get(url)
    answer = media.get(url, headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert media.get(url, headers={"Range": "bytes=10-"}).status_code == 206


def test_a_file_may_change_between_two_requests(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-changed")
    first = media.get(url)
    second = media.get(url, headers={"Range": "bytes=10-", "If-Range": first.headers["ETag"]})
    assert second.status_code == 200
    assert second.headers["ETag"] != first.headers["ETag"]
    assert second.content != first.content
    assert media.get(url).content == second.content


def test_faults_of_media_can_be_narrowed_by_kind(sandbox: Sandbox, media: httpx.Client) -> None:
    still, clip = output_url(sandbox, **IMAGE), output_url(sandbox, **VIDEO)
    sandbox.fault("media-404", kind="video")
    assert [media.get(url).status_code for url in (still, clip, clip)] == [200, 404, 200]


def boxes(content: bytes) -> list[tuple[bytes, int]]:
    found, position = [], 0
    while position < len(content):
        size, name = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(content[position + 8 : position + 16], "big")
        found.append((name, size))
        position += size
    assert position == len(content)
    return found


def test_a_huge_file_is_a_valid_clip_of_exactly_that_size(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-huge", size_bytes=5_000_000)
    content = media.get(url).content
    assert len(content) == 5_000_000
    names = [name for name, _ in boxes(content)]
    assert names[:2] == [b"ftyp", b"moov"]
    assert (names[-1], b"mdat" in names) == (b"free", True)
    assert len(frames(content)) == 5
    part = media.get(url, headers={"Range": "bytes=1000-2000000"})
    assert part.content == content[1000:2_000_001]


def test_a_3_gigabyte_file_starts_and_resumes_at_once(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-huge")
    with media.stream("GET", url) as answer:
        assert answer.headers["Content-Length"] == "3000000000"
        assert next(answer.iter_raw(1024))[4:8] == b"ftyp"
    tail = media.get(url, headers={"Range": "bytes=2999999990-"})
    assert (tail.status_code, tail.content) == (206, bytes(10))


def test_nothing_is_made_for_a_client_that_left(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-huge", size_bytes=3_000_000_000_000)
    with media.stream("GET", url) as answer:
        next(answer.iter_raw(1024))
    assert media.head(url).status_code == 200
    busy = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - busy < 0.05


def test_every_video_can_be_given_one_size() -> None:
    with Sandbox(speed=0, media_bytes=300_000) as sandbox:
        assert len(httpx.get(output_url(sandbox, **VIDEO)).content) == 300_000
        assert len(httpx.get(output_url(sandbox, **IMAGE)).content) != 300_000
    with pytest.raises(ValueError, match="media_bytes is at least"):
        Sandbox(media_bytes=1000)


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
