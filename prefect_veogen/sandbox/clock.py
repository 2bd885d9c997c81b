"""Sandbox time: real time, multiplied by a factor and moved forward by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

# Beyond these, dates would soon be past the year 9999.
_MAX_JUMP_SECONDS = 50 * 366 * 86400
_MAX_SPEED = 1_000_000


class Clock:
    """The time inside the sandbox: it starts at the real now and never goes backwards.

    ``speed`` is how many sandbox seconds pass in one real second; 0 stops the clock, so that only `advance` moves it.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self._speed = _check_speed(speed)
        self._started = datetime.now(UTC)
        self._mark = time.monotonic()
        self._elapsed_at_mark = 0.0

    @property
    def speed(self) -> float:
        return self._speed

    def change_speed(self, speed: float) -> None:
        """Run at another speed from now on; the time that has passed is kept."""
        checked = _check_speed(speed)
        self._elapsed_at_mark, self._mark = self.elapsed(), time.monotonic()
        self._speed = checked

    def advance(self, seconds: float) -> None:
        """Jump forward by that many sandbox seconds."""
        if not 0 <= seconds <= _MAX_JUMP_SECONDS:
            raise ValueError(f"the clock goes forward, by 50 years at most: cannot advance by {seconds} seconds")
        self._elapsed_at_mark += seconds

    def elapsed(self) -> float:
        """Return the sandbox seconds since the clock was made."""
        return self._elapsed_at_mark + (time.monotonic() - self._mark) * self._speed

    def date(self, elapsed: float) -> datetime:
        """Convert elapsed sandbox seconds to a date (UTC)."""
        return self._started + timedelta(seconds=elapsed)

    def real_seconds(self, sandbox_seconds: float) -> float:
        """Convert a duration to real seconds, for Retry-After; a stopped clock counts as running at speed 1."""
        return sandbox_seconds / (self._speed or 1.0)


def _check_speed(speed: float) -> float:
    if not 0 <= speed <= _MAX_SPEED:
        raise ValueError(f"speed is a factor from 0 to {_MAX_SPEED:,}, not {speed}")
    return speed
