"""The rate limit of the account, in sandbox time."""

from __future__ import annotations

import math
import threading
from collections import deque

from prefect_veogen.sandbox.clock import Clock

WINDOW_SECONDS = 60.0


class RateLimit:
    """A sliding window over all requests of the account; None is no limit. Safe to use from many threads.

    The limit is documented at /authentication; that it is a sliding window over the whole account, and that refused
    requests don't count, are inventions.
    """

    def __init__(self, requests_per_minute: int | None, clock: Clock) -> None:
        self._limit = requests_per_minute
        self._clock = clock
        self._admitted: deque[float] = deque()
        self._lock = threading.Lock()

    def admit(self) -> int | None:
        """Count a request; None admits it, a number is how many real seconds to wait."""
        if self._limit is None:
            return None
        with self._lock:
            now = self._clock.elapsed()
            while self._admitted and self._admitted[0] <= now - WINDOW_SECONDS:
                self._admitted.popleft()
            if len(self._admitted) < self._limit:
                self._admitted.append(now)
                return None
            wait = self._admitted[0] + WINDOW_SECONDS - now
            return max(1, math.ceil(self._clock.real_seconds(wait)))
