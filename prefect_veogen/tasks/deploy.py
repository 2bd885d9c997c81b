"""Deployments of the package's flows as deployments/prefect.yaml describes them, from a wheel or from a checkout."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.store import is_absolute, names_block, open_store
from prefect_veogen.tasks.block_documents import find_block
from prefect_veogen.tasks.credentials import resolve_credentials
from prefect_veogen.tasks.provision import Step

if TYPE_CHECKING:
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

_PACKAGE = Path(__file__).parents[1]
_IN_WHEEL = (_PACKAGE / "flows").is_dir()
"""Whether the flows are modules of the package: in a checkout they lie beside it."""
_ROOT = _PACKAGE if _IN_WHEEL else _PACKAGE.parent


@dataclass(frozen=True, slots=True)
class _Description:
    """A deployment as deployments/prefect.yaml describes it, and its flow."""

    flow: Flow[..., Any]
    name: str
    described: dict[str, Any]

    @property
    def full_name(self) -> str:
        return f"{self.flow.name}/{self.name}"

    def schedules(self) -> list[DeploymentScheduleCreate]:
        return [_schedule(dict(each)) for each in self.described.get("schedules", [])]

    def limit(self) -> ConcurrencyLimitConfig | None:
        limit = self.described.get("concurrency_limit")
        return None if limit is None else ConcurrencyLimitConfig.model_validate(limit)

    def options(self) -> dict[str, Any]:
        """Return the deployment's options as they are described."""
        return {
            "schedules": self.schedules(),
            "parameters": self.described.get("parameters", {}),
            "tags": self.described.get("tags", []),
            "concurrency_limit": self.limit(),
        }

    def options_beside(self, found: DeploymentResponse) -> dict[str, Any]:
        """Return them with what was changed on the server; whatever is not passed, Prefect would clear."""
        described = self.options()
        known = (found.parameter_openapi_schema or {}).get("properties", {})
        new = {name: value for name, value in described["parameters"].items() if name not in known}
        return {
            "schedules": [_same(each) for each in found.schedules],
            "parameters": {**new, **found.parameters},
            "enforce_parameter_schema": found.enforce_parameter_schema,
            "tags": [*dict.fromkeys([*described["tags"], *found.tags])],
            "concurrency_limit": _same_limit(found) or described["concurrency_limit"],
            "job_variables": found.job_variables,
            "paused": found.paused,
        }


async def deploy_flows(
    names: Sequence[str] = (), *, pool: str = "veogen", store: str | None = None, credentials: str | None = None
) -> list[Step]:
    """Deploy the package's flows under these names, by default all, to a work pool. Free, and safe to repeat.

    A name is `by-hand`, or as Prefect shows it, `image-then-animate/by-hand`.
    Workers import them from the package, which has to be installed there; in a checkout they read them from its folder.
    `store` and the name of a `credentials` block become parameters of each. What was changed on the server since it was
    deployed before stays: its parameters, but for these two and for new ones of the flow, its job variables (a cap in
    their `env`, say), its schedules and triggers, whether it is paused, a concurrency limit that it has and tags that
    were added. Set anew are the flow, the description, the work pool with its default queue, and the described tags, by
    which it is healed. New schedules are off.

    Raises:
        ConfigurationError: a name is none of them, the pool or a block is missing, or the store is relative or none;
            nothing was deployed.
    """
    given = {"store": store, "credentials": credentials}
    descriptions = _chosen(await asyncio.to_thread(_descriptions), names)
    if store is not None:
        await _check_store(store)
    if credentials is not None:
        await resolve_credentials(credentials, "--credentials")
    async with get_client() as client:
        await _check_pool(client, pool)
        parameters = {name: value for name, value in given.items() if value is not None}
        return [
            await _deploy(client, await _load(name, described), pool, parameters)
            for name, described in descriptions.items()
        ]


def _descriptions() -> dict[str, dict[str, Any]]:
    text = (_ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8")
    return {each["name"]: each for each in yaml.safe_load(text)["deployments"]}


def _chosen(known: dict[str, dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    full_names = {f"{_flow_name(described)}/{name}": name for name, described in known.items()}
    names = [full_names.get(name, name) for name in names]
    if unknown := [name for name in names if name not in known]:
        raise ConfigurationError(
            f"There is no deployment {' and no '.join(unknown)}",
            next_step=f"Nothing was deployed. There are {', '.join(known)}.",
        )
    return {name: described for name, described in known.items() if name in (names or known)}


async def _check_store(store: str) -> None:
    if not is_absolute(store):
        raise ConfigurationError(
            f"A run of a deployment needs a lasting store: {store!r} is relative to its working directory",
            next_step="Nothing was deployed. Give --store an absolute path or s3://bucket/prefix.",
        )
    if not names_block(store):
        open_store(store)
        return
    # Not loaded: that takes prefect-aws, which only workers need.
    async with get_client() as client:
        await find_block(
            client,
            store,
            capability="write-path",
            example="s3-bucket/NAME (of prefect-aws)",
            refused="can't be a store: {kind} is not a bucket",
        )


def _flow_name(described: dict[str, Any]) -> str:
    # Prefect's default for a flow's name; to load all flows only to name them would take seconds.
    name: str = described["entrypoint"].rpartition(":")[2].replace("_", "-")
    return name


async def _check_pool(client: PrefectClient, pool: str) -> None:
    try:
        await client.read_work_pool(pool)
    except ObjectNotFound:
        raise ConfigurationError(
            f"The Prefect server has no work pool {pool}",
            next_step="Nothing was deployed. `prefect-veogen setup` makes the pool veogen; any other: "
            f"`prefect work-pool create {pool} --type process`.",
        ) from None


async def _load(name: str, described: dict[str, Any]) -> _Description:
    path, _, function = described["entrypoint"].partition(":")
    if _IN_WHEEL:
        module = importlib.import_module(f"{_PACKAGE.name}.{path.removesuffix('.py').replace('/', '.')}")
        return _Description(getattr(module, function), name, described)
    flow: Flow[..., Any] = await Flow.afrom_source(source=str(_ROOT), entrypoint=described["entrypoint"])
    return _Description(flow, name, described)


async def _deploy(client: PrefectClient, wanted: _Description, pool: str, given: dict[str, Any]) -> Step:
    found = await _find(client, wanted.full_name)
    taken = inspect.signature(wanted.flow.fn).parameters
    options = wanted.options() if found is None else wanted.options_beside(found)
    parameters = {**options.pop("parameters"), **given}
    deployment: RunnerDeployment = await wanted.flow.ato_deployment(
        wanted.name,
        **options,
        parameters={name: value for name, value in parameters.items() if name in taken},
        description=wanted.described.get("description"),
        entrypoint_type=EntrypointType.MODULE_PATH if _IN_WHEEL else EntrypointType.FILE_PATH,
    )
    async with _keeping_triggers(client, found):
        deployment_id = await deployment.aapply(work_pool_name=pool)
    made = await client.read_deployment(deployment_id)
    detail = _detail(found, pool, [name for name in given if name in taken]) + _off(wanted.full_name, made)
    return Step(f"deployment {wanted.full_name}", "made" if found is None else "changed", detail)


@asynccontextmanager
async def _keeping_triggers(client: PrefectClient, found: DeploymentResponse | None) -> AsyncIterator[None]:
    """Make a deployment's own automations anew: Prefect removes those which it was not applied with, without a word."""
    owner = "" if found is None else f"prefect.deployment.{found.id}"
    related = await client.read_resource_related_automations(owner) if owner else []
    try:
        yield
    finally:
        left = {each.id for each in await client.read_resource_related_automations(owner)} if related else set()
        for lost in related:
            if lost.id not in left:
                fields = lost.model_dump(exclude={"id"}) | {"owner_resource": owner}
                await client.create_automation(AutomationCore.model_validate(fields))


async def _find(client: PrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _detail(found: DeploymentResponse | None, pool: str, given: Sequence[str]) -> str:
    where = f"in the work pool {pool}"
    if found is not None:
        now = f"; {' and '.join(given)} as given now" if given else ""
        return f"{where}{now}; what {'else ' if now else ''}was changed on the server is as it was"
    return where


def _off(name: str, made: DeploymentResponse) -> str:
    """Return how each schedule that is off is switched on: the command wants its id, which only the server knows."""
    resume = [f"`prefect deployment schedule resume {name} {each.id}`" for each in made.schedules if not each.active]
    return f"; its schedule is off until you resume it: {' and '.join(resume)}" if resume else ""


def _same(schedule: DeploymentSchedule) -> DeploymentScheduleCreate:
    kept = ("schedule", "active", "max_scheduled_runs", "parameters", "slug")
    return DeploymentScheduleCreate(**{name: getattr(schedule, name) for name in kept})


def _same_limit(found: DeploymentResponse) -> ConcurrencyLimitConfig | None:
    if found.global_concurrency_limit is None:
        return None
    options = found.concurrency_options.model_dump() if found.concurrency_options else {}
    return ConcurrencyLimitConfig(limit=found.global_concurrency_limit.limit, **options)


def _schedule(described: dict[str, Any]) -> DeploymentScheduleCreate:
    active = described.pop("active", True)
    kind = CronSchedule if "cron" in described else IntervalSchedule
    return DeploymentScheduleCreate(schedule=kind.model_validate(described), active=active)
