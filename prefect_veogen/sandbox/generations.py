"""One generation of the sandbox: its timing, its fate and the file behind its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from prefect_veogen.sandbox.catalogue import Kind, Model
from prefect_veogen.sandbox.faults import Subject
from prefect_veogen.sandbox.media import MediaSpec

Fate = Literal["completed", "failed", "stuck"]


@dataclass(eq=False)
class Generation:
    """One paid run inside the sandbox; times are sandbox seconds on the engine's clock."""

    number: int
    id: str
    model: Model
    prompt: str
    options: dict[str, Any]
    price_usd: Decimal
    created_at: datetime
    created: float
    starts: float
    ends: float
    spec: MediaSpec
    file: MediaPath
    fate: Fate = "completed"
    reason: Any = None
    refunded: bool = False

    @property
    def subject(self) -> Subject:
        return Subject(self.id, self.model.slug, self.model.kind, self.prompt)

    @property
    def completed_at(self) -> datetime:
        return self.created_at + timedelta(seconds=self.ends - self.created)

    def status(self, now: float) -> str:
        if now < self.starts:
            return "pending"
        return "processing" if now < self.ends or self.fate == "stuck" else self.fate


@dataclass(eq=False)
class MediaPath:
    """A path on the media host and the state of the file behind it."""

    path: str
    generation: Generation | None = None
    expired: bool = False
    requests: int = 0
    variant: int = 0
    size_bytes: int | None = None


@dataclass(frozen=True)
class GenerationRecord:
    """A snapshot of a generation."""

    id: str
    number: int
    model: str
    kind: Kind
    prompt: str
    parameters: Mapping[str, Any]
    status: str
    price_usd: Decimal
    created_at: datetime
    completed_at: datetime | None
    error: Any
    output_url: str | None


def format_date(moment: datetime) -> str:
    """Write a date as documented at /api-reference/generations/get: whole seconds, `+00:00`."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")
