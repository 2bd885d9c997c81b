"""A file that is pushed in chunk by chunk and read as if it were all there.

A format's reader is a generator which pauses wherever it needs bytes that haven't come yet, so that it never depends on
how a file was cut into chunks, and holds no more of it than what it is about to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

if TYPE_CHECKING:
    import re
    from collections.abc import Generator

    from prefect_veogen.models import Kind

    Result = TypeVar("Result")
    Reading: TypeAlias = Generator[None, None, Result]


class NotMedia(Exception):
    """The bytes are not what they should be; the text says what they look like."""


class Stream:
    """The bytes of one file, and what its reader finds out about it."""

    def __init__(self, kind: Kind | None) -> None:
        self._kind = kind
        self._buffer = b""
        self._offset = 0
        self._passed = 0
        self._ended = False
        self.label = "file"
        self.content_type: str | None = None
        self.extension = ".bin"
        self.content_credentials: str | None = None
        self.tail_at: int | None = None

    # ---- the side of whoever has the bytes

    def push(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self._passed += self._offset
        self._buffer = self._buffer[self._offset :] + chunk
        self._offset = 0

    def close(self) -> None:
        """Say that no more bytes come."""
        self._ended = True

    @property
    def held(self) -> int:
        """How many bytes are kept in memory."""
        return len(self._buffer)

    # ---- the side of a format's reader

    @property
    def position(self) -> int:
        """How many bytes were read or skipped."""
        return self._passed + self._offset

    def recognise(self, content_type: str, extension: str, label: str) -> None:
        """Note what the file is.

        Raises:
            NotMedia: a file of another kind is expected.
        """
        if self._kind is not None and not content_type.startswith(f"{self._kind.value}/"):
            raise NotMedia(f"{content_type}, where {'an image' if self._kind.value == 'image' else 'a video'} is due")
        self.content_type, self.extension, self.label = content_type, extension, label

    def peek(self, count: int) -> Reading[bytes]:
        """Return the next bytes without taking them; fewer at the end of the file."""
        while self._available < count and not self._ended:
            yield
        return self._buffer[self._offset : self._offset + count]

    def exactly(self, count: int) -> Reading[bytes]:
        """Take so many bytes."""
        data = yield from self.peek(count)
        if len(data) < count:
            self.truncated()
        self._offset += count
        return data

    def number(self, count: int) -> Reading[int]:
        """Take a big-endian number of so many bytes."""
        return int.from_bytes((yield from self.exactly(count)), "big")

    def some(self, most: int) -> Reading[bytes]:
        """Take at least one byte, and as many as are there."""
        if not (yield from self.peek(1)):
            self.truncated()
        data = self._buffer[self._offset : self._offset + most]
        self._offset += len(data)
        return data

    def skip(self, count: int) -> Reading[None]:
        """Pass over so many bytes."""
        if not (yield from self.skip_up_to(count)):
            self.truncated()

    def skip_up_to(self, count: int) -> Reading[bool]:
        """Pass over so many bytes, and tell whether there were as many."""
        while count > 0:
            if not (yield from self.peek(1)):
                return False
            step = min(count, self._available)
            self._offset += step
            count -= step
        return True

    def skip_past(self, pattern: re.Pattern[bytes], longest: int) -> Reading[bytes]:
        """Pass over everything up to the next match, of at most `longest` bytes, and return that."""
        while True:
            if found := pattern.search(self._buffer, self._offset):
                self._offset = found.end()
                return found[0]
            self._offset = max(self._offset, len(self._buffer) - longest + 1)
            if self._ended:
                self.truncated()
            yield

    def rest(self) -> Reading[None]:
        """Pass over everything there is."""
        while (yield from self.peek(1)):
            self._offset = len(self._buffer)

    def truncated(self) -> NoReturn:
        """Say that bytes are missing at the end."""
        raise NotMedia(f"a truncated {self.label}")

    def damaged(self, detail: str = "") -> NoReturn:
        """Say that bytes can't mean anything where they stand."""
        raise NotMedia(f"a damaged {self.label}{f' ({detail})' if detail else ''}")

    @property
    def _available(self) -> int:
        return len(self._buffer) - self._offset
