"""JPEG: segments with a length, and scans without one, which run until the next marker.

Thumbnails and whole other pictures (Exif, multi-picture) may stand inside segments, so that only walking over these by
their length finds the picture's own end. Everything after it, such as the film of a motion photo, is a tail.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_veogen.download.formats.stream import NotMedia

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream

_START, _END, _SCAN, _JUMBF = b"\xd8", b"\xd9", b"\xda", b"\xeb"
# In a scan 0xFF is followed by zero, a restart marker (D0 to D7), or in JPEG-LS by anything below 0x80.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_CREDENTIALS_WITHIN = 64


def read_jpeg(stream: Stream) -> Reading[None]:
    """Read to the end of a JPEG's first picture."""
    stream.recognise("image/jpeg", ".jpg", "JPEG")
    yield from stream.skip(2)
    has_scan = False
    while True:
        # As decoders do: bytes between segments, where there should be none, are skipped.
        marker = (yield from stream.skip_past(_MARKER, 2))[1:]
        if marker == _END:
            break
        if marker == _START:
            stream.damaged("another one begins in it")
        yield from _read_segment(stream, marker)
        has_scan = has_scan or marker == _SCAN
    if not has_scan:
        raise NotMedia("a JPEG without a picture in it")


def _read_segment(stream: Stream, marker: bytes) -> Reading[None]:
    length = yield from stream.number(2)
    if length < 2:
        stream.damaged(f"length of segment {marker.hex()}")
    if marker == _JUMBF:
        beginning = yield from stream.peek(min(length - 2, _CREDENTIALS_WITHIN))
        if beginning.startswith(b"JP") and b"jumb" in beginning and b"c2pa" in beginning:
            stream.content_credentials = "c2pa"
    yield from stream.skip(length - 2)
