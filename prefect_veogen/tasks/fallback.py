"""Another request in place of one that failed: if it is asked for, and only after a failure, which is not charged."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from prefect import task

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.errors import GenerationFailed
from prefect_veogen.models import Asset, GenerationRequest, Labels
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.fallbacks import check_fallbacks as check
from prefect_veogen.tasks.artifacts import courtesy
from prefect_veogen.tasks.generation import check_is_request, generate, open_task_session, run_cap
from prefect_veogen.tasks.requests import plan_requests
from prefect_veogen.tasks.runs import name_task_run, request_name
from prefect_veogen.tasks.steps import FREE
from prefect_veogen.tasks.stores import StoreParameter

__all__ = ["check_fallbacks", "fallbacks_of", "generate_with_fallbacks"]


def fallbacks_of(
    request: GenerationRequest, models: Sequence[str] | None = None, softened_prompt: str | None = None
) -> list[GenerationRequest]:
    """Return what to make if a request fails: it with the softened prompt, then the same of each other model. Free.

    With a softened prompt, the other models get that one. All else stays as it is, the take included.

    Raises:
        InvalidRequest: one of them can't be made.
    """
    fields = {**request.set_fields(), "take": request.take}
    if softened_prompt is not None:
        fields["prompt"] = softened_prompt
    others = [*([request.model] if softened_prompt is not None else []), *(models or ())]
    return [GenerationRequest(**fields | {"model": model}) for model in others]


async def generate_with_fallbacks(
    request: GenerationRequest,
    *fallbacks: GenerationRequest,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: Decimal | float | None = None,
    timeout_seconds: float | None = None,
    labels: Labels | None = None,
) -> Asset:
    """Return the asset of a request or, if its generation failed, of the first of `fallbacks` that could be made.

    COSTS MONEY: what the one costs that is made in the end; a failed generation is not charged. All of them are
    validated and priced before the first is bought, each alone has to be within the caps, and each is checked again
    when it is bought. The options are those of `generate`. The asset's `model` and its sidecar say what was made; what
    failed is logged.

    Nothing but a failure which the service reports leads to the next one: no time-out, no doubt, no refusal. Safe to
    repeat: where a fallback was made because all before it had failed, it is found again, and nothing is bought.

    Raises:
        GenerationFailed, ContentRejected: all of them failed; nothing was charged. Running it again begins afresh.
        ChangeTheRequest, ChangeTheSetup: one of them could not be bought; nothing was.
        StillRunning, UnknownSubmission and others: as of `generate`; running it again goes on with the same one.
    """
    requests = (request, *fallbacks)
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    money: dict[str, Any] = {"budget_usd": budget_usd, **where}
    options: dict[str, Any] = {"timeout_seconds": timeout_seconds, "labels": labels, **money}
    begin = await check_fallbacks(*requests, labels=labels, **money) if fallbacks else 0
    for position, wanted in enumerate(requests[begin:], begin + 1):
        try:
            asset: Asset = await generate(wanted, **options)
        except GenerationFailed as failure:
            if position == len(requests):
                raise failure if not fallbacks else _all_failed(failure, len(requests)) from None
            await _tell(failure, wanted, requests[position], **money)
        else:
            return asset
    raise AssertionError("unreachable")


@task(
    name="check fallbacks",
    task_run_name=name_task_run("check", lambda of: f"{request_name(of['requests'][0])} and its fallbacks"),
    description="Validates and prices a request and its fallbacks before the first of them is bought.",
    **FREE,
)
async def check_fallbacks(
    *requests: GenerationRequest,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: Decimal | float | None = None,
    labels: Labels | None = None,
) -> int:
    """Return at which of a request and its fallbacks to begin: 0 is the request itself. Free, and safe to repeat.

    It is the one that an earlier call had begun when all before it had failed; else it is the first, and all of them
    can be bought.

    Raises:
        ChangeTheRequest, BudgetExceeded, InsufficientBalance: one of them could not be bought.
    """
    for request in requests:
        check_is_request(request)
    return await on_io(check(await open_task_session(credentials, store, run_cap(budget_usd), labels), requests))


async def _tell(failure: GenerationFailed, failed: GenerationRequest, instead: GenerationRequest, **money: Any) -> None:
    """Log what failed, what is made instead and for how much."""
    session = await open_task_session(money["credentials"], money["store"])
    said = "{}. Instead of {}: {}".format(failure.message, *map(request_name, (failed, instead)))
    async with courtesy(session):
        said = f"{said}, for {(await plan_requests(instead, **money)).price}"
    session.log.warning(said)


def _all_failed(failure: GenerationFailed, count: int) -> GenerationFailed:
    return type(failure)(
        f"All {count} requests failed, the last so: {failure.message}",
        generation_id=failure.generation_id,
        service_text=failure.service_text,
    )
