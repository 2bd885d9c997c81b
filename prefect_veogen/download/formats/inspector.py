"""The inspection of one file: its format, whether it is complete, and what follows its end."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from prefect_veogen.download.formats.audio import begins_audio, read_audio
from prefect_veogen.download.formats.gif import read_gif
from prefect_veogen.download.formats.iso_media import begins_iso_media, read_iso_media
from prefect_veogen.download.formats.jpeg import read_jpeg
from prefect_veogen.download.formats.matroska import read_matroska
from prefect_veogen.download.formats.png import read_png
from prefect_veogen.download.formats.stream import NotMedia, Stream
from prefect_veogen.download.formats.webp import read_webp

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_veogen.download.formats.stream import Reading
    from prefect_veogen.models import Kind

_HEAD_BYTES = 64


class Inspector:
    """Inspects one file of a kind, chunk by chunk, in constant memory; `audio` is media only for who asks for it."""

    def __init__(self, kind: Kind | None, *, audio: bool = False) -> None:
        self._stream = Stream(kind)
        self._reading = _read(self._stream, audio=audio)
        self._end: int | None = None
        self.size = 0

    @property
    def is_recognised(self) -> bool:
        """Whether the format is known yet."""
        return self._stream.content_type is not None

    @property
    def content_type(self) -> str:
        """The type the content shows; known after the first bytes."""
        return self._stream.content_type or "application/octet-stream"

    @property
    def extension(self) -> str:
        """The usual file name ending of that type, with its dot."""
        return self._stream.extension

    @property
    def bytes_behind_end(self) -> int:
        """How many bytes follow the end of the media, where no decoder reads; known when the file is finished."""
        return 0 if self._end is None else self.size - self._end

    @property
    def content_credentials(self) -> str | None:
        """`c2pa` if the file carries a signed manifest of its provenance."""
        return self._stream.content_credentials

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            NotMedia: they can't belong to a file of this kind.
        """
        self.size += len(chunk)
        if self._end is None:
            self._stream.push(chunk)
            self._read_on()

    def finish(self) -> None:
        """Verify the file as a whole, after its last byte.

        Raises:
            NotMedia: it is empty, truncated or damaged.
        """
        if not self.size:
            raise NotMedia("nothing at all")
        self._stream.close()
        if self._end is None:
            self._read_on()

    def _read_on(self) -> None:
        try:
            next(self._reading)
        except StopIteration:
            self._end = self._stream.position if self._stream.tail_at is None else self._stream.tail_at


def _read(stream: Stream, *, audio: bool) -> Reading[None]:
    head = yield from stream.peek(_HEAD_BYTES)
    yield from (read_audio if audio and begins_audio(head) else _reader_of(head))(stream)


def _reader_of(head: bytes) -> Callable[[Stream], Reading[None]]:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return read_png
    if head.startswith(b"\xff\xd8\xff"):
        return read_jpeg
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return read_gif
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return read_webp
    if begins_iso_media(head):
        return read_iso_media
    if head.startswith(b"\x1aE\xdf\xa3"):
        return read_matroska
    raise NotMedia(_description(head))


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
    return f"bytes of an unknown media format ({head[:12].hex(' ')} …)"
