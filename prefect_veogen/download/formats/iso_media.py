"""ISO base media (MP4, MOV, AVIF, HEIC): boxes of length and name, in sequence, and the indices that point into them.

A box may run to the end of the file without saying how far that is, and some files point from an index to bytes which
no box counts. So the indices are read too, and what they point to has to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.download.formats.box import TO_THE_END, box_of
from prefect_veogen.download.formats.items import read_items
from prefect_veogen.download.formats.stream import NotMedia
from prefect_veogen.download.formats.tracks import Tracks, read_film

if TYPE_CHECKING:
    from prefect_veogen.download.formats.box import Box
    from prefect_veogen.download.formats.stream import Reading, Stream

_MAX_BRANDS_BYTES = 4096
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_PICTURE = {b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"}
_QUICKTIME = b"qt  "
# QuickTime files from before there were brands may begin with any of these.
_FIRST_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
# Boxes at the top level. A box by another name, if it is incomplete, is not part of the media but a tail.
_TOP_BOXES = _FIRST_BOXES | {b"ftyp", b"styp", b"moof", b"mfra", b"meta", b"uuid", b"udta", b"sidx", b"ssix", b"prft"}
_TOP_BOXES |= {b"emsg", b"pdin", b"PICT", b"idat", b"imda", b"etyp", b"otyp"}
_C2PA = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


def begins_iso_media(head: bytes) -> bool:
    """Return whether a file begins like ISO base media."""
    return head[4:8] == b"ftyp" or (head[4:8] in _FIRST_BOXES and head[0] < 32)


def read_iso_media(stream: Stream) -> Reading[None]:
    """Read to the end of the media, and past whatever follows."""
    yield from _read_brands(stream)
    contents = _Contents(is_picture=str(stream.content_type).startswith("image/"))
    while header := (yield from stream.peek(16)):
        start = stream.position
        box = box_of(header, start)
        if contents.is_complete and _begins_tail(header, box):
            stream.tail_at = start
        elif box is None:
            stream.truncated() if len(header) < 8 else stream.damaged()
        elif not (yield from contents.read(stream, box)):
            if not contents.is_complete or box.name in _TOP_BOXES:
                stream.truncated()
            stream.tail_at = start
        if stream.tail_at is not None:
            yield from stream.rest()
    contents.verify(stream)


def _begins_tail(header: bytes, box: Box | None) -> bool:
    """Return whether a file that is complete so far can't continue like this."""
    if box is None:
        return not (len(header) > 4 and any(name.startswith(header[4:8]) for name in _TOP_BOXES))
    return box.name == b"ftyp"


def _read_brands(stream: Stream) -> Reading[None]:
    """Recognise the format by its brands."""
    stream.label = "MP4 file"
    box = box_of((yield from stream.peek(16)), 0)
    if box is None:
        stream.damaged()
    if box.name != b"ftyp":
        stream.recognise("video/quicktime", ".mov", "QuickTime file")
        return
    if box.end - box.begin > _MAX_BRANDS_BYTES or box.end < box.begin + 4:
        stream.damaged()
    yield from stream.skip(box.begin)
    text = yield from stream.exactly(box.end - box.begin)
    # The first brand is followed by its version, then by all compatible brands.
    stream.recognise(*_type_of(text[:4], {text[place : place + 4] for place in range(8, len(text) - 3, 4)}))


def _type_of(first: bytes, others: set[bytes]) -> tuple[str, str, str]:
    for brands in ({first}, others):
        if brands & _AVIF:
            return "image/avif", ".avif", "AVIF file"
        if brands & _HEIC:
            return "image/heic", ".heic", "HEIC file"
    if first in _PICTURE:
        return "image/heif", ".heif", "HEIF file"
    if first == _QUICKTIME:
        return "video/quicktime", ".mov", "QuickTime file"
    return "video/mp4", ".mp4", "MP4 file"


class _Contents:
    """The boxes seen so far."""

    def __init__(self, *, is_picture: bool) -> None:
        self._is_picture = is_picture
        self._seen: set[bytes] = set()
        self._tracks = Tracks()
        self._items_end = 0
        self._is_open_ended = False
        self._lacks_fragment = False

    @property
    def is_complete(self) -> bool:
        """Whether the boxes so far are enough for a decoder."""
        return not self._missing and not self._lacks_fragment

    @property
    def _missing(self) -> list[str]:
        if self._is_picture:
            return [] if self._seen & {b"meta", b"moov"} else ["meta"]
        return [name for name in ("moov", "mdat") if name.encode() not in self._seen]

    def read(self, stream: Stream, box: Box) -> Reading[bool]:
        """Read a box, and return whether it is complete."""
        yield from stream.skip(box.begin - stream.position)
        if box.name == b"moov":
            yield from read_film(stream, box.end, self._tracks)
        elif box.name == b"meta" and self._is_picture:
            self._items_end = max(self._items_end, (yield from read_items(stream, box.end)))
        elif box.name == b"uuid" and (yield from stream.peek(16)) == _C2PA:
            stream.content_credentials = "c2pa"
        if box.end == TO_THE_END:
            self._is_open_ended = True
            yield from stream.rest()
        elif not (yield from stream.skip_up_to(box.end - stream.position)):
            return False
        self._seen.add(box.name)
        if box.name in (b"sidx", b"moof", b"mdat"):
            self._lacks_fragment = box.name != b"mdat"
        return True

    def verify(self, stream: Stream) -> None:
        """Verify the file, which was read to its end.

        Raises:
            NotMedia: something is missing.
        """
        if self._missing:
            raise NotMedia(
                f"{_with_article(stream.label)} without its {' and '.join(self._missing)}, so nothing can play it"
            )
        if self._lacks_fragment or self._items_end > stream.position:
            stream.truncated()
        # Otherwise the boxes themselves state where the data end, and an index may point into other files.
        if (self._is_open_ended or stream.tail_at is not None) and self._tracks.end > stream.position:
            stream.truncated()
        if not self._is_picture and not self._tracks.show_video:
            raise NotMedia(f"{_with_article(stream.label)} without a video track")


def _with_article(label: str) -> str:
    return f"{'an' if label.startswith(('A', 'M')) else 'a'} {label}"
