"""The tasks: submit, wait, download, and the three in a row."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from uuid import uuid4

from prefect import get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import exception_to_failed_state
from prefect.tasks import Task
from prefect.utilities.callables import get_call_parameters
from prefect.utilities.visualization import get_task_viz_tracker

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.download.deliver import deliver
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import Asset, Generation, GenerationRequest, Labels, in_usd
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import check_timeout, wait
from prefect_veogen.session import Session, open_session
from prefect_veogen.settings import Settings
from prefect_veogen.tasks.artifacts import showing
from prefect_veogen.tasks.credentials import resolve_credentials
from prefect_veogen.tasks.durability import check_store_is_durable
from prefect_veogen.tasks.events import emit
from prefect_veogen.tasks.runs import generation_name, name_task_run, request_name
from prefect_veogen.tasks.shared_limit import use_shared_limit
from prefect_veogen.tasks.steps import Step, is_retryable, reused, step
from prefect_veogen.tasks.stores import StoreParameter, resolve_store

if TYPE_CHECKING:
    from decimal import Decimal

    from prefect.client.schemas.objects import State

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_PROCESS = f"process-{uuid4().hex[:12]}"


def _check_argument(value: Any, kind: type[object], example: str) -> None:
    if not isinstance(value, kind):
        raise ConfigurationError(
            f"A {kind.__name__} is needed, not a {type(value).__name__}",
            next_step=f"Nothing was bought. Give {example}.",
        )


def check_is_request(request: GenerationRequest) -> None:
    """Refuse anything else, which no type checker has seen, by a `ConfigurationError`."""
    _check_argument(request, GenerationRequest, 'GenerationRequest(model="gpt-4o-image", prompt="…")')


def _check_generation(generation: Generation) -> None:
    _check_argument(generation, Generation, 'what submit_generation returned, or Generation(id="…")')


@step(
    name="submit generation",
    task_run_name=name_task_run("submit", lambda of: request_name(of["request"])),
    description="Buys one generation, unless the ledger shows that it was bought before.",
    retries=4,
    retry_delay_seconds=[2, 5, 15, 45],
    retry_condition_fn=is_retryable,
    # A cached result exists only after the task has ended: too late to guard money. The ledger guards it.
    cache_policy=NO_CACHE,
)
async def submit_generation(
    request: GenerationRequest,
    *,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: Decimal | float | None = None,
    labels: Labels | None = None,
) -> Generation:
    """Buy what the request asks for, at most once, and return the generation.

    COSTS MONEY: what the catalogue quotes for the request, once per equal request and `take`, however often and
    wherever this runs; a purchase made before is returned instead (the task run then reads "Cached"). `budget_usd` caps
    what this flow run may spend (outside of a flow: this process), besides the day's cap `VEOGEN_BUDGET_USD` and those
    of `VEOGEN_BUDGETS`, which go by `labels`: your own words on the purchase, such as `{"project": "spring"}`. They
    make no other request of it, and a purchase made before keeps those that it was bought with.

    Raises:
        ChangeTheRequest, ChangeTheSetup: nothing was bought.
        TryAgainLater: a transient failure, and the task's retries are used up; running again never buys twice.
        UnknownSubmission: in doubt, it may have been bought; running again after `doubt_until` searches again.
    """
    check_is_request(request)
    session = await open_task_session(credentials, store, run_cap(budget_usd), labels)
    purchase = await on_io(buy(session, request))
    generation = purchase.generation
    if purchase.reused:
        session.log.info("Generation %s was bought before: nothing to pay", generation.id)
        if session.labels and purchase.labels != session.labels:
            session.log.info("It keeps the labels that it was bought with: %s", dict(purchase.labels) or "none")
        before = in_usd(generation.price_usd)
        return reused(generation, f"Reused: generation {generation.id} was bought before for {before}; nothing to pay")
    session.log.info("Bought generation %s for %s", generation.id, in_usd(generation.price_usd))
    return generation


@step(
    name="wait for generation",
    task_run_name=name_task_run("wait for", lambda of: generation_name(of["generation"])),
    description="Waits until a generation is completed, however many others wait at the same time.",
    retries=3,
    retry_delay_seconds=[2, 5, 15],
    retry_condition_fn=is_retryable,
    # A cached result would put the link, which may be signed, where results are stored. Asking again costs nothing.
    cache_policy=NO_CACHE,
)
async def wait_for_generation(
    generation: Generation,
    *,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    timeout_seconds: float | None = None,
) -> Generation:
    """Return the generation when it is completed. Free, and safe to repeat.

    All waits of the process share their polls. `timeout_seconds` counts from the start of the wait; unset, it is
    `VEOGEN_WAIT_TIMEOUT_SECONDS`, else 10 minutes for an image and 30 for a video. A service that doesn't respond for
    a while fails nothing.

    Raises:
        StillRunning: the time is over, the generation is not; it carries the id, and running again re-attaches.
        GenerationFailed, ContentRejected: it failed, and was not charged (/quickstart).
        PersonNeeded: the service keeps returning 404 for the generation, or no output of it.
    """
    _check_generation(generation)
    check_timeout(timeout_seconds)
    session = await open_task_session(credentials, store)
    is_stored = generation.is_over and generation.output is None
    try:
        ended = await on_io(wait(session, generation, timeout_seconds))
    except asyncio.CancelledError:
        session.log.warning(
            "Stopped waiting. Generation %s goes on at the service, which can't cancel it; it cost %s. "
            "The next run of the same request adopts it and pays nothing.",
            generation.id,
            in_usd(generation.price_usd),
        )
        raise
    return reused(ended, "Reused: its asset is stored, nothing to wait for") if is_stored else ended


@step(
    name="download asset",
    task_run_name=name_task_run("download", lambda of: generation_name(of["generation"])),
    description="Streams a completed generation's media into the store, verified, with its provenance beside it.",
    retries=5,
    retry_delay_seconds=[1, 2, 5, 15, 30],
    retry_condition_fn=is_retryable,
    # The ledger knows what is stored, and unlike a cached result it notices when the object is gone or changed.
    cache_policy=NO_CACHE,
)
async def download_asset(
    generation: Generation,
    *,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> Asset:
    """Return the asset of a completed generation, in the store and verified. Free, and safe to repeat.

    The object appears only when all its bytes are there and are the media they claim to be; a JSON sidecar beside it
    says where it comes from. An asset that is already there, intact, is returned as it is ("Cached").

    Raises:
        DownloadBroken: the media host kept breaking off.
        MediaRejected: what it served is not valid media (the bytes are quarantined below `rejected/`), or a
            setting keeps it out.
        OutputMissing: the service names nothing to download.
    """
    _check_generation(generation)
    session = await open_task_session(credentials, store)
    async with showing(session) as shown:
        delivery = await on_io(deliver(shown, generation))
    uri = delivery.asset.uri
    session.log.info("%s %s", "Already stored:" if delivery.reused else "Stored", uri)
    return reused(delivery.asset, f"Reused: already stored at {uri}") if delivery.reused else delivery.asset


AnyStep = Task[..., Coroutine[Any, Any, Any]]

_FOR_EACH_STEP = {
    "asset_deps",
    "log_prints",
    "retries",
    "retry_condition_fn",
    "retry_delay_seconds",
    "retry_jitter_factor",
    "tags",
    "timeout_seconds",
}
_FOR_SOME_STEPS = {"description", "name", "on_completion", "on_failure", "on_running", "task_run_name"}


class _Chain(Step[Parameters, Result]):
    """Submits, waits and downloads: awaited, the three show in the caller's own run; else they have one around them.

    Awaited, it ends as the last of its steps did. Options of `with_options` that concern running apply to each step,
    hooks are called once, and a name is put before the steps' own. Options that keep or cache the result make a run
    around the three: only that has such a result.
    """

    given: Mapping[str, Any] = MappingProxyType({})

    if not TYPE_CHECKING:  # declared as Prefect's own

        def with_options(self, **options: Any) -> Any:
            changed = super().with_options(**options)
            changed.given = {**self.given, **options}
            return changed

        def __call__(self, *args: Any, return_state: bool = False, wait_for: Any = None, **kwargs: Any) -> Any:
            if self.given.keys() - _FOR_EACH_STEP - _FOR_SOME_STEPS or get_task_viz_tracker():
                return super().__call__(*args, return_state=return_state, wait_for=wait_for, **kwargs)
            call = get_call_parameters(self.fn, args, kwargs)
            return self._run_to_end(call, return_state=return_state, wait_for=wait_for)

    async def _run_to_end(self, call: dict[str, Any], *, return_state: bool, wait_for: Any) -> Any:
        state = await _run_steps(self._steps(call), **call, wait_for=wait_for)
        return state if return_state else await state.aresult()

    def _steps(self, call: dict[str, Any]) -> tuple[AnyStep, AnyStep, AnyStep]:
        """Return the three steps, with the options of the chain."""
        shared: dict[str, Any] = {name: value for name, value in self.given.items() if name in _FOR_EACH_STEP}
        if self.on_failure_hooks:
            shared["on_failure"] = self.on_failure_hooks
        first: dict[str, Any] = {"on_running": self.on_running_hooks} if self.on_running_hooks else {}
        last: dict[str, Any] = {"on_completion": self.on_completion_hooks} if self.on_completion_hooks else {}
        label, (submit, wait, download) = self._label(call), _STEPS
        return (
            _changed(submit, label, shared | first),
            _changed(wait, label, shared),
            _changed(download, label, shared | last),
        )

    def _label(self, call: dict[str, Any]) -> str | None:
        name = self.given.get("task_run_name")
        if callable(name):
            return str(name(parameters=call) if "parameters" in inspect.signature(name).parameters else name())
        return name.format(**call) if isinstance(name, str) else self.given.get("name")


def _changed(step: AnyStep, label: str | None, options: Mapping[str, Any]) -> AnyStep:
    if label is not None:
        own: Any = step.task_run_name

        def labelled(parameters: dict[str, Any]) -> str:
            return f"{label}: {own(parameters)}"

        options = {**options, "task_run_name": labelled}
    return step.with_options(**options) if options else step


async def _run_steps(
    steps: tuple[AnyStep, AnyStep, AnyStep],
    request: GenerationRequest,
    *,
    credentials: Any,
    store: Any,
    budget_usd: Any,
    timeout_seconds: Any,
    labels: Any,
    wait_for: Any = None,
) -> State[Any]:
    """Return the state of the step with which the three ended."""
    try:
        check_timeout(timeout_seconds)
    except ConfigurationError as error:
        return await exception_to_failed_state(error)
    submit, wait, download = steps
    where: dict[str, Any] = {"credentials": credentials, "store": store, "return_state": True}
    state: Any = await submit(request, budget_usd=budget_usd, labels=labels, wait_for=wait_for, **where)
    if state.is_completed():
        state = await wait(await state.aresult(), timeout_seconds=timeout_seconds, **where)
    if state.is_completed():
        state = await download(await state.aresult(), **where)
    return cast("State[Any]", state)


def _chain(function: Callable[Parameters, Result]) -> _Chain[Parameters, Result]:
    return _Chain(
        function,
        name="generate",
        task_run_name=name_task_run("generate", lambda of: request_name(of["request"])),
        description="Submits, waits and downloads.",
        cache_policy=NO_CACHE,
    )


@_chain
async def generate(
    request: GenerationRequest,
    *,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: Decimal | float | None = None,
    timeout_seconds: float | None = None,
    labels: Labels | None = None,
) -> Asset:
    """Return the asset of a request: submit, wait and download in a row.

    COSTS MONEY like `submit_generation`, whose cost, options and errors it shares with the other two. Safe to repeat:
    it goes on wherever an earlier run was stopped.

    Awaited, its three steps show in the caller's own run; submitted or mapped, they have a task run around them. It
    takes what every Prefect task takes: awaited with `return_state=True`, it gives the state of the step with which it
    ended; the first step waits for `wait_for`; of `with_options`, each step has the retries, the time-out, the tags.
    """
    options: dict[str, Any] = {"budget_usd": budget_usd, "timeout_seconds": timeout_seconds, "labels": labels}
    state = await _run_steps(_STEPS, request, credentials=credentials, store=store, **options)
    asset = cast("Asset", await state.aresult())
    return reused(asset, state.message or "") if state.name == "Cached" else asset


_STEPS: tuple[AnyStep, AnyStep, AnyStep] = (submit_generation, wait_for_generation, download_asset)


async def open_task_session(
    credentials: VeogenCredentials | str | None,
    store: StoreParameter | None,
    cap: Cap | None = None,
    labels: Labels | None = None,
) -> Session:
    """Return what a task works with: argument → block → environment → default."""
    settings = Settings()
    block = await resolve_credentials(credentials, settings=settings)
    session = open_session(
        settings=settings,
        token=block.api_token if block else None,
        base_url=block.base_url if block else None,
        store=await resolve_store(store, settings=settings),
        caps=() if cap is None else (cap,),
        flow_run_id=flow_run.id,
        # Prefect's run logger warns at every line where there is no flow run to log to.
        log=get_run_logger() if flow_run.id else None,
        labels=labels,
    )
    await check_store_is_durable(session.settings.store if store is None else store)
    await use_shared_limit(session)
    return replace(session, emit=emit)


def run_cap(budget_usd: Decimal | float | None) -> Cap | None:
    """Return the cap of this flow run, or of this process where there is none."""
    return Cap.of(f"run-{flow_run.id}" if flow_run.id else _PROCESS, budget_usd)
