"""The pictures in an AVIF or HEIC file: where the index of its items points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.download.formats.box import next_box

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream

_IN_THIS_FILE = 0


def read_items(stream: Stream, end: int) -> Reading[int]:
    """Read a `meta` box, and return how long the file has to be for all its items."""
    found = 0
    yield from stream.skip(4)
    while (box := (yield from next_box(stream, end))) is not None:
        if box.name == b"iloc":
            found = max(found, (yield from _read_locations(stream)))
        yield from stream.skip(box.end - stream.position)
    return found


def _read_locations(stream: Stream) -> Reading[int]:
    version = (yield from stream.number(4)) >> 24
    widths = yield from stream.number(2)
    offset, length, base, index = (widths >> shift & 15 for shift in (12, 8, 4, 0))
    if version > 2 or not {offset, length, base} <= {0, 4, 8}:
        stream.damaged("index of its items")
    needed = 0
    for _ in range((yield from stream.number(2 if version < 2 else 4))):
        yield from stream.skip(2 if version < 2 else 4)
        method = 0 if version == 0 else (yield from stream.number(2)) & 15
        source = yield from stream.number(2)
        begin = yield from stream.number(base)
        for _ in range((yield from stream.number(2))):
            yield from stream.skip(index if version else 0)
            place = begin + (yield from stream.number(offset))
            # A length of zero means: to the end of the file.
            size = yield from stream.number(length)
            if method == source == _IN_THIS_FILE:
                needed = max(needed, place + size)
    return needed
