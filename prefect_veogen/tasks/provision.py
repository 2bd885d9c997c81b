"""What a Prefect server needs for this package, made once and again, and taken away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from prefect_veogen.api.client import client_of
from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.models import normal_base_url
from prefect_veogen.tasks.alerts import ALERT_NAMES, QUIET, read_alerts
from prefect_veogen.tasks.automations import (
    HEALED_TAG,
    HEARTBEAT_VARIABLE,
    HEARTBEATS_MISSED,
    MAX_HEALED,
    NAMES,
    UNSTARTED_SECONDS,
    Comparison,
    heartbeat_of,
    heartbeat_seconds,
    keep_one,
    read_healing,
    with_heartbeat,
)
from prefect_veogen.tasks.block_documents import find_block, name_of
from prefect_veogen.tasks.credentials import DEFAULT_BLOCK
from prefect_veogen.tasks.shared_limit import create_limit

if TYPE_CHECKING:
    from prefect.client.schemas.objects import BlockDocument
    from pydantic import SecretStr

    from prefect_veogen.settings import Settings

POOL: Final = "veogen"
"""The work pool that deployments/prefect.yaml deploys to."""

_MADE_HERE = "Runs flows that buy images and videos. Made by prefect-veogen setup."
_UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing of a server, and what was done about it."""

    name: str
    did: Literal["made", "changed", "exists", "left alone", "removed", "absent"]
    detail: str


async def provision(settings: Settings, alerts: str | None = None) -> list[Step]:
    """Make what a server lacks, and say so step by step. Free, and safe to repeat.

    `alerts` is the notification block which messages are sent through, such as `slack-webhook/NAME`; without one, those
    that are there stay, through the block that they use.

    Raises:
        ConfigurationError: the token that would be stored can't be one, or the block can send no messages; nothing was
            made.
    """
    if settings.api_token is not None:
        client_of(settings.api_token, settings.base_url, settings.requests_per_minute, settings.request_timeout_seconds)
    async with get_client() as client:
        block = await _find_notifier(client, alerts) if alerts else None
        limit = await create_limit(settings.requests_limit_name, settings.requests_per_minute)
        return [
            Step(
                f"global concurrency limit {settings.requests_limit_name}",
                limit,
                f"all workers together send at most {settings.requests_per_minute} requests a minute",
            ),
            await _provide_pool(client),
            await _provide_block(client, settings),
            *await _provide_healing(client),
            *await _provide_alerts(client, block),
        ]


async def withdraw(settings: Settings) -> list[Step]:
    """Remove what `provision` made, except for what is in use or holds a secret, and say so step by step."""
    async with get_client() as client:
        automations = [await _withdraw_automation(client, name) for name in (*NAMES, *ALERT_NAMES)]
        try:
            await client.delete_global_concurrency_limit_by_name(settings.requests_limit_name)
        except ObjectNotFound:
            limit = Step(f"global concurrency limit {settings.requests_limit_name}", "absent", "")
        else:
            words = "each process keeps the rate limit by itself now"
            limit = Step(f"global concurrency limit {settings.requests_limit_name}", "removed", words)
        kept = "setup never removes a token: `prefect block delete veogen-credentials/default` does"
        return [*automations, limit, await _withdraw_pool(client), Step(f"block {DEFAULT_BLOCK}", "left alone", kept)]


# ---------------------------------------------------------------- the work pool


async def _provide_pool(client: PrefectClient) -> Step:
    name = f"work pool {POOL}"
    every, usual = heartbeat_seconds(), ProcessWorker.get_default_base_job_template()
    try:
        pool = await client.read_work_pool(POOL)
    except ObjectNotFound:
        template = with_heartbeat(usual, every)
        await client.create_work_pool(
            WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template, description=_MADE_HERE)
        )
        return Step(name, "made", f"a worker takes its runs: `prefect worker start --pool {POOL}`")
    paused = f"; it is paused: `prefect work-pool resume {POOL}`" if pool.is_paused else ""
    # A pool that was made without one gets its type's template from its first worker.
    template = pool.base_job_template or (usual if pool.type == ProcessWorker.type else {})
    if template and (heartbeat_of(pool) or math.inf) > every:
        template = with_heartbeat(template, every)
        await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
        return Step(name, "changed", f"of type {pool.type}; its runs send a heartbeat every {every} s{paused}")
    return Step(name, "exists", f"of type {pool.type}{paused}")


async def _withdraw_pool(client: PrefectClient) -> Step:
    """Remove the pool if `provision` made it and nothing needs it: its deployments and runs would go with it."""
    name = f"work pool {POOL}"
    try:
        pool = await client.read_work_pool(POOL)
    except ObjectNotFound:
        return Step(name, "absent", "")
    if pool.description != _MADE_HERE:
        return Step(name, "left alone", "it was not made by setup")
    this = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)))
    if await client.read_deployments(work_pool_filter=this, limit=1):
        return Step(name, "left alone", "it has deployments: delete them first, then run this again")
    if await client.read_flow_runs(work_pool_filter=this, flow_run_filter=unfinished, limit=1):
        return Step(name, "left alone", "it has unfinished runs: run this again when they have ended")
    if any(worker.status is WorkerStatus.ONLINE for worker in await client.read_workers_for_work_pool(POOL)):
        return Step(name, "left alone", "it has a running worker: stop it first, then run this again")
    await client.delete_work_pool(POOL)
    return Step(name, "removed", "")


# ---------------------------------------------------------------- the credentials


async def _provide_block(client: PrefectClient, settings: Settings) -> Step:
    name = f"block {DEFAULT_BLOCK}"
    await VeogenCredentials.aregister_type_and_schema(client=client)
    found = await _load_block(client)
    if settings.api_token is None:
        if found is not None:
            return Step(name, "left alone", "it is there; no VEOGEN_API_TOKEN is set here to compare it with")
        words = "no VEOGEN_API_TOKEN is set here; add it in the UI (Blocks → Add Block → Veogen Credentials): "
        return Step(name, "left alone", f"{words}by this name, runs of deployments use it where no token is set")
    if found is None:
        base_url = settings.base_url if "base_url" in settings.model_fields_set else None
        block = VeogenCredentials(api_token=settings.api_token, base_url=base_url)
        await block.asave(DEFAULT_BLOCK, client=client)
        words = f"holds VEOGEN_API_TOKEN{' and VEOGEN_BASE_URL' if base_url else ''}; use it by its name: "
        return Step(name, "made", f'{words}VEOGEN_CREDENTIALS={DEFAULT_BLOCK}, credentials="{DEFAULT_BLOCK}"')
    if differing := _differences(found, settings):
        advice = "to replace it, `prefect block delete veogen-credentials/default`, then run this again"
        return Step(name, "left alone", f"its {differing} from this environment's; {advice}")
    return Step(name, "exists", "with this environment's token and base URL")


async def _load_block(client: PrefectClient) -> VeogenCredentials | None:
    try:
        return await VeogenCredentials.aload(DEFAULT_BLOCK, client=client)
    except ValueError as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return None
        raise


def _differences(found: VeogenCredentials, settings: Settings) -> str:
    names = []
    if found.api_token is not None and _secret(found.api_token) != _secret(settings.api_token):
        names.append("token")
    if found.base_url is not None and normal_base_url(found.base_url) != normal_base_url(settings.base_url):
        names.append("base URL")
    return f"{' and '.join(names)} {'differ' if len(names) > 1 else 'differs'}" if names else ""


def _secret(token: SecretStr | None) -> str | None:
    return None if token is None else token.get_secret_value()


# ---------------------------------------------------------------- the automations


async def _provide_healing(client: PrefectClient) -> list[Step]:
    every = heartbeat_seconds()
    needed = f"{HEARTBEAT_VARIABLE}={every}"
    detail = (
        f"without a heartbeat for {HEARTBEATS_MISSED * every} s; runs outside the pool {POOL} need {needed}",
        f"at most {MAX_HEALED} times; all three heal runs of deployments with the tag {HEALED_TAG}, no others",
        f"when a worker took it and it has not begun within {UNSTARTED_SECONDS} s",
    )
    healing = await read_healing(client, every)
    return [await _provide_automation(client, item, words) for item, words in zip(healing, detail, strict=True)]


async def _find_notifier(client: PrefectClient, name: str) -> BlockDocument:
    return await find_block(
        client,
        name,
        capability="notify",
        example="slack-webhook/NAME, microsoft-teams-webhook/NAME or custom-webhook/NAME",
        refused="can't send messages: {kind} is not a notification block",
    )


async def _provide_alerts(client: PrefectClient, block: BlockDocument | None) -> list[Step]:
    """Make the alerts; none where no block is given and there are none, as `prefect-veogen doctor` says."""
    through = "through the block as before" if block is None else f"through the block {name_of(block)}"
    detail = f"{through}, at most every {QUIET.seconds // 60} minutes about the same"
    return [await _provide_automation(client, alert, detail) for alert in await read_alerts(client, block)]


async def _provide_automation(client: PrefectClient, compared: Comparison, detail: str) -> Step:
    wanted, found = compared.wanted, compared.found
    name = f"automation {wanted.name}"
    if found is None:
        await client.create_automation(wanted)
        await keep_one(client, wanted.name)
        return Step(name, "made", detail)
    # Whoever paused it had a reason.
    paused = "" if found.enabled else f"; it is paused: `prefect automation resume {wanted.name}`"
    if compared.is_as_wanted:
        return Step(name, "exists", detail + paused)
    await client.update_automation(found.id, wanted.model_copy(update={"enabled": found.enabled}))
    await keep_one(client, wanted.name)
    return Step(name, "changed", detail + paused)


async def _withdraw_automation(client: PrefectClient, name: str) -> Step:
    found = await client.read_automations_by_name(name)
    for automation in found:
        await client.delete_automation(automation.id)
    return Step(f"automation {name}", "removed" if found else "absent", "")
