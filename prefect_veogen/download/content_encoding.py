"""Content-Encoding, decoded piece by piece.

We request `identity`, and some hosts encode all the same. However high the compression ratio, only one bounded piece of
the output is ever in memory.
"""

from __future__ import annotations

import importlib
import zlib
from abc import ABC, abstractmethod
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PIECE_BYTES = 256 * 1024
_MAX_CODINGS = 3
# `aws-chunked` is left over from uploads; the stored bytes are not encoded.
_NO_OPS = ("", "identity", "none", "aws-chunked")
_GZIP_MAGIC = b"\x1f\x8b"
# RFC 9659: what a recipient of zstd has to be able to hold.
_MAX_ZSTD_WINDOW = 8 * 1024 * 1024
# Four bytes may encode a block of 128 KiB, and this decoder can't limit its output: so its input is sliced.
_ZSTD_SLICE_BYTES = 256


class Undecodable(Exception):
    """The bytes can't be decoded; the text says why."""


class Decoder(ABC):
    """Decodes one file."""

    @abstractmethod
    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the next bytes decoded, in pieces of bounded size.

        Raises:
            Undecodable: they are not valid in this encoding.
        """

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether the end of the encoded data was reached."""


def content_codings(headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the codings that were applied to a body, in this order; empty if there are none."""
    stated = (coding.strip().lower() for coding in headers.get("content-encoding", "").split(","))
    return tuple(coding.removeprefix("x-") for coding in stated if coding not in _NO_OPS)


def decoder_of(codings: tuple[str, ...]) -> Decoder:
    """Return the decoder for the codings.

    Raises:
        Undecodable: one is not supported, or there are too many.
    """
    if len(codings) > _MAX_CODINGS:
        raise Undecodable(f"{len(codings)} stacked encodings")
    decoders = []
    for coding in reversed(codings):
        make = _DECODERS.get(coding)
        if make is None:
            raise Undecodable("an unknown encoding")
        decoders.append(make())
    return decoders[0] if len(decoders) == 1 else _Several(decoders)


class _Several(Decoder):
    def __init__(self, decoders: list[Decoder]) -> None:
        self._decoders = decoders

    def decode(self, data: bytes) -> Iterator[bytes]:
        pieces: Iterator[bytes] = iter([data])
        for decoder in self._decoders:
            pieces = chain.from_iterable(map(decoder.decode, pieces))
        return pieces

    @property
    def has_ended(self) -> bool:
        return all(decoder.has_ended for decoder in self._decoders)


class _Gzip(Decoder):
    """One or several members, maybe followed by padding, which is ignored."""

    def __init__(self) -> None:
        self._engine = zlib.decompressobj(wbits=31)
        self._behind = b""

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._engine.eof:
                # Another member, unless it is padding; its magic number may be split over two pieces.
                data = self._behind + data
                self._behind = data[:2]
                if self._behind != _GZIP_MAGIC:
                    return
                self._behind, self._engine = b"", zlib.decompressobj(wbits=31)
            yield from _inflated(self._engine, data)
            data = self._engine.unused_data

    @property
    def has_ended(self) -> bool:
        return self._engine.eof


class _Deflate(Decoder):
    """In a zlib wrapper, as specified, or raw, as some servers send it."""

    def __init__(self) -> None:
        self._beginning = b""
        self._engine: Any = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._engine is None:
            data = self._beginning = self._beginning + data
            if len(data) < 2:
                return
            is_wrapped = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._engine = zlib.decompressobj(wbits=15 if is_wrapped else -15)
        if not self._engine.eof:
            yield from _inflated(self._engine, data)

    @property
    def has_ended(self) -> bool:
        return self._engine is not None and bool(self._engine.eof)


def _inflated(engine: Any, data: bytes) -> Iterator[bytes]:
    while True:
        try:
            piece = engine.decompress(data, _PIECE_BYTES)
        except zlib.error as error:
            raise Undecodable(str(error)) from None
        if piece:
            yield piece
        data = engine.unconsumed_tail
        # A full piece may have more output pending.
        if engine.eof or not (data or len(piece) == _PIECE_BYTES):
            return


class _Brotli(Decoder):
    def __init__(self) -> None:
        library = _import("brotli", "br")
        self._engine, self._error = library.Decompressor(), library.error

    def decode(self, data: bytes) -> Iterator[bytes]:
        has_more = bool(data)
        while has_more and not self._engine.is_finished():
            try:
                piece = self._engine.process(data, output_buffer_limit=_PIECE_BYTES)
            except (self._error, TypeError) as error:
                raise Undecodable(str(error)) from None
            if piece:
                yield piece
            has_more = len(piece) >= _PIECE_BYTES or not self._engine.can_accept_more_data()
            data = b""

    @property
    def has_ended(self) -> bool:
        return bool(self._engine.is_finished())


class _Zstd(Decoder):
    def __init__(self) -> None:
        library = _import("zstandard", "zstd")
        self._error = library.ZstdError
        self._engine = library.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()

    def decode(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE_BYTES):
            if self._engine.eof:
                return
            try:
                piece = self._engine.decompress(data[start : start + _ZSTD_SLICE_BYTES])
            except self._error as error:
                raise Undecodable(str(error)) from None
            if piece:
                yield piece

    @property
    def has_ended(self) -> bool:
        return bool(self._engine.eof)


def _import(library: str, coding: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise Undecodable(f"for {coding} the package {library} is needed, which isn't installed") from None


_DECODERS: dict[str, Callable[[], Decoder]] = {"gzip": _Gzip, "deflate": _Deflate, "br": _Brotli, "zstd": _Zstd}
