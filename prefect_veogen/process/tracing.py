"""Traces by OpenTelemetry, which does nothing until the caller's program sets up where they go.

Spans bear model, price and ids. A prompt is the caller's text, and errors may quote it: neither is in them unless
`VEOGEN_TRACE_PROMPTS` asks for prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from prefect_veogen.settings import package_version

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OpenTelemetrySpan

Fact = str | bool | int | float | Decimal | None


class Span:
    """One step of a purchase, as it is traced."""

    def __init__(self, span: OpenTelemetrySpan) -> None:
        self._span = span

    def note(self, **facts: Fact) -> None:
        """Add what is known of the step; what is `None` is left out."""
        for name, fact in facts.items():
            if fact is not None:
                plain = float(fact) if isinstance(fact, Decimal) else fact
                self._span.set_attribute(_ATTRIBUTES.get(name, f"veogen.{name}"), plain)


# Where OpenTelemetry has a convention for generative AI, its names.
_ATTRIBUTES = {"model": "gen_ai.request.model", "prompt": "gen_ai.prompt"}


@contextmanager
def span(name: str, **facts: Fact) -> Iterator[Span]:
    """Trace what happens inside as a span `veogen.<name>`; an error is noted by its type."""
    from opentelemetry.trace import Status, StatusCode, get_tracer

    tracer = get_tracer("prefect_veogen", package_version())
    quietly: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(f"veogen.{name}", **quietly) as current:
        traced = Span(current)
        traced.note(**facts)
        try:
            yield traced
        except BaseException as error:
            kind = type(error).__name__
            current.set_attribute("error.type", kind)
            current.set_status(Status(StatusCode.ERROR, kind))
            raise
