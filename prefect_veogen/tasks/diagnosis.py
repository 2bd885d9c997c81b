"""Does the Prefect server have, and do, what runs of this package's flows need?"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, get_current_settings

from prefect_veogen.masking import masked
from prefect_veogen.tasks.alerts import find_block_in_use, read_alerts
from prefect_veogen.tasks.automations import (
    HEALED_TAG,
    HEARTBEATS_MISSED,
    heartbeat_of,
    heartbeat_seconds,
    read_healing,
    silence_of,
)
from prefect_veogen.tasks.block_documents import name_of
from prefect_veogen.tasks.provision import POOL
from prefect_veogen.tasks.shared_limit import is_of_size, size_of_limit
from prefect_veogen.upkeep.health import CHECK_SECONDS, NO_RESPONSE, Check, unchecked

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import Automation

    from prefect_veogen.settings import Settings

_SERVER = "Prefect server"
_SETUP = "run `prefect-veogen setup`."
# Before it, with SQLAlchemy 2.1, the scheduler dies at each tick.
_OLDEST: Final = (3, 9, 1)
# The scheduler's pause between two ticks is a minute by default.
_TICK = timedelta(minutes=2)

_Probe = Callable[[PrefectClient], Awaitable[Check]]


async def check_server(settings: Settings) -> list[Check]:
    """Check the Prefect server of this machine's settings, and what `provision` makes there. Free; changes nothing."""
    probes = _probes(settings)
    url = PREFECT_API_URL.value()
    if url is None:
        advice = (
            "This machine: deployments, schedules and a limit shared by workers need one: `prefect server start`, then "
            "`prefect config set PREFECT_API_URL=…`. Runs started by hand work without."
        )
        none = Check(_SERVER, ok=False, detail="none is configured here", advice=advice)
        return [none, *unchecked(probes, "there is no Prefect server")]
    try:
        async with asyncio.timeout(CHECK_SECONDS), get_client() as client:
            server = await client.api_version()
    except Exception as error:  # noqa: BLE001 - Prefect's client raises whatever its libraries do
        advice = (
            "This machine or the server: check PREFECT_API_URL (and PREFECT_API_KEY or PREFECT_API_AUTH_STRING), and "
            "that the server runs."
        )
        silent = Check(_SERVER, ok=False, detail=f"{masked(url)} does not respond: {_words(error)}", advice=advice)
        return [silent, *unchecked(probes, "the Prefect server does not respond")]
    async with get_client() as client:
        checks = [await _run_probe(name, probe, client) for name, probe in probes.items()]
    return [_check_version(masked(url), server), *checks]


def _probes(settings: Settings) -> dict[str, _Probe]:
    return {
        "shared limit": lambda client: _check_limit(client, settings),
        "scheduler": _check_scheduler,
        "worker": _check_worker,
        "healing": _check_healing,
        "alerts": _check_alerts,
    }


async def _run_probe(name: str, probe: _Probe, client: PrefectClient) -> Check:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await probe(client)
    except Exception as error:  # noqa: BLE001 - as above
        advice = "The Prefect server: look into its log, then run this again."
        return Check(name, ok=False, detail=f"could not be checked: {_words(error)}", advice=advice)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return NO_RESPONSE
    return masked(" ".join(f"{type(error).__name__}: {error}".split()))[:200]


def _check_version(url: str, server: str) -> Check:
    here = version("prefect")
    detail = f"{url} runs Prefect {server}, this machine {here}"
    if _numbers(server) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        advice = (
            f"The Prefect server: upgrade it to {oldest} or later. Before, with SQLAlchemy 2.1, no schedule ever makes "
            "a run, and its SQLAlchemy can't be seen from here (docs/troubleshooting.md)."
        )
        return Check(_SERVER, ok=False, detail=detail, advice=advice)
    if _numbers(server) < _numbers(here):
        detail += ": Prefect advises to upgrade the server first"
    return Check(_SERVER, ok=True, detail=detail)


def _numbers(of: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", of)[:3]))


# ---------------------------------------------------------------- what setup makes


async def _check_limit(client: PrefectClient, settings: Settings) -> Check:
    name, per_minute = settings.requests_limit_name, settings.requests_per_minute
    try:
        limit = await client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        detail = f"there is no global concurrency limit {name}: each process keeps the rate limit by itself"
        return Check("shared limit", ok=False, detail=detail, advice=f"The Prefect server: {_SETUP}")
    if not limit.active:
        advice = f"The Prefect server: activate it (`prefect gcl enable {name}`)."
        return Check("shared limit", ok=False, detail=f"{name} is not active", advice=advice)
    if is_of_size(limit, per_minute):
        return Check("shared limit", ok=True, detail=f"{name}: {per_minute} requests a minute")
    slots, decay = size_of_limit(per_minute)
    detail = (
        f"{name} has {limit.limit} slots, of which {limit.slot_decay_per_second:g} decay per second; "
        f"VEOGEN_REQUESTS_PER_MINUTE={per_minute} needs {slots} and {decay:g}"
    )
    return Check("shared limit", ok=False, detail=detail, advice=f"This machine or the server: {_SETUP}")


async def _check_worker(client: PrefectClient) -> Check:
    try:
        pool = await client.read_work_pool(POOL)
    except ObjectNotFound:
        return Check("worker", ok=False, detail=f"there is no work pool {POOL}", advice=f"The Prefect server: {_SETUP}")
    if pool.is_paused:
        advice = f"The Prefect server: `prefect work-pool resume {POOL}`."
        return Check("worker", ok=False, detail=f"the work pool {POOL} is paused", advice=advice)
    workers = await client.read_workers_for_work_pool(POOL)
    alive = [worker for worker in workers if worker.status is WorkerStatus.ONLINE]
    if not alive:
        heard = [worker.last_heartbeat_time for worker in workers if worker.last_heartbeat_time]
        last = f"; the last one was heard of {_ago(max(heard))}" if heard else ""
        advice = f"A worker's machine: `prefect worker start --pool {POOL}`."
        return Check("worker", ok=False, detail=f"none is running for the work pool {POOL}{last}", advice=advice)
    names = [
        f"{worker.name} ({_ago(worker.last_heartbeat_time)})" if worker.last_heartbeat_time else worker.name
        for worker in alive
    ]
    return Check("worker", ok=True, detail=f"{len(alive)} in the work pool {POOL}: {', '.join(names[:5])}")


async def _check_healing(client: PrefectClient) -> Check:
    advice = f"The Prefect server: {_SETUP}"
    healing = await read_healing(client, heartbeat_seconds())
    if missing := [item.wanted.name for item in healing if item.found is None]:
        detail = f"there is no automation {' and no '.join(missing)}: a run whose machine died stays as it is"
        return Check("healing", ok=False, detail=detail, advice=advice)
    found = [item.found for item in healing if item.found is not None]
    if paused := _paused("healing", found):
        return paused
    silence = silence_of(found[0])
    if silence is None or not all(item.is_as_wanted for item in healing[1:]):
        return Check("healing", ok=False, detail="the automations are not what setup makes", advice=advice)
    every = await _read_heartbeat(client)
    if every is None or silence < timedelta(seconds=HEARTBEATS_MISSED * every):
        often = "with no heartbeat" if every is None else f"with a heartbeat every {every} s"
        detail = f"healthy runs count as dead after {silence.seconds} s, {often}"
        return Check("healing", ok=False, detail=detail, advice=advice)
    detail = f"runs of deployments with the tag {HEALED_TAG}, after {silence.seconds} s of silence"
    return Check("healing", ok=True, detail=detail)


async def _read_heartbeat(client: PrefectClient) -> int | None:
    """Return how often runs of the pool send a heartbeat, as far as it can be seen from here."""
    try:
        of_pool = heartbeat_of(await client.read_work_pool(POOL))
    except ObjectNotFound:
        of_pool = None
    return of_pool or get_current_settings().flows.heartbeat_frequency


async def _check_alerts(client: PrefectClient) -> Check:
    alerts = await read_alerts(client)
    if not alerts:
        detail = "none: nobody is told of doubts, refusals and failures (`prefect-veogen setup --alerts BLOCK`)"
        return Check("alerts", ok=True, detail=detail)
    found = [alert.found for alert in alerts if alert.found is not None]
    if paused := _paused("alerts", found):
        return paused
    if not all(alert.is_as_wanted for alert in alerts):
        detail = "they are not all there, or not as setup makes them"
        return Check("alerts", ok=False, detail=detail, advice=f"The Prefect server: {_SETUP}")
    used = await find_block_in_use(client)
    assert used is not None
    try:
        block = name_of(await client.read_block_document(used, include_secrets=False))
    except ObjectNotFound:
        advice = "The Prefect server: save another one, then run `prefect-veogen setup --alerts BLOCK_TYPE/NAME`."
        return Check("alerts", ok=False, detail="the block that they were sent through is gone", advice=advice)
    return Check("alerts", ok=True, detail=f"{len(found)}, through the block {block}")


def _paused(name: str, automations: Sequence[Automation]) -> Check | None:
    paused = [automation.name for automation in automations if not automation.enabled]
    if not paused:
        return None
    resume = " and ".join(f"`prefect automation resume {each}`" for each in paused)
    return Check(name, ok=False, detail=f"{' and '.join(paused)} paused", advice=f"The Prefect server: {resume}.")


# ---------------------------------------------------------------- the scheduler


async def _check_scheduler(client: PrefectClient) -> Check:
    """Tell whether active schedules have put runs on the calendar: that is all a client can see of the scheduler."""
    deployments = [each for each in await client.read_deployments(limit=200) if _changed_at(each) is not None]
    if not deployments:
        return Check("scheduler", ok=True, detail="not known: no deployment has an active schedule")
    now = datetime.now(UTC)
    runs = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[each.id for each in deployments]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime.model_validate({"after_": now}),
        ),
        limit=200,
    )
    made = [run.created for run in runs if run.auto_scheduled and run.created]
    if made:
        detail = f"schedules have runs on the calendar; the last one was put there {_ago(max(made))}"
        return Check("scheduler", ok=True, detail=detail)
    if all(now - changed < _TICK for each in deployments if (changed := _changed_at(each))):
        return Check("scheduler", ok=True, detail="not known yet: the schedules are some seconds old")
    advice = (
        "The Prefect server: look for errors of its scheduler in its log (`Can't evaluate bulk DML statement`: Prefect "
        "before 3.9.1 with SQLAlchemy 2.1). A schedule that has ended makes no runs either."
    )
    names = ", ".join(each.name for each in deployments[:5])
    return Check("scheduler", ok=False, detail=f"active schedules have no run on the calendar: {names}", advice=advice)


def _changed_at(deployment: DeploymentResponse) -> datetime | None:
    """Return when a deployment's active schedules were last changed, `None` if it has none or is paused."""
    active = [schedule for schedule in deployment.schedules if schedule.active and not deployment.paused]
    moments = [moment for each in active if (moment := each.updated or each.created)]
    return max(moments, default=None)


def _ago(moment: datetime) -> str:
    seconds = max(round((datetime.now(UTC) - moment).total_seconds()), 0)
    return f"{seconds} s ago" if seconds < 120 else f"{seconds // 60} min ago"
