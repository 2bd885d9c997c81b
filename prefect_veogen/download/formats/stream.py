"""A file that is pushed in chunk by chunk and read as if it were complete.

A format's reader is a generator that pauses wherever it needs bytes that haven't arrived yet, so that it never depends
on how a file was chunked, and buffers no more of it than what it is about to read.
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
    """The bytes are not the expected media; the text says what they look like."""


class Stream:
    """The bytes of one file, and what its reader has found in it."""

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

    # ---- for the producer of the bytes

    def push(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self._passed += self._offset
        self._buffer = self._buffer[self._offset :] + chunk
        self._offset = 0

    def close(self) -> None:
        """Mark the end of the file."""
        self._ended = True

    @property
    def held(self) -> int:
        """How many bytes are buffered."""
        return len(self._buffer)

    # ---- for a format's reader

    @property
    def position(self) -> int:
        """How many bytes were read or skipped."""
        return self._passed + self._offset

    def recognise(self, content_type: str, extension: str, label: str) -> None:
        """Record the file's format.

        Raises:
            NotMedia: a file of another kind is expected.
        """
        if self._kind is not None and not content_type.startswith(f"{self._kind.value}/"):
            raise NotMedia(
                f"{content_type}, where {'an image' if self._kind.value == 'image' else 'a video'} is expected"
            )
        self.content_type, self.extension, self.label = content_type, extension, label

    def peek(self, count: int) -> Reading[bytes]:
        """Return the next bytes without consuming them; fewer at the end of the file."""
        while self._available < count and not self._ended:
            yield
        return self._buffer[self._offset : self._offset + count]

    def exactly(self, count: int) -> Reading[bytes]:
        """Consume `count` bytes."""
        data = yield from self.peek(count)
        if len(data) < count:
            self.truncated()
        self._offset += count
        return data

    def number(self, count: int) -> Reading[int]:
        """Consume a big-endian number of `count` bytes."""
        return int.from_bytes((yield from self.exactly(count)), "big")

    def some(self, max_bytes: int) -> Reading[bytes]:
        """Consume at least one byte, and up to `max_bytes` of those that are buffered."""
        if not (yield from self.peek(1)):
            self.truncated()
        data = self._buffer[self._offset : self._offset + max_bytes]
        self._offset += len(data)
        return data

    def skip(self, count: int) -> Reading[None]:
        """Skip `count` bytes."""
        if not (yield from self.skip_up_to(count)):
            self.truncated()

    def skip_up_to(self, count: int) -> Reading[bool]:
        """Skip up to `count` bytes, and return whether there were as many."""
        while count > 0:
            if not (yield from self.peek(1)):
                return False
            step = min(count, self._available)
            self._offset += step
            count -= step
        return True

    def skip_past(self, pattern: re.Pattern[bytes], longest: int) -> Reading[bytes]:
        """Skip to the end of the next match, which has at most `longest` bytes, and return the match."""
        while True:
            if found := pattern.search(self._buffer, self._offset):
                self._offset = found.end()
                return found[0]
            self._offset = max(self._offset, len(self._buffer) - longest + 1)
            if self._ended:
                self.truncated()
            yield

    def rest(self) -> Reading[None]:
        """Skip to the end of the file."""
        while (yield from self.peek(1)):
            self._offset = len(self._buffer)

    def truncated(self) -> NoReturn:
        """Raise `NotMedia`: bytes are missing at the end."""
        raise NotMedia(f"a truncated {self.label}")

    def damaged(self, detail: str = "") -> NoReturn:
        """Raise `NotMedia`: the bytes here are not valid in this format."""
        raise NotMedia(f"a damaged {self.label}{f' ({detail})' if detail else ''}")

    @property
    def _available(self) -> int:
        return len(self._buffer) - self._offset
