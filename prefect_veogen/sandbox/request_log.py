"""Every request that reached the sandbox, with the status of its response."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Origin = Literal["api", "media"]

MAX_RECORDS = 200_000


@dataclass(frozen=True)
class RequestRecord:
    """One request and its response; ``status`` is None when no response was sent."""

    origin: Origin
    method: str
    path: str
    query: str
    status: int | None
    at: datetime
    sandbox_at: datetime
    had_authorization: bool
    headers: Mapping[str, str] = field(repr=False)


class RequestLog:
    """The last 200,000 requests. Safe to use from many threads."""

    def __init__(self) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=MAX_RECORDS)
        self._lock = threading.Lock()

    def add(self, record: RequestRecord) -> None:
        """Append a request; beyond the maximum, the oldest one is dropped."""
        with self._lock:
            self._records.append(record)

    def records(self) -> tuple[RequestRecord, ...]:
        """List the requests so far, oldest first."""
        with self._lock:
            return tuple(self._records)
