"""Waiting for one generation, with what its end means for the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.models import Generation, Status
from prefect_veogen.purchase import mark_failed

if TYPE_CHECKING:
    from prefect_veogen.session import Session


async def wait(session: Session, generation: Generation, timeout_seconds: float | None = None) -> Generation:
    """Return the generation when it is completed; at once if it is known to be.

    Raises:
        GenerationFailed: it failed; the receipt then says that nothing was charged.
        StillRunning: the time is over, the generation is not.
    """
    if not generation.is_over:
        timeout = timeout_seconds or session.settings.wait_timeout_seconds
        generation = await session.watcher.until_over(
            generation, timeout, lambda told: session.log.info("Generation %s is %s", told.id, told.status_text)
        )
    if generation.status is Status.FAILED:
        raise await mark_failed(session, generation)
    return generation
