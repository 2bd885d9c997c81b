"""The judge of media: real files pass however they are cut into chunks, anything else is refused in plain words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_veogen.download.formats import Inspector, NotMedia
from prefect_veogen.models import Kind
from tests.support.formats import PICTURES, REAL, clip, real, saved, signed

FILES = Path(__file__).parent / "media_files"

TAILS = {
    "a label": b'\0\0AIGC{"Label":"1"}',
    "a page": b"<p>Sorry, something went wrong.</p>",
    "a line break": b"\n",
    "five zeros": bytes(5),
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a vendor's trailer": b"\x01\x0a\x0e\0\0\0Image_UTC_Data1700000000000SEFHk\0\0\0SEFT",
}


def sound(name: str) -> bytes:
    """Return a file with a sound track only."""
    codec, form = ("pcm_s16le", "s16") if name == "mov" else ("libopus", "fltp")
    with NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=name) as container:
            stream = cast("av.AudioStream", container.add_stream(codec, rate=48000, layout="mono"))
            for start in range(0, 4800, 960):
                frame = av.AudioFrame(format=form, layout="mono", samples=960)
                frame.sample_rate, frame.pts = 48000, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def kind_of(name: str) -> Kind:
    return Kind.IMAGE if name in PICTURES else Kind.VIDEO


def verdict(content: bytes, kind: Kind | None = None, cuts: list[int] | None = None) -> str:
    """Return the content type, or why it is refused."""
    try:
        return inspected(content, kind, cuts).content_type
    except NotMedia as problem:
        return str(problem)


def inspected(content: bytes, kind: Kind | None = None, cuts: list[int] | None = None) -> Inspector:
    inspector = Inspector(kind)
    for start, stop in pairwise([0, *sorted(cut % (len(content) + 1) for cut in cuts or ()), len(content)]):
        inspector.feed(content[start:stop])
    inspector.finish()
    return inspector


def accepted_lengths(content: bytes) -> list[int]:
    """Return at which lengths a file that is cut off would pass."""
    return [length for length in range(len(content)) if "/" in verdict(content[:length]).partition(" ")[0]]


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


def test_a_word_further_down_does_not_change_the_type() -> None:
    content = real("matroska") + b"\xec\x84webm"
    assert verdict(content) == verdict(content, None, list(range(len(content)))) == "video/x-matroska"


AVIF = b"\0\0\0\x10ftypavif\0\0\0\0\0\0\1\0meta\0\0\0\0\0\0\0\x80iloc"
FILM = b"\0\0\0\x10ftypmp42\0\0\0\0\0\0\1\0moov\0\0\0\xf8trak"
BEGINNINGS = [b"", b"\x89PNG\r\n\x1a\n", b"\x1aE\xdf\xa3", b"\x1aE\xdf\xa3\x80\x18\x53\x80\x67\xff", b"\xff\xd8\xff"]
BEGINNINGS += [b"\0\0\0\x18ftypmp42", AVIF, FILM, b"GIF89a", b"RIFF\0\1\0\0WEBP", b"\0\0\0\x08wide"]


@given(st.binary(max_size=300), st.sampled_from(BEGINNINGS))
@settings(max_examples=300, deadline=None)
def test_nothing_but_a_verdict_comes_of_any_bytes(content: bytes, beginning: bytes) -> None:
    whole = beginning + content
    assert verdict(whole, None, [3, 9, 17, 100]) == verdict(whole) == verdict(whole, None, list(range(len(whole))))


WHOLE: dict[str, Callable[[], bytes]] = {
    **{name: partial(real, name) for name in REAL if name != "webm"},
    "faststart mp4": lambda: clip("mp4", movflags="faststart"),
    "faststart mov": lambda: clip("mov", movflags="faststart"),
    "progressive jpeg": lambda: saved("jpeg", progressive=True),
    "cmyk jpeg": lambda: saved("jpeg", mode="CMYK"),
    "jpeg with restarts": lambda: saved("jpeg", restart_marker_blocks=2),
    "jpeg with a thumbnail": lambda: saved("jpeg", exif=b"Exif\0\0" + saved("jpeg", size=8)),
    "grey jpeg": lambda: saved("jpeg", mode="L", quality=5),
    "animated png": lambda: saved("png", animated=True),
    "animated gif": lambda: saved("gif", animated=True),
    "animated webp": lambda: saved("webp", animated=True, lossless=True),
    "transparent webp": lambda: saved("webp", mode="RGBA", exif=b"Exif\0\0II*\0"),
    "animated avif": lambda: saved("avif", animated=True),
    "transparent avif": lambda: saved("avif", mode="RGBA"),
    "avif without lengths": (FILES / "avif-open-ended-whole.avif").read_bytes,
    "mp4 without lengths": lambda: open_ended(clip("mp4", movflags="faststart")),
}


@cache
def whole(name: str) -> bytes:
    return WHOLE[name]()


def open_ended(content: bytes) -> bytes:
    """Return a clip whose last box says that it runs to the end of the file."""
    place = content.rindex(b"mdat") - 4
    return content[:place] + bytes(4) + content[place + 4 :]


@given(
    st.sampled_from(sorted(WHOLE)),
    st.sampled_from([b"", *TAILS.values()]),
    st.integers(0),
    st.integers(0, 255),
    st.lists(st.integers(0), max_size=6),
)
@settings(max_examples=500, deadline=None)
def test_no_cut_into_chunks_changes_the_verdict(
    name: str, behind: bytes, place: int, change: int, cuts: list[int]
) -> None:
    content = bytearray(whole(name))
    content[place % len(content)] ^= change
    found = [findings(bytes(content) + behind, chunks) for chunks in (cuts, None, list(range(len(content))))]
    assert found[0] == found[1] == found[2]


def findings(content: bytes, cuts: list[int] | None) -> tuple[object, ...]:
    """Return all that is found out about a file."""
    inspector = Inspector(None)
    problem = None
    try:
        inspector = inspected(content, None, cuts)
    except NotMedia as error:
        problem = str(error)
    return problem, inspector.content_type, inspector.bytes_behind_end, inspector.content_credentials


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_passes_and_one_cut_off_anywhere_is_refused(name: str) -> None:
    content = whole(name)
    assert verdict(content) in REAL.values()
    assert inspected(content).bytes_behind_end == 0
    assert accepted_lengths(content) == []


@pytest.mark.parametrize("options", [{"movflags": "frag_keyframe+empty_moov"}, {"movflags": "frag_every_frame+dash"}])
def test_a_fragmented_clip_is_refused_when_it_is_cut_inside_a_fragment(options: dict[str, str]) -> None:
    content = clip("mp4", **options)
    boundaries = {
        place for place in range(len(content)) if content[place + 4 : place + 8] in (b"moof", b"mfra", b"sidx")
    }
    # Between two fragments a cut can't be distinguished from an end, nor the first bytes of a length from a tail.
    assert {
        length for length in accepted_lengths(content) if not boundaries & set(range(length - 4, length + 1))
    } == set()
    assert boundaries


def test_a_live_clip_is_refused_when_it_is_cut_inside_an_element() -> None:
    content = clip("webm", live="1")
    assert verdict(content[:-1]) == "a truncated Matroska or WebM file"
    assert 0 < len(accepted_lengths(content)) < 10, "between elements a cut can't be distinguished from an end"


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", [name for name in WHOLE if "without lengths" not in name])
def test_bytes_behind_the_end_are_counted_and_hide_no_truncation(name: str, tail: str) -> None:
    content, behind = whole(name), TAILS[tail]
    inspector = inspected(content + behind, None, [len(content) - 3, len(content) + 1, len(content) + 9])
    assert (inspector.content_type, inspector.bytes_behind_end) == (verdict(content), len(behind))
    if len(behind) < 100:  # more could fill what is missing of a length that was stated
        assert verdict(content[: -len(behind) - 5] + behind) not in REAL.values()


@pytest.mark.parametrize("name", [name for name in WHOLE if "without lengths" not in name])
def test_an_appended_film_is_a_tail_whole_or_not(name: str) -> None:
    content, film = whole(name), real("mp4")
    for behind in (film, film[:-100], film[: len(film) // 2]):
        assert inspected(content + behind).bytes_behind_end == len(behind)


@pytest.mark.parametrize("path", sorted(FILES.glob("*-behind.*")), ids=lambda path: path.name)
def test_a_made_file_with_something_behind_it_passes(path: Path) -> None:
    kind = Kind.VIDEO if path.suffix == ".mp4" else Kind.IMAGE
    assert inspected(path.read_bytes(), kind).bytes_behind_end > 0


@pytest.mark.parametrize("path", sorted(FILES.glob("*-cut*")), ids=lambda path: path.name)
def test_a_made_file_that_was_cut_is_called_truncated(path: Path) -> None:
    assert verdict(path.read_bytes()).startswith("a truncated")


def test_a_film_appended_to_a_film_is_a_tail() -> None:
    first, second = real("mp4"), clip("mp4", movflags="faststart")
    assert inspected(first + second).bytes_behind_end == len(second)


def test_what_follows_the_last_known_box_is_truncated_when_it_is_a_known_one() -> None:
    free = (100).to_bytes(4, "big") + b"free" + bytes(92)
    assert inspected(real("mp4") + free).bytes_behind_end == 0
    assert verdict(real("mp4") + free[:-1]) == verdict(real("mp4") + free[:7]) == "a truncated MP4 file"


def test_a_second_picture_in_a_jpeg_is_a_tail() -> None:
    other = saved("jpeg", size=8)
    assert inspected(real("jpeg") + other).bytes_behind_end == len(other)


def test_a_jpeg_that_begins_anew_before_its_end_is_damaged() -> None:
    assert verdict(real("jpeg")[:-2] + real("jpeg")).startswith("a damaged JPEG")


def test_a_thumbnail_alone_makes_no_picture() -> None:
    thumbnail = saved("jpeg", size=8)
    app1 = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    assert verdict(b"\xff\xd8" + app1) == "a truncated JPEG"
    assert verdict(b"\xff\xd8" + app1 + b"\xff\xd9") == "a JPEG without a picture in it"


# ---------------------------------------------------------------- what a file is


def branded(content: bytes, first: bytes, *others: bytes) -> bytes:
    """Return ISO base media with other brands, in a box of another length."""
    size = int.from_bytes(content[:4], "big")
    brands = first + bytes(4) + b"".join(others)
    rest = bytearray(content[size:])
    grown = 8 + len(brands) - size
    if (iloc := rest.find(b"iloc")) > 0:  # the index counts from the file's beginning: one item of the usual widths
        place = iloc + 18
        at = int.from_bytes(rest[place : place + 4], "big") + grown
        rest[place : place + 4] = at.to_bytes(4, "big")
    return (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + rest


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        ((b"avif",), "image/avif"),
        ((b"msf1", b"miaf", b"avif"), "image/avif"),
        ((b"mif2", b"mif1", b"avis"), "image/avif"),
        ((b"miaf", *[b"abcd"] * 40, b"avif"), "image/avif"),
        ((b"mif1", b"mif1", b"heic"), "image/heic"),
        ((b"msf1", b"hevc"), "image/heic"),
        ((b"mif2", b"miaf", b"heis"), "image/heic"),
        ((b"heim", b"mif1"), "image/heic"),
        ((b"heic", b"mif1", b"avif"), "image/heic"),
        ((b"mif1", b"miaf", b"jpeg"), "image/heif"),
    ],
)
def test_a_picture_is_known_by_all_its_brands(brands: tuple[bytes, ...], expected: str) -> None:
    content = branded(real("avif"), *brands)
    assert verdict(content, Kind.IMAGE) == verdict(content, None, list(range(0, len(content), 5))) == expected


@pytest.mark.parametrize("path", sorted(FILES.glob("avif-*")), ids=lambda path: path.name)
def test_a_made_avif_is_one_unless_it_was_cut(path: Path) -> None:
    expected = "a truncated AVIF file" if "cut" in path.name else "image/avif"
    assert verdict(path.read_bytes(), Kind.IMAGE) == expected


@pytest.mark.parametrize("first", [b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"])
def test_a_quicktime_film_needs_no_brand(first: bytes) -> None:
    content = clip("mov", movflags="faststart" if first == b"moov" else "write_colr")
    body = content[int.from_bytes(content[:4], "big") :]
    body = body[body.index(first) - 4 :] if first in (b"moov", b"mdat", b"wide") else b"\0\0\0\x08" + first + body
    assert verdict(body, Kind.VIDEO) == "video/quicktime"
    assert verdict(body[:-1], Kind.VIDEO) == "a truncated QuickTime file"


@pytest.mark.parametrize("text", [b"Get free pictures", b"Not skipped, but gone", b"The moov was not found"])
def test_a_text_is_no_film_for_a_word_in_its_place(text: bytes) -> None:
    assert verdict(text).startswith("plain text")


@pytest.mark.parametrize("name", ["mp4", "mov", "webm", "matroska"])
def test_a_sound_is_no_video(name: str) -> None:
    for kind in (Kind.VIDEO, None):
        assert verdict(sound(name), kind).endswith("file without a video track")


def test_a_made_sound_is_no_video() -> None:
    content = (FILES / "mp4-sound-only.mp4").read_bytes()
    assert verdict(content, Kind.VIDEO) == "an MP4 file without a video track"


def located(version: int, widths: tuple[int, int, int, int], place: int, length: int, method: int = 0) -> bytes:
    """Return an index of one item, split between a base and an offset where there is room for both."""
    offset, size, base, index = widths
    begin, place = (100, place - 100) if base and offset else (place, 0) if base else (0, place)
    body = bytes([version, 0, 0, 0, offset << 4 | size, base << 4 | index])
    body += (1).to_bytes(2 if version < 2 else 4, "big") + (1).to_bytes(2 if version < 2 else 4, "big")
    body += (method.to_bytes(2, "big") if version else b"") + bytes(2) + begin.to_bytes(base, "big") + b"\0\1"
    body += bytes(index if version else 0) + place.to_bytes(offset, "big") + length.to_bytes(size, "big")
    return (8 + len(body)).to_bytes(4, "big") + b"iloc" + body


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("widths", [(4, 4, 0, 0), (8, 8, 8, 0), (4, 4, 4, 4), (0, 4, 8, 0), (4, 0, 0, 0)])
def test_what_an_index_points_to_has_to_be_there(version: int, widths: tuple[int, int, int, int]) -> None:
    def avif(length: int) -> str:
        index = located(version, widths, 400, length if widths[1] else 0)
        meta = (12 + len(index)).to_bytes(4, "big") + b"meta" + bytes(4) + index
        start = b"\0\0\0\x10ftypavif\0\0\0\0" + meta + bytes(4) + b"mdat"
        return verdict(start + bytes(size - len(start)))

    size = 500
    assert avif(100) == "image/avif"
    assert avif(101) == ("a truncated AVIF file" if widths[1] else "image/avif")
    size = 399
    assert avif(0) == "a truncated AVIF file"


def test_an_index_into_itself_points_nowhere_else() -> None:
    index = located(1, (4, 4, 0, 0), 400, 400, method=1)
    meta = (12 + len(index)).to_bytes(4, "big") + b"meta" + bytes(4) + index
    assert verdict(b"\0\0\0\x10ftypavif\0\0\0\0" + meta) == "image/avif"


def test_an_index_that_makes_no_sense_is_damage() -> None:
    index = located(0, (5, 4, 0, 0), 0, 0)
    meta = (12 + len(index)).to_bytes(4, "big") + b"meta" + bytes(4) + index
    assert verdict(b"\0\0\0\x10ftypavif\0\0\0\0" + meta).startswith("a damaged AVIF file")


# ---------------------------------------------------------------- content credentials


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "gif", "mp4", "mov", "avif"])
def test_content_credentials_are_noticed(name: str) -> None:
    inspector = inspected(signed(name), None, list(range(0, 3000, 7)))
    assert (inspector.content_type, inspector.content_credentials, inspector.bytes_behind_end) == (
        REAL[name],
        "c2pa",
        0,
    )
    assert inspected(real(name)).content_credentials is None
    assert accepted_lengths(signed(name)) in ([], [len(real(name)), *range(len(real(name)) + 1, len(real(name)) + 5)])


# ---------------------------------------------------------------- damage


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
        (b"\x1f\x8b\x08\0" * 30, "bytes of an unknown media format (1f 8b 08 00"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xaeB`\x82", "a PNG without a picture in it"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "bytes of an unknown media format"),
    ],
)
def test_what_is_no_media_is_named_in_plain_words(content: bytes, words: str) -> None:
    assert verdict(content, Kind.VIDEO if b"PNG" not in content else None).startswith(words)
    assert verdict(content, None, list(range(len(content)))).startswith(words)


@pytest.mark.parametrize("name", REAL)
def test_the_wrong_kind_is_refused(name: str) -> None:
    due, words = (Kind.VIDEO, "a video is expected") if name in PICTURES else (Kind.IMAGE, "an image is expected")
    assert verdict(real(name), due) == f"{REAL[name]}, where {words}"


@pytest.mark.parametrize("missing", ["moov", "mdat"])
def test_a_clip_without_what_a_player_needs_is_refused(missing: str) -> None:
    assert verdict(real("mp4").replace(missing.encode(), b"free")) == (
        f"an MP4 file without its {missing}, so nothing can play it"
    )


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_the_memory_needed_does_not_grow_with_the_file(name: str, place: float) -> None:
    content = whole(name)
    content = content[: int(len(content) * place)]
    inspector, most = Inspector(None), 0
    for piece in (content, *[bytes(4096)] * 50, *[b"\xff" * 4096] * 50, *[b"\1free\0\0\0\0" * 400] * 50):
        with suppress(NotMedia):
            inspector.feed(piece)
            most = max(most, inspector._stream.held)
    assert most < len(content) + 80_000
