"""How far a campaign is while it runs: a progress artifact in the UI, a line in the log now and then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from prefect_veogen.campaign.items import CampaignItem
from prefect_veogen.models import plain_name
from prefect_veogen.session import Session
from prefect_veogen.tasks.artifacts import courtesy
from prefect_veogen.tasks.markdown import literal

_REPORTED_EVERY_SECONDS = 2.0
_LOGGED_EVERY_SECONDS = 15.0


@asynccontextmanager
async def show_progress(
    session: Session, name: str, total: int, items: Mapping[int, CampaignItem]
) -> AsyncIterator[None]:
    """Report how far a campaign is while it runs: a progress artifact in the UI, a line in the log now and then."""
    artifact = None
    async with courtesy(session):
        key = f"campaign-{plain_name(name)}-progress"
        artifact = await acreate_progress_artifact(0.0, key=key, description=literal(name))
    reporting = asyncio.create_task(_report_progress(session, artifact, total, items))
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        await _update_progress(session, artifact, total, items)


async def _report_progress(
    session: Session, artifact: UUID | None, total: int, items: Mapping[int, CampaignItem]
) -> None:
    reported, logged_at = -1, time.monotonic()
    while True:
        await asyncio.sleep(_REPORTED_EVERY_SECONDS)
        if len(items) == reported:
            continue
        reported = len(items)
        await _update_progress(session, artifact, total, items)
        if time.monotonic() - logged_at >= _LOGGED_EVERY_SECONDS:
            logged_at = time.monotonic()
            session.log.info(_summary(total, items))


async def _update_progress(
    session: Session, artifact: UUID | None, total: int, items: Mapping[int, CampaignItem]
) -> None:
    if artifact is None:
        return
    async with courtesy(session):
        await aupdate_progress_artifact(artifact, 100 * len(items) / total if total else 100.0, _summary(total, items))


def _summary(total: int, items: Mapping[int, CampaignItem]) -> str:
    found = Counter(item.status.value for item in items.values())
    counts = ", ".join(f"{count} {status}" for status, count in found.items())
    return f"{len(items)} of {total} rows are done{f': {counts}' if counts else ''}"
