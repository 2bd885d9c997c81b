"""Waiting for one generation, with what its end means for the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import Generation, Status
from prefect_veogen.process.tracing import span
from prefect_veogen.purchase.submit import mark_failed

if TYPE_CHECKING:
    from prefect_veogen.session import Session


def check_timeout(timeout_seconds: object) -> None:
    """Validate a time-out; call before buying.

    Raises:
        ConfigurationError: it is not a number of seconds above 0.
    """
    if timeout_seconds is not None and not (isinstance(timeout_seconds, int | float) and timeout_seconds > 0):
        raise ConfigurationError(
            f"timeout_seconds={timeout_seconds!r} is not a valid time-out",
            next_step="Nothing was bought. Give a number of more than 0 seconds, or leave it out.",
        )


async def wait(session: Session, generation: Generation, timeout_seconds: float | None = None) -> Generation:
    """Return the generation when it is completed; at once if it is known to be.

    Raises:
        GenerationFailed: it failed; the receipt then says that nothing was charged.
        StillRunning: the time is over, the generation is not.
        PersonNeeded: the service keeps knowing no such generation, or naming no output for it.
    """
    if not generation.is_over:
        generation = await _wait_until_over(session, generation, timeout_seconds)
    if generation.status is Status.FAILED:
        raise await mark_failed(session, generation)
    return generation


async def _wait_until_over(session: Session, generation: Generation, timeout_seconds: float | None) -> Generation:
    facts: dict[str, Any] = {"model": generation.model, "generation_id": generation.id, "receipt": generation.receipt}
    with span("wait", **facts) as traced:
        timeout = session.settings.wait_timeout_seconds if timeout_seconds is None else timeout_seconds
        ended = await session.poller.wait_until_over(
            generation,
            timeout,
            lambda changed: session.log.info("Generation %s is %s", changed.id, changed.status_text),
        )
        traced.note(status=ended.status.value, price_usd=ended.price_usd)
        return ended
