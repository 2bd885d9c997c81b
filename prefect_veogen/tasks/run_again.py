"""Runs that time heals go back on the schedule: a doubt ends, an outage passes, a generation is completed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import AwaitingRetry

from prefect_veogen import errors
from prefect_veogen.campaign.items import CampaignItem
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.errors import StillRunning, TryAgainLater, UnknownSubmission

_PAUSES: Final = (timedelta(minutes=5), timedelta(minutes=15), timedelta(minutes=45))
_MAX_TIMES: Final = len(_PAUSES)
# What the messages of such states begin with, by which they are counted.
_DOUBT = "A purchase is in doubt: "
_TROUBLE = "The trouble may pass: "


async def run_again_later(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Put a deployment's run that time heals back on the schedule; use it as `on_failure`.

    A run that ended in doubt, for the end of the doubt. A run that a schedule started and an outage ended, or a wait
    that was too short, for 5, 15 and 45 minutes later; whoever starts one in another way is there to see the error.
    As `prefect flow-run retry` would: a worker runs it again then, and no process waits meanwhile. At most three times
    each, and never what somebody has cancelled or started again meanwhile.
    """
    match await state.aresult(raise_on_failure=False):
        case UnknownSubmission(doubt_until=datetime() as end) if flow_run.deployment_id is not None:
            await _postpone(flow, flow_run, _DOUBT, [end] * _MAX_TIMES, "A purchase is still in doubt")
        case TryAgainLater() | StillRunning() if flow_run.auto_scheduled:
            moments = [datetime.now(UTC) + pause for pause in _PAUSES]
            await _postpone(flow, flow_run, _TROUBLE, moments, "The trouble is not over")


async def _postpone(
    flow: Flow[Any, Any], flow_run: FlowRun, why: str, moments: Sequence[datetime], unhealed: str
) -> None:
    """Put a run back on the schedule for the moment that is next, if it wasn't for all of them already."""
    log = flow_run_logger(flow_run, flow)
    times = await _count_postponed(flow_run, why)
    if times >= len(moments):
        log.warning("%s after %d retries: see the error", unhealed, times)
        return
    message = f"{why}run again at {moments[times]:%Y-%m-%d %H:%M:%S} UTC"
    retry: State[Any] = AwaitingRetry(scheduled_time=moments[times], message=message)
    async with get_client() as client:
        now = (await client.read_flow_run(flow_run.id)).state
        if now is not None and not now.is_failed():
            log.info("It is %s by now, and stays so", now.name)
            return
        await client.set_flow_run_state(flow_run.id, retry, force=True)
    log.warning(message)


async def run_again_for_rows(*reports: CampaignReport) -> None:
    """End a scheduled run in which an outage or a doubt kept rows from being made, so that it is run again. Free.

    In all other runs, and once it was run again as often as `run_again_later` does that, the table of results says what
    became of them.

    Raises:
        TryAgainLater: there are such rows, and the run goes back on the schedule for them.
    """
    waiting = await find_rows_to_wait_for(*reports)
    if waiting:
        first = (waiting[0].error or "").partition("\n")[0]
        count = f"{len(waiting)} row{'' if len(waiting) == 1 else 's'}"
        raise TryAgainLater(f"{count} could not be made yet; the first: {first}")


async def find_rows_to_wait_for(*reports: CampaignReport) -> list[CampaignItem]:
    """Return the rows for which `run_again_for_rows` has this run run again, none if it doesn't. Free."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.auto_scheduled:
        return []
    waiting = [item for report in reports for item in report.items if _heals_with_time(item)]
    try:
        return waiting if waiting and await _count_postponed(run, _TROUBLE) < _MAX_TIMES else []
    except Exception:  # noqa: BLE001 - Prefect's client raises whatever its libraries do; `run_again_later` counts again
        return waiting


def _heals_with_time(item: CampaignItem) -> bool:
    kind = getattr(errors, item.error_type or "", None)
    return isinstance(kind, type) and issubclass(kind, TryAgainLater | StillRunning | UnknownSubmission)


async def _count_postponed(flow_run: FlowRun, why: str) -> int:
    async with get_client() as client:
        states: Sequence[State[Any]] = await client.read_flow_run_states(flow_run.id)
    return sum((past.message or "").startswith(why) for past in states)
