"""WebM and Matroska: elements of id and length; a segment written live has no length and ends where its elements do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_veogen.download.formats.stream import NotMedia

if TYPE_CHECKING:
    from prefect_veogen.download.formats.stream import Reading, Stream

_HEADER, _DOC_TYPE, _SEGMENT = 0x1A45DFA3, 0x4282, 0x18538067
_TRACKS, _TRACK, _TRACK_TYPE, _CLUSTER = 0x1654AE6B, 0xAE, 0x83, 0x1F43B675
_VOID, _CHECKSUM = 0xEC, 0xBF
_VIDEO = 1
# What a segment holds: seek head, info, cues, attachments, chapters, tags; and a cluster that has no length either.
_IN_SEGMENT = {_TRACKS, _CLUSTER, _VOID, _CHECKSUM, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770}
_IN_SEGMENT |= {0x1254C367, 0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0xAF, 0x5854}
_UNKNOWN = 1 << 63


class _Element(NamedTuple):
    id: int
    header: int
    length: int


def read_matroska(stream: Stream) -> Reading[None]:
    """Read to the end of the first segment."""
    stream.label = "Matroska or WebM file"
    yield from _read_header(stream)
    while (element := (yield from _next_element(stream))) is not None:
        yield from stream.skip(element.header)
        if element.id == _SEGMENT:
            if not (yield from _has_video(stream, stream.position + element.length)):
                raise NotMedia(f"a {stream.label} without a video track")
            return
        if element.id not in (_VOID, _CHECKSUM):
            break
        yield from stream.skip(element.length)
    stream.damaged()


def _read_header(stream: Stream) -> Reading[None]:
    header = yield from _next_element(stream)
    if header is None or header.id != _HEADER or header.length > 4096:
        stream.damaged()
    yield from stream.skip(header.header)
    end, doc_type = stream.position + header.length, b""
    while stream.position < end and (element := (yield from _next_element(stream))) is not None:
        yield from stream.skip(element.header)
        if element.id == _DOC_TYPE and element.length < 64:
            doc_type = yield from stream.exactly(element.length)
        else:
            yield from stream.skip(min(element.length, end - stream.position))
    yield from stream.skip(end - stream.position)
    is_webm = doc_type.rstrip(b"\0") == b"webm"
    stream.recognise(*(("video/webm", ".webm") if is_webm else ("video/x-matroska", ".mkv")), stream.label)


def _has_video(stream: Stream, end: int) -> Reading[bool]:
    """Read a segment, and return whether it has a video track."""
    has_video = False
    while stream.position < end:
        if end >= _UNKNOWN and not (yield from stream.peek(1)):
            break
        start = stream.position
        element = yield from _next_element(stream)
        if element is None or (end >= _UNKNOWN and element.id not in _IN_SEGMENT):
            if end >= _UNKNOWN:
                stream.tail_at = start
                yield from stream.rest()
                break
            yield from stream.skip(end - stream.position)
            break
        yield from stream.skip(element.header)
        if element.id == _TRACKS:
            has_video = (yield from _tracks_show_video(stream, min(end, stream.position + element.length))) or has_video
        elif element.length < _UNKNOWN:
            yield from stream.skip(min(element.length, end - stream.position))
        # A cluster without a length is entered: it ends where the next element of the segment begins.
    return has_video


def _tracks_show_video(stream: Stream, end: int) -> Reading[bool]:
    has_video = False
    while stream.position < end and (element := (yield from _next_element(stream))) is not None:
        yield from stream.skip(element.header)
        if element.id == _TRACK_TYPE and element.length <= 8:
            has_video = (yield from stream.number(element.length)) == _VIDEO or has_video
        elif element.id != _TRACK:  # which is entered
            yield from stream.skip(min(element.length, end - stream.position))
    if end < _UNKNOWN:
        yield from stream.skip(end - stream.position)
    return has_video


def _next_element(stream: Stream) -> Reading[_Element | None]:
    """Return the next element without consuming it; `None` if the bytes are not a valid one."""
    start = yield from stream.peek(12)
    if not start:
        stream.truncated()
    id_length = 9 - start[0].bit_length()
    if id_length > 4:
        return None
    if len(start) <= id_length:
        stream.truncated()
    length = 9 - start[id_length].bit_length()
    if length > 8:
        return None
    header = id_length + length
    if len(start) < header:
        stream.truncated()
    stated = int.from_bytes(start[id_length:header], "big") - (1 << (7 * length))
    is_unknown = stated == (1 << (7 * length)) - 1
    return _Element(int.from_bytes(start[:id_length], "big"), header, _UNKNOWN if is_unknown else stated)
