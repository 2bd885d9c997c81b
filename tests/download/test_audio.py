"""Audio is media only for who asks for it, known by its first bytes however they arrive."""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast

import av
import pytest

from prefect_veogen.download.formats import Inspector, NotMedia

SOUNDS = {
    "mp3": ("libmp3lame", "fltp", "audio/mpeg", ".mp3"),
    "adts": ("aac", "fltp", "audio/aac", ".aac"),
    "ipod": ("aac", "fltp", "audio/mp4", ".m4a"),
    "wav": ("pcm_s16le", "s16", "audio/wav", ".wav"),
    "flac": ("flac", "s16", "audio/flac", ".flac"),
    "ogg": ("libopus", "fltp", "audio/ogg", ".ogg"),
    "aiff": ("pcm_s16be", "s16", "audio/aiff", ".aiff"),
}


def sound(name: str, **options: str) -> bytes:
    codec, form, *_ = SOUNDS[name]
    samples = 1024 if codec == "aac" else 960
    with NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=name, options=options) as container:
            stream = cast("av.AudioStream", container.add_stream(codec, rate=48000, layout="mono"))
            for start in range(0, 10 * samples, samples):
                frame = av.AudioFrame(format=form, layout="mono", samples=samples)
                frame.sample_rate, frame.pts = 48000, start
                frame.planes[0].update(bytes(frame.planes[0].buffer_size))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def inspected(content: bytes, piece: int, *, audio: bool) -> Inspector:
    inspector = Inspector(None, audio=audio)
    for start in range(0, len(content), piece):
        inspector.feed(content[start : start + piece])
    inspector.finish()
    return inspector


@pytest.mark.parametrize("piece", [1, 100_000])
@pytest.mark.parametrize("name", SOUNDS)
def test_a_real_sound_is_recognised(name: str, piece: int) -> None:
    found = inspected(sound(name), piece, audio=True)
    assert (found.content_type, found.extension) == SOUNDS[name][2:]


def test_an_mp3_needs_no_tag() -> None:
    content = sound("mp3", id3v2_version="0")
    assert not content.startswith(b"ID3")
    assert inspected(content, 100, audio=True).content_type == "audio/mpeg"


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_is_not_what_is_downloaded(name: str) -> None:
    with pytest.raises(NotMedia):
        inspected(sound(name), 100_000, audio=False)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0", b"\xff\xfe<\0h\0t\0", b"RIFF\0\0\0\0WEBP", b"ID", b"\xff"])
def test_what_only_resembles_a_sound_is_none(content: bytes) -> None:
    with pytest.raises(NotMedia):
        inspected(content, 100, audio=True)
