"""Audio, recognised by its beginning alone: it is only ever an input, and what follows is the service's to judge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream

_BEGINNINGS = (
    (re.compile(rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]"), ("audio/mpeg", ".mp3", "MP3 file")),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), ("audio/aac", ".aac", "AAC file")),
    (re.compile(rb"RIFF....WAVE", re.DOTALL), ("audio/wav", ".wav", "WAV file")),
    (re.compile(rb"fLaC"), ("audio/flac", ".flac", "FLAC file")),
    (re.compile(rb"OggS"), ("audio/ogg", ".ogg", "Ogg file")),
    (re.compile(rb"FORM....AIF[FC]", re.DOTALL), ("audio/aiff", ".aiff", "AIFF file")),
    (re.compile(rb"....ftypM4[AB] ", re.DOTALL), ("audio/mp4", ".m4a", "M4A file")),
)


def begins_audio(head: bytes) -> bool:
    """Tell whether a file that begins so is audio."""
    return any(beginning.match(head) for beginning, _ in _BEGINNINGS)


def read_audio(stream: Stream) -> Reading[None]:
    """Read to the end of a file that begins as audio."""
    head = yield from stream.peek(16)
    stream.recognise(*next(form for beginning, form in _BEGINNINGS if beginning.match(head)))
    yield from stream.rest()
