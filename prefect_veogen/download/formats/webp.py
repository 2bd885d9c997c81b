"""WebP: one RIFF chunk that contains all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.download.formats.stream import NotMedia

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream

_PICTURES = (b"VP8 ", b"VP8L", b"ANMF")


def read_webp(stream: Stream) -> Reading[None]:
    """Read to the end of a WebP."""
    stream.recognise("image/webp", ".webp", "WebP")
    head = yield from stream.exactly(12)
    end = 8 + int.from_bytes(head[4:8], "little")
    has_picture = False
    while end - stream.position >= 8:
        header = yield from stream.exactly(8)
        length = int.from_bytes(header[4:], "little")
        if length > end - stream.position:
            stream.damaged(f"length of {header[:4].decode('latin-1')}")
        # An odd length is followed by a byte of padding, which some writers forget at the end.
        yield from stream.skip(min(length + length % 2, end - stream.position))
        has_picture = has_picture or header[:4] in _PICTURES
        if header[:4] == b"C2PA":
            stream.content_credentials = "c2pa"
    if not has_picture:
        raise NotMedia("a WebP without a picture in it")
    yield from stream.skip(end - stream.position)
    yield from stream.skip_up_to(end % 2)
