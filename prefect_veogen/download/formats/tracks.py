"""The tracks of an MP4 or QuickTime file: what they show, and where their indices point."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect_veogen.download.formats.box import next_box

if TYPE_CHECKING:
    from prefect_veogen.download.formats.box import Box
    from prefect_veogen.download.formats.stream import Reading, Stream

_PICTURES = {b"vide", b"pict", b"MPEG"}
# Which boxes contain relevant ones: the nesting is never deeper than this.
_HOLDS = {b"moov": {b"trak", b"cmov"}, b"trak": {b"mdia"}, b"mdia": {b"hdlr", b"minf"}, b"minf": {b"stbl"}}
_HOLDS[b"stbl"] = {b"stsc", b"stsz", b"stco", b"co64"}
_MAX_SIZES = 16 * 1024


@dataclass
class Tracks:
    """What the tracks so far show, and how long the file must be for everything they point to."""

    show_video: bool = False
    end: int = 0


@dataclass
class _Track:
    """The index of one track: samples lie in chunks, of which the last one ends the track."""

    last_chunk_at: int = 0
    samples_per_chunk: int = 0
    last_sizes: tuple[int, ...] = field(default=())

    @property
    def end(self) -> int:
        last = self.last_sizes[-self.samples_per_chunk :] if self.samples_per_chunk else ()
        return self.last_chunk_at + sum(last)


def read_film(stream: Stream, end: int, tracks: Tracks) -> Reading[None]:
    """Read a `moov` box."""
    yield from _read_boxes_of(stream, b"moov", end, tracks, _Track())


def _read_boxes_of(stream: Stream, parent: bytes, end: int, tracks: Tracks, track: _Track) -> Reading[None]:
    while (box := (yield from next_box(stream, end))) is not None:
        if box.name in _HOLDS[parent]:
            if box.name == b"trak":
                track = _Track()
            if box.name in _HOLDS:
                yield from _read_boxes_of(stream, box.name, box.end, tracks, track)
            else:
                yield from _read_leaf(stream, box, tracks, track)
            tracks.end = max(tracks.end, track.end)
        yield from stream.skip(box.end - stream.position)


def _read_leaf(stream: Stream, box: Box, tracks: Tracks, track: _Track) -> Reading[None]:
    match box.name:
        case b"hdlr":
            start = yield from stream.peek(min(12, box.end - box.begin))
            tracks.show_video = tracks.show_video or start[8:12] in _PICTURES
        case b"cmov":
            tracks.show_video = True  # compressed: assume that it does
        case b"stsc":
            last = yield from _last_rows(stream, box, 12)
            track.samples_per_chunk = struct.unpack(">3I", last)[1] if last else 0
        case b"stsz":
            track.last_sizes = yield from _last_sizes(stream, box)
        case b"stco" | b"co64":
            width = 4 if box.name == b"stco" else 8
            track.last_chunk_at = int.from_bytes((yield from _last_rows(stream, box, width)), "big")


def _last_sizes(stream: Stream, box: Box) -> Reading[tuple[int, ...]]:
    if box.end - box.begin < 12 or int.from_bytes((yield from stream.peek(8))[4:]):
        # All samples have the size stated here, which is not in bytes for some sound formats.
        return ()
    yield from stream.skip(4)
    sizes = yield from _last_rows(stream, box, 4, _MAX_SIZES)
    return struct.unpack(f">{len(sizes) // 4}I", sizes)


def _last_rows(stream: Stream, box: Box, width: int, max_rows: int = 1) -> Reading[bytes]:
    """Return the last rows of a table with rows of `width` bytes."""
    if box.end - stream.position < 8:
        return b""
    yield from stream.skip(4)
    stated = yield from stream.number(4)
    rows = min(stated, (box.end - stream.position) // width)
    read = min(rows, max_rows)
    yield from stream.skip((rows - read) * width)
    return (yield from stream.exactly(read * width))
