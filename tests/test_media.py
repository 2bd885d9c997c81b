"""The judge of media: real files pass however they are cut, anything else is refused in plain words."""

from __future__ import annotations

import io
import random
import re
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prefect_veogen.formats import Inspector, NotMedia
from prefect_veogen.models import Kind

PICTURES = {"png": "image/png", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp", "avif": "image/avif"}
CLIPS = {"mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm", "matroska": "video/x-matroska"}
REAL = {**PICTURES, **CLIPS}


@cache
def real(name: str) -> bytes:
    """Return a small real file, made by the usual library."""
    return picture(name) if name in PICTURES else clip(name)


def picture(name: str) -> bytes:
    noise = Image.frombytes("RGB", (24, 16), random.Random(1).randbytes(24 * 16 * 3))
    file = io.BytesIO()
    noise.save(file, name)
    return file.getvalue()


def clip(name: str, **options: str) -> bytes:
    codec = "libvpx" if name == "webm" else "mpeg4"
    with NamedTemporaryFile() as file:  # one with a name, because an index is moved by opening the file again
        with av.open(file.name, "w", format=name, options=options) as container:
            stream = cast("av.VideoStream", container.add_stream(codec, rate=5))
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
            container.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def kind_of(name: str) -> Kind:
    return Kind.IMAGE if name in PICTURES else Kind.VIDEO


def verdict(content: bytes, kind: Kind | None = None, cuts: list[int] | None = None) -> str:
    """Return the content type, or why it is refused."""
    inspector = Inspector(kind)
    try:
        for start, stop in pairwise([0, *sorted(cut % (len(content) + 1) for cut in cuts or ()), len(content)]):
            inspector.feed(content[start:stop])
        inspector.finish()
    except NotMedia as problem:
        return str(problem)
    return inspector.content_type


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_is_recognised(name: str) -> None:
    assert verdict(real(name), kind_of(name)) == REAL[name]
    assert verdict(real(name)) == REAL[name]


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
def test_a_clip_is_recognised_wherever_its_index_is(options: dict[str, str]) -> None:
    assert verdict(clip("mp4", **options), Kind.VIDEO) == "video/mp4"


def test_a_clip_of_unknown_length_is_recognised() -> None:
    assert verdict(clip("webm", live="1"), Kind.VIDEO) == "video/webm"


def test_a_clip_with_a_large_box_of_64_bits_is_recognised() -> None:
    padded = real("mp4") + b"\0\0\0\1free" + (116).to_bytes(8, "big") + bytes(100)
    assert verdict(padded, Kind.VIDEO) == "video/mp4"
    assert "truncated" in verdict(padded[:-1], Kind.VIDEO)


@given(st.sampled_from(sorted(REAL)), st.integers(0), st.integers(1, 10**6), st.lists(st.integers(0), max_size=6))
@settings(max_examples=300, deadline=None)
def test_no_cut_into_chunks_changes_the_verdict(name: str, place: int, change: int, cuts: list[int]) -> None:
    content = bytearray(real(name))
    content[place % len(content)] ^= change % 256
    assert verdict(bytes(content), None, cuts) == verdict(bytes(content))


def test_a_word_further_down_does_not_change_the_type() -> None:
    content = real("matroska") + b"\xec\x84webm"
    assert verdict(content) == verdict(content, None, list(range(len(content)))) == "video/x-matroska"


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\x1aE\xdf\xa3", b"\0\0\0\x18ftypmp42"]))
@settings(max_examples=300, deadline=None)
def test_nothing_but_a_verdict_comes_of_any_bytes(content: bytes, beginning: bytes) -> None:
    whole = beginning + content
    assert verdict(whole, None, [3, 9, 17, 100]) == verdict(whole) == verdict(whole, None, list(range(len(whole))))


@pytest.mark.parametrize("name", ["png", "webp", "mp4", "mov", "matroska", "jpeg", "gif"])
def test_a_file_cut_off_anywhere_is_refused(name: str) -> None:
    content = real(name)
    accepted = [length for length in range(len(content)) if verdict(content[:length]) in REAL.values()]
    assert accepted == []


@pytest.mark.parametrize("name", ["png", "gif", "jpeg", "webp", "mp4"])
def test_a_file_with_something_behind_its_end_is_refused(name: str) -> None:
    assert re.search("behind it|truncated", verdict(real(name) + b"<p>Sorry, something went wrong.</p>"))


@pytest.mark.parametrize("name", ["png", "gif", "jpeg"])
def test_padding_behind_the_end_says_nothing(name: str) -> None:
    assert verdict(real(name) + b"\r\n\0\0") == REAL[name]


@pytest.mark.parametrize("name", ["mp4", "mov"])
def test_a_clip_that_begins_with_its_index_is_refused_when_cut_off_anywhere(name: str) -> None:
    content = clip(name, movflags="faststart")
    assert [length for length in range(len(content)) if verdict(content[:length]) in REAL.values()] == []


def test_a_damaged_byte_of_a_png_is_noticed_wherever_it_is() -> None:
    content = real("png")
    for place in range(len(content)):
        damaged = content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
        assert verdict(damaged) not in REAL.values(), place


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "nothing at all"),
        (b"<!DOCTYPE html><title>Sign in</title>" + b" " * 100, "an HTML page"),
        (b"\n\n  <html lang='en'>", "an HTML page"),
        (b"\xef\xbb\xbf<!doctype html>", "an HTML page"),
        (b'{"error": "File is not available."}', "a JSON document"),
        (b"[]", "a JSON document"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b"<Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b"Not found", "plain text ('Not found' …)"),
        (b"\x1f\x8b\x08\0" * 30, "bytes of no known media format (1f 8b 08 00"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xaeB`\x82", "a PNG without a picture in it"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "bytes of no known media format"),
    ],
)
def test_what_is_no_media_is_named_in_plain_words(content: bytes, words: str) -> None:
    assert verdict(content, Kind.VIDEO if b"PNG" not in content else None).startswith(words)
    assert verdict(content, None, list(range(len(content)))).startswith(words)


@pytest.mark.parametrize("name", REAL)
def test_the_wrong_kind_is_refused(name: str) -> None:
    due, words = (Kind.VIDEO, "a video is due") if name in PICTURES else (Kind.IMAGE, "an image is due")
    assert verdict(real(name), due) == f"{REAL[name]}, where {words}"


@pytest.mark.parametrize("missing", [b"moov", b"mdat"])
def test_a_clip_without_what_a_player_needs_is_refused(missing: bytes) -> None:
    assert verdict(real("mp4").replace(missing, b"free")) == (
        f"a MP4 file without its {missing.decode()}, so nothing can play it"
    )


@pytest.mark.parametrize("name", REAL)
def test_the_memory_needed_does_not_grow_with_the_file(name: str) -> None:
    inspector = Inspector(None)
    inspector.feed(real(name)[:-12])
    with suppress(NotMedia):
        for _ in range(100):
            inspector.feed(bytes(4096))
    assert inspector.size > 4096
    held = vars(inspector._format) | vars(inspector)
    assert sum(len(value) for value in held.values() if isinstance(value, bytes | bytearray)) < 10_000
