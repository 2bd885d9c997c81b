"""GIF: a screen, then blocks of data in pieces of at most 255 bytes, up to the trailer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.download.formats.stream import NotMedia

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream


def read_gif(stream: Stream) -> Reading[None]:
    """Read to the end of a GIF."""
    stream.recognise("image/gif", ".gif", "GIF")
    screen = yield from stream.exactly(13)
    yield from stream.skip(_colour_table_bytes(screen[10]))
    has_picture = False
    while (block := (yield from stream.exactly(1))) != b";":
        if block == b",":
            picture = yield from stream.exactly(9)
            yield from stream.skip(_colour_table_bytes(picture[8]) + 1)
            has_picture = True
        elif block == b"!":
            yield from _read_extension(stream)
        elif block == b"\0":
            continue  # some writers end a block twice
        elif block == b"G" and has_picture and (yield from stream.peek(3)) == b"IF8":
            stream.tail_at = stream.position - 1  # ... and some append another whole GIF in place of the trailer
            break
        else:
            stream.damaged()
        yield from _skip_pieces(stream)
    if not has_picture:
        raise NotMedia("a GIF without a picture in it")


def _read_extension(stream: Stream) -> Reading[None]:
    beginning = yield from stream.peek(10)
    if beginning == b"\xff\x0bC2PA_GIF":
        stream.content_credentials = "c2pa"
    yield from stream.skip(1)


def _skip_pieces(stream: Stream) -> Reading[None]:
    while length := (yield from stream.number(1)):
        yield from stream.skip(length)


def _colour_table_bytes(flags: int) -> int:
    """Return the size of the colour table that follows, in bytes."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
