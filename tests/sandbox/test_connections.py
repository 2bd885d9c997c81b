"""Connections that break off, stall, trickle or contradict their headers."""

from __future__ import annotations

import time

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import VIDEO, output_url

# Longer than a busy machine takes for what it sends, shorter than what never comes.
SHORT = httpx.Timeout(30, read=2)


def test_a_truncated_file_has_the_right_length_in_its_header_only(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    size = len(media.get(url).content)
    sandbox.fault("media-truncated", share=0.25)
    received = b""
    with pytest.raises(httpx.RemoteProtocolError), media.stream("GET", url) as response:
        assert response.headers["Content-Length"] == str(size)
        for piece in response.iter_raw():
            received += piece
    assert len(received) == size // 4
    rest = media.get(url, headers={"Range": f"bytes={len(received)}-", "If-Range": response.headers["ETag"]})
    assert received + rest.content == media.get(url).content


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
    with pytest.raises(httpx.ReadTimeout), media.stream("GET", url, timeout=SHORT) as response:
        for piece in response.iter_raw():
            received += piece
    assert len(received) == int(response.headers["Content-Length"]) // 2


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
    assert 0.2 < time.monotonic() - began < 30


def test_a_wrong_length_is_too_long_or_too_short(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    whole = media.get(url).content
    sandbox.fault("media-wrong-length", extra=10)
    with pytest.raises(httpx.RemoteProtocolError, match=f"received {len(whole)} bytes, expected {len(whole) + 10}"):
        media.get(url)
    sandbox.fault("media-wrong-length", extra=-10)
    assert media.get(url).content == whole[:-10]
    assert [record.status for record in sandbox.requests[-2:]] == [200, 200]


def test_nothing_is_produced_for_a_client_that_left(sandbox: Sandbox, media: httpx.Client) -> None:
    url = output_url(sandbox, **VIDEO)
    sandbox.fault("media-huge", size_bytes=3_000_000_000_000)
    with media.stream("GET", url) as response:
        next(response.iter_raw(1024))
    assert media.head(url).status_code == 200
    busy = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - busy < 0.25
