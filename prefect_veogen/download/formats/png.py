"""PNG and APNG: a signature, then chunks of length, name, data and checksum, up to IEND."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from prefect_veogen.download.formats.stream import NotMedia

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream


def read_png(stream: Stream) -> Reading[None]:
    """Read to the end of a PNG."""
    stream.recognise("image/png", ".png", "PNG")
    yield from stream.skip(8)
    name, has_pixels = b"", False
    while name != b"IEND":
        length = yield from stream.number(4)
        name = yield from stream.exactly(4)
        yield from _check_data(stream, name, length)
        has_pixels = has_pixels or name == b"IDAT"
        if name == b"caBX":
            stream.content_credentials = "c2pa"
    if not has_pixels:
        raise NotMedia("a PNG without a picture in it")


def _check_data(stream: Stream, name: bytes, length: int) -> Reading[None]:
    checksum = zlib.crc32(name)
    while length:
        piece = yield from stream.some(length)
        checksum = zlib.crc32(piece, checksum)
        length -= len(piece)
    if (yield from stream.number(4)) != checksum:
        stream.damaged(f"checksum of {name.decode('latin-1')}")
