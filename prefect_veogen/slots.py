"""Takes for scheduled flows: one purchase per slot of the schedule, however often that slot is run."""

from __future__ import annotations

from datetime import UTC

from prefect.runtime import flow_run

from prefect_veogen.errors import ConfigurationError


def take_of_slot(take: int | str) -> int | str:
    """Return the take, with `{scheduled:…}` filled in from the flow run's scheduled start (UTC). Free.

    `"{scheduled:%Y-%m-%d}"` makes one purchase per day: overlapping runs, catching up and retries of a slot find its
    take again, and passing that date by hand reruns the slot. A take without braces is returned as it is.

    Raises:
        ConfigurationError: the braces hold something else, or this is no flow run.
    """
    if not isinstance(take, str) or "{" not in take:
        return take
    # Outside of a flow run Prefect gives the present time: a take of its own, and a purchase, for every call.
    scheduled = flow_run.scheduled_start_time if flow_run.id else None
    if scheduled is None:
        raise ConfigurationError(
            f"take={take!r} needs a flow run with a scheduled start", next_step="Give a plain take, such as a date."
        )
    try:
        return take.format(scheduled=scheduled.astimezone(UTC))
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"take={take!r} can't be filled in: {error!r}", next_step='Write it like "{scheduled:%Y-%m-%d}".'
        ) from None
