"""Whether bytes are the media they claim to be, judged by their content alone while they stream by.

What a file says of itself (name, Content-Type) proves nothing: error pages are served as `.mp4` with status 200. Each
format here has a structure whose end is known, so a truncated file is noticed too.
"""

from __future__ import annotations

import codecs
import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from prefect_veogen.models import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD_BYTES = 64
_TAIL_BYTES = 64
_MAX_BOX_HEADER = 16
_PADDING = b"\0\n\r "


class NotMedia(Exception):
    """The bytes are not what they should be; the text says what they look like."""


class Inspector:
    """Judges one file of a kind, chunk by chunk, in constant memory."""

    def __init__(self, kind: Kind | None) -> None:
        self._kind = kind
        self._head = bytearray()
        self._format: _Format | None = None
        self.size = 0

    @property
    def is_recognised(self) -> bool:
        """Whether the format is known yet."""
        return self._format is not None

    @property
    def content_type(self) -> str:
        """The type the content shows; known after the first bytes."""
        return self._format.content_type if self._format is not None else "application/octet-stream"

    @property
    def extension(self) -> str:
        """The usual file name ending of that type, with its dot."""
        return self._format.extension if self._format is not None else ".bin"

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            NotMedia: they can't belong to a file of this kind.
        """
        self.size += len(chunk)
        if self._format is None:
            self._head += chunk
            if len(self._head) < _HEAD_BYTES:
                return
            self._recognise()
        else:
            self._format.feed(chunk)

    def finish(self) -> None:
        """Judge the file as a whole, after its last byte.

        Raises:
            NotMedia: it is empty, truncated or damaged.
        """
        if not self.size:
            raise NotMedia("nothing at all")
        if self._format is None:
            self._recognise()
        assert self._format is not None
        self._format.finish()

    def _recognise(self) -> None:
        head = bytes(self._head)
        # The same bytes whatever the chunks are, so that the verdict is the same too.
        self._format = _format_of(head[:_HEAD_BYTES])
        if self._kind is not None and not self._format.content_type.startswith(f"{self._kind.value}/"):
            raise NotMedia(f"{self._format.content_type}, where {_article(self._kind)} is due")
        self._format.feed(head)
        self._head.clear()


def _article(kind: Kind) -> str:
    return "an image" if kind is Kind.IMAGE else "a video"


class _Format(ABC):
    content_type: str
    extension: str

    @abstractmethod
    def feed(self, chunk: bytes) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...


def _format_of(head: bytes) -> _Format:
    if head.startswith(_PNG):
        return _Png()
    if head.startswith(b"\xff\xd8\xff"):
        return _Jpeg()
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _Gif()
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _WebP(int.from_bytes(head[4:8], "little"))
    if head[4:8] == b"ftyp":
        return _of_brand(head[8:12])
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _Matroska(webm=b"webm" in head)
    raise NotMedia(_description(head))


def _of_brand(brand: bytes) -> _Format:
    if brand in (b"avif", b"avis"):
        return _Boxes("image/avif", ".avif", needs=(b"meta",))
    if brand in (b"heic", b"heix", b"mif1"):
        return _Boxes("image/heic", ".heic", needs=(b"meta",))
    if brand == b"qt  ":
        return _Boxes("video/quicktime", ".mov", needs=(b"moov", b"mdat"))
    return _Boxes("video/mp4", ".mp4", needs=(b"moov", b"mdat"))


def _description(head: bytes) -> str:
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML document"
    if text.startswith((b"{", b"[")):
        return "a JSON document"
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"plain text ({head.decode('ascii').strip()[:40]!r} …)"
    return f"bytes of no known media format ({head[:12].hex(' ')} …)"


def _only_padding(behind: bytearray, name: str) -> None:
    """Pass, and forget, what stands behind a file's end if it says nothing: some tools pad."""
    if behind.strip(_PADDING):
        raise NotMedia(f"a {name} with something behind it")
    behind.clear()


class _Png(_Format):
    """Signature, then chunks of length, name, data and checksum, up to IEND."""

    content_type, extension = "image/png", ".png"

    def __init__(self) -> None:
        self._pending = bytearray()
        self._started = False
        self._left = 0
        self._checksum = 0
        self._name = b""
        self._has_pixels = False
        self._ended = False

    def feed(self, chunk: bytes) -> None:
        self._pending += chunk
        if not self._started:
            del self._pending[: len(_PNG)]
            self._started = True
        while self._step():
            pass

    def finish(self) -> None:
        if not self._ended:
            raise NotMedia("a truncated PNG")
        if not self._has_pixels:
            raise NotMedia("a PNG without a picture in it")

    def _step(self) -> bool:
        if self._ended:
            _only_padding(self._pending, "PNG")
            return False
        if self._left:
            data = bytes(self._pending[: self._left])
            del self._pending[: len(data)]
            self._checksum = zlib.crc32(data, self._checksum)
            self._left -= len(data)
            return bool(data)
        if self._name:
            return self._check()
        if len(self._pending) < 8:
            return False
        self._left = int.from_bytes(self._pending[:4], "big")
        self._name = bytes(self._pending[4:8])
        self._checksum = zlib.crc32(self._name)
        del self._pending[:8]
        return True

    def _check(self) -> bool:
        if len(self._pending) < 4:
            return False
        if int.from_bytes(self._pending[:4], "big") != self._checksum:
            raise NotMedia(f"a damaged PNG (checksum of {self._name.decode('latin-1')})")
        del self._pending[:4]
        self._has_pixels = self._has_pixels or self._name == b"IDAT"
        self._ended = self._name == b"IEND"
        self._name = b""
        return True


class _Tail(_Format):
    """Formats of which only the end is worth a look."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk[-_TAIL_BYTES:])[-_TAIL_BYTES:]


class _Jpeg(_Tail):
    content_type, extension = "image/jpeg", ".jpg"

    def finish(self) -> None:
        if not self._tail.rstrip(_PADDING).endswith(b"\xff\xd9"):
            raise NotMedia("a truncated JPEG")


class _Gif(_Format):
    """A screen, then blocks of data in pieces of at most 255 bytes, up to the trailer."""

    content_type, extension = "image/gif", ".gif"

    def __init__(self) -> None:
        self._pending = bytearray()
        self._skip = 0
        self._needed = 13
        self._next: Callable[[bytes], None] = self._screen
        self._ended = False

    def feed(self, chunk: bytes) -> None:
        self._pending += chunk
        while not self._ended:
            skipped = min(self._skip, len(self._pending))
            del self._pending[:skipped]
            self._skip -= skipped
            if self._skip or len(self._pending) < self._needed:
                return
            piece = bytes(self._pending[: self._needed])
            del self._pending[: self._needed]
            self._next(piece)
        _only_padding(self._pending, "GIF")

    def finish(self) -> None:
        if not self._ended:
            raise NotMedia("a truncated GIF")

    def _expect(self, count: int, read: Callable[[bytes], None], skip: int = 0) -> None:
        self._needed, self._next, self._skip = count, read, skip

    def _screen(self, piece: bytes) -> None:
        self._expect(1, self._block, skip=_colours(piece[10]))

    def _block(self, piece: bytes) -> None:
        if piece == b",":
            self._expect(9, self._picture)
        elif piece == b"!":
            self._expect(1, self._data, skip=1)
        elif piece == b";":
            self._ended = True
        else:
            raise NotMedia("a damaged GIF")

    def _picture(self, piece: bytes) -> None:
        self._expect(1, self._data, skip=_colours(piece[8]) + 1)

    def _data(self, piece: bytes) -> None:
        self._expect(1, self._data if piece[0] else self._block, skip=piece[0])


def _colours(flags: int) -> int:
    """Return how many bytes of colours follow."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


class _WebP(_Format):
    content_type, extension = "image/webp", ".webp"

    def __init__(self, stated: int) -> None:
        self._expected = stated + 8
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)

    def finish(self) -> None:
        # An odd length may be followed by a byte of padding.
        if self._size not in (self._expected, self._expected + self._expected % 2):
            raise NotMedia("a truncated WebP" if self._size < self._expected else "a WebP with something behind it")


class _Boxes(_Format):
    """ISO base media (MP4, MOV, AVIF, HEIC): boxes which must tile the file exactly and include the needed ones."""

    def __init__(self, content_type: str, extension: str, needs: tuple[bytes, ...]) -> None:
        self.content_type, self.extension = content_type, extension
        self._needs = needs
        self._pending = bytearray()
        self._skip = 0
        self._to_the_end = False
        self._seen: set[bytes] = set()

    def feed(self, chunk: bytes) -> None:
        if self._to_the_end:
            return
        if self._skip >= len(chunk) and not self._pending:
            self._skip -= len(chunk)
            return
        self._pending += chunk
        while self._pending and not self._to_the_end:
            skipped = min(self._skip, len(self._pending))
            del self._pending[:skipped]
            self._skip -= skipped
            if self._skip or not self._header():
                return

    def finish(self) -> None:
        if self._skip or self._pending:
            raise NotMedia(f"a truncated {self._label} file, or one with something behind it")
        missing = [name.decode() for name in self._needs if name not in self._seen]
        if missing:
            raise NotMedia(f"a {self._label} file without its {' and '.join(missing)}, so nothing can play it")

    def _header(self) -> bool:
        """Read the next box's header; `False` if more bytes are needed."""
        if len(self._pending) < 8:
            return False
        size, name, length = int.from_bytes(self._pending[:4], "big"), bytes(self._pending[4:8]), 8
        if size == 1:
            if len(self._pending) < _MAX_BOX_HEADER:
                return False
            size, length = int.from_bytes(self._pending[8:16], "big"), _MAX_BOX_HEADER
        if size == 0:
            self._to_the_end = True
            self._pending.clear()
        elif size < length or not name.isascii() or b"\0" in name:
            raise NotMedia(f"a damaged {self._label} file")
        else:
            self._skip = size
        self._seen.add(name)
        return True

    @property
    def _label(self) -> str:
        return self.content_type.partition("/")[2].upper()


class _Matroska(_Format):
    """WebM and Matroska: elements of id and length; a segment of unknown length has no end to check."""

    def __init__(self, *, webm: bool) -> None:
        self.content_type, self.extension = ("video/webm", ".webm") if webm else ("video/x-matroska", ".mkv")
        self._pending = bytearray()
        self._skip = 0
        self._elements = 0
        self._open_ended = False

    def feed(self, chunk: bytes) -> None:
        if self._open_ended:
            return
        self._pending += chunk
        while self._pending:
            skipped = min(self._skip, len(self._pending))
            del self._pending[:skipped]
            self._skip -= skipped
            if self._skip or not self._header():
                return

    def finish(self) -> None:
        if self._elements < 2 or self._skip or (self._pending and not self._open_ended):
            raise NotMedia("a truncated Matroska or WebM file")

    def _header(self) -> bool:
        if not self._pending:
            return False
        id_length = 9 - self._pending[0].bit_length()
        if id_length > 4:
            raise NotMedia("a damaged Matroska or WebM file")
        if len(self._pending) <= id_length:
            return False
        first = self._pending[id_length]
        length = 9 - first.bit_length()
        if length > 8:
            raise NotMedia("a damaged Matroska or WebM file")
        if len(self._pending) < id_length + length:
            return False
        stated = int.from_bytes(self._pending[id_length : id_length + length], "big") - (1 << (7 * length))
        self._elements += 1
        if stated == (1 << (7 * length)) - 1:
            self._open_ended = True
            self._pending.clear()
            return False
        del self._pending[: id_length + length]
        self._skip = stated
        return True
