"""The media host serves files, ranges and faults."""

from __future__ import annotations

import io

import av
import httpx
import pytest
from PIL import Image

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE, VIDEO, finish, output_url


def picture(content: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(content))
    opened.load()
    return opened


def frames(content: bytes) -> list[Image.Image]:
    with av.open(io.BytesIO(content), "r") as clip:
        return [frame.to_image() for frame in clip.decode(video=0)]


def test_a_range_request_gets_exactly_those_bytes(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url)
    size = len(whole.content)
    assert whole.headers["Accept-Ranges"] == "bytes"
    for requested, part in (
        ("bytes=0-99", slice(0, 100)),
        ("bytes=100-", slice(100, size)),
        ("bytes=-50", slice(size - 50, size)),
        (f"bytes=100-{size * 2}", slice(100, size)),
    ):
        response = media.get(url, headers={"Range": requested})
        start, stop, _ = part.indices(size)
        assert (response.status_code, response.content) == (206, whole.content[part]), requested
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert response.headers["ETag"] == whole.headers["ETag"]


def test_an_impossible_range_is_416_and_an_odd_one_is_ignored(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    size = len(media.get(url).content)
    for requested in (f"bytes={size}-", "bytes=-0"):
        response = media.get(url, headers={"Range": requested})
        assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{size}")
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
    output = finish(sandbox, **VIDEO)["output"]
    response = media.get(output["download_url"])
    assert response.headers["Content-Disposition"].startswith('attachment; filename="')
    assert response.headers["Content-Disposition"].endswith('.mp4"')
    assert "Content-Disposition" not in media.get(output["url"]).headers


def test_a_silently_truncated_file_looks_complete(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url).content
    sandbox.fault("media-truncated-silently")
    response = media.get(url)
    assert response.headers["Content-Length"] == str(len(response.content)) == str(len(whole) // 2)
    assert whole.startswith(response.content)


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
def test_something_else_may_be_served_in_place_of_the_file(
    sandbox: Sandbox, media: httpx.Client, name: str, content_type: str, start: bytes
) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault(name)
    response = media.get(url)
    assert (response.status_code, response.headers["Content-Type"]) == (200, content_type)
    assert response.content.startswith(start)
    assert bool(response.content) == bool(start)
    assert media.get(url).content[4:8] == b"ftyp"


def test_a_clip_may_be_served_in_place_of_a_picture(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **IMAGE)
    sandbox.fault("media-wrong-type")
    response = media.get(url)
    assert (response.headers["Content-Type"], response.content[4:8]) == ("image/png", b"ftyp")


def test_a_redirect_leads_to_the_file(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url).content
    sandbox.fault("media-redirect", times=None)
    assert media.get(url).status_code == 302
    followed = media.get(url, follow_redirects=True)
    assert followed.content == whole
    assert str(followed.url).startswith(f"{sandbox.media_url}/storage/moved/")


def test_a_redirect_may_loop_or_lead_to_a_private_address(sandbox: Sandbox, media: httpx.Client) -> None:
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
    response = media.get(url, headers={"Range": "bytes=10-"})
    assert (response.status_code, response.content) == (200, whole.content)
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
    with media.stream("GET", url) as response:
        assert response.headers["Content-Length"] == "3000000000"
        assert next(response.iter_raw(1024))[4:8] == b"ftyp"
    tail = media.get(url, headers={"Range": "bytes=2999999990-"})
    assert (tail.status_code, tail.content) == (206, bytes(10))
