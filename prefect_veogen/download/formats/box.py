"""One box of ISO base media: its length, its name, and what it holds, often other boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream

TO_THE_END = 1 << 63


class Box(NamedTuple):
    """A box's name, where what it holds begins, and where it ends."""

    name: bytes
    begin: int
    end: int


def box_of(header: bytes, start: int) -> Box | None:
    """Return the box that begins with these 16 bytes; `None` if they are not a valid header."""
    if len(header) < 8:
        return None
    size, name, length = int.from_bytes(header[:4], "big"), header[4:8], 8
    if size == 1:
        size, length = int.from_bytes(header[8:16], "big"), 16
        if len(header) < length:
            return None
    if not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
        return None
    if size == 0:
        return Box(name, start + length, TO_THE_END)
    return Box(name, start + length, start + size) if size >= length else None


def next_box(stream: Stream, end: int) -> Reading[Box | None]:
    """Enter the next box inside a box; `None` after the last one."""
    if end - stream.position < 8:
        return None
    box = box_of((yield from stream.peek(16)), stream.position)
    if box is None or box.begin > end:
        return None
    yield from stream.skip(box.begin - stream.position)
    return box._replace(end=min(box.end, end))
