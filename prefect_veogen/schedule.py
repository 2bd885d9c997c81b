"""Takes for scheduled flows: one purchase per slot of the schedule, however often that slot is run."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefect_veogen.errors import ConfigurationError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_SLOT = re.compile(r"\{scheduled:([^{}]+)\}")
# Two moments that have no part in common: what is the same at both is the same at all times.
_MOMENTS = (datetime(1999, 1, 4, 3, 5, 6, 7, UTC), datetime(2022, 12, 31, 22, 59, 58, 0, UTC))


def take_of_slot(take: int | str, scheduled: datetime | None = None) -> int | str:
    """Return the take, with `{scheduled:…}` filled in from the flow run's scheduled start (UTC), or a given one. Free.

    `"{scheduled:%Y-%m-%d}"` makes one purchase per day: overlapping runs, catching up and retries of a slot find its
    take again, and passing that date by hand reruns the slot. A subflow has the slot of the deployment's run that it is
    part of. A take without braces is returned as it is.

    Raises:
        ConfigurationError: the braces hold anything else or never change, or there is no flow run.
    """
    if not isinstance(take, str) or not {"{", "}"} & {*take}:
        return take
    if not _has_slot(take):
        raise ConfigurationError(f"take={take!r} can't be filled in", next_step='Write it like "{scheduled:%Y-%m-%d}".')
    scheduled = scheduled or scheduled_start()
    if scheduled is None:
        raise ConfigurationError(
            f"take={take!r} needs a flow run with a scheduled start", next_step="Give a plain take, such as a date."
        )
    return _fill(take, scheduled.astimezone(UTC))


def scheduled_start() -> datetime | None:
    """Return when the flow run was due, `None` outside of one; a subflow is due with its deployment's run. Free."""
    from prefect.runtime import flow_run

    run = scheduled_run()
    if run is not None:
        return run.expected_start_time
    # Outside of a flow run Prefect gives the present time: a take of its own, and a purchase, for every call.
    return flow_run.scheduled_start_time if flow_run.id else None


def scheduled_run() -> FlowRun | None:
    """Return the flow run, or the deployment's run of which it is a subflow; `None` outside of one. Free.

    Prefect makes a subflow anew, due at that moment, whenever the run that calls it is run again.
    """
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    own = context.flow_run if context else None
    if own is None or own.parent_task_run_id is None or own.deployment_id is not None:
        return own
    with get_client(sync_client=True) as client:
        run = own
        while run.deployment_id is None and run.parent_task_run_id is not None:
            parent = client.read_task_run(run.parent_task_run_id).flow_run_id
            if parent is None:
                return own
            run = client.read_flow_run(parent)
    return own if run.deployment_id is None else run


def _has_slot(take: str) -> bool:
    """Tell whether all braces of a take hold formats, and these make another take of another slot."""
    try:
        return not {"{", "}"} & {*_SLOT.sub("", take)} and _fill(take, _MOMENTS[0]) != _fill(take, _MOMENTS[1])
    except ValueError:
        return False


def _fill(take: str, moment: datetime) -> str:
    return _SLOT.sub(lambda slot: moment.strftime(slot[1]), take)
