"""What flows of your own do with several requests: check, price and make them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from prefect import task
from pydantic.json_schema import SkipJsonSchema

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.campaign.references import placeholder_image
from prefect_veogen.campaign.run import find_stored_asset
from prefect_veogen.models import Asset, GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.plan import Plan, Planner, make_plan, require_money
from prefect_veogen.session import Session
from prefect_veogen.tasks.generation import check_is_request, generate, open_task_session, run_cap
from prefect_veogen.tasks.runs import name_task_run, request_name
from prefect_veogen.tasks.steps import FREE
from prefect_veogen.tasks.stores import StoreParameter

__all__ = ["InputsParameter", "Plan", "check_requests", "generate_all", "placeholder_of", "plan_requests"]

InputsParameter = list[str | SkipJsonSchema[Asset] | SkipJsonSchema[Path]]
"""The inputs of a request as a flow takes them; a deployment's form asks for links alone."""


@task(
    name="check requests",
    task_run_name=name_task_run("check", lambda of: _name_of_requests(of["requests"])),
    description="Validates and prices requests before the first of them is bought.",
    **FREE,
)
async def check_requests(
    *requests: GenerationRequest,
    later: Sequence[GenerationRequest] = (),
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: Decimal | float | None = None,
) -> None:
    """Validate and price requests before the first of them is bought. Free, and safe to repeat.

    For an input which another of the requests makes, give `placeholder_of` that request: it isn't made yet. What was
    bought before is not validated again, and costs nothing. `budget_usd` is that with which this flow run buys. Of
    `later`, some may be bought once these are made: they are validated as well, but need no money yet.

    Raises:
        ChangeTheRequest: a model does not offer what a request asks for, so that not all of them could be bought.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    for request in (*requests, *later):
        check_is_request(request)
    await on_io(_check_requests(await open_task_session(credentials, store, run_cap(budget_usd)), requests, later))


@task(
    name="plan requests",
    task_run_name=name_task_run("plan", lambda of: _name_of_requests(of["requests"])),
    description="Prices requests before the first of them is bought.",
    **FREE,
)
async def plan_requests(
    *requests: GenerationRequest,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: Decimal | float | None = None,
) -> Plan:
    """Return what requests would cost now, and whether balance and caps allow it. Free, and safe to repeat.

    What was bought before costs nothing. `budget_usd` is that with which this flow run buys. It raises nothing about
    the requests themselves: `plan.problems` names those that would be refused.
    """
    for request in requests:
        check_is_request(request)
    return await on_io(make_plan(await open_task_session(credentials, store, run_cap(budget_usd)), requests))


async def generate_all(*requests: GenerationRequest, **options: Any) -> tuple[Asset, ...]:
    """Return the assets of requests which are made at the same time; `options` are those of `generate`. COSTS MONEY.

    Safe to repeat. One that fails stops no other: the first failure is raised when all have ended.
    """
    made = await asyncio.gather(*(generate(request, **options) for request in requests), return_exceptions=True)
    if (failure := next((one for one in made if isinstance(one, BaseException)), None)) is not None:
        raise failure
    return tuple(one for one in made if isinstance(one, Asset))


def placeholder_of(request: GenerationRequest) -> Asset:
    """Return what stands for a request's picture while it isn't made yet: an input for `check_requests`. Free."""
    return placeholder_image(request.receipt_key(""))


async def _check_requests(
    session: Session, requests: Sequence[GenerationRequest], later: Sequence[GenerationRequest]
) -> None:
    makers = {placeholder_of(request).sha256: request for request in requests}
    planner, possible = Planner(session), Planner(session)
    items = await planner.add([(await _fill_in_stored_images(session, one, makers), session.caps) for one in requests])
    others = await possible.add([(await _fill_in_stored_images(session, one, makers), ()) for one in later])
    for item in (*items, *others):
        if item.problem is not None:
            raise item.problem
    if all(item.already_bought for item in items):
        return
    require_money(session, await planner.finish(), "That")


async def _fill_in_stored_images(
    session: Session, request: GenerationRequest, makers: Mapping[str, GenerationRequest]
) -> GenerationRequest:
    """Return the request with the stored picture for each placeholder: whether it was bought depends on that."""
    inputs = []
    for given in request.image_urls or ():
        maker = makers.get(given.sha256) if isinstance(given, Asset) else None
        inputs.append((await find_stored_asset(session, maker) if maker else None) or given)
    return request.model_copy(update={"image_urls": tuple(inputs)}) if inputs else request


def _name_of_requests(requests: Sequence[GenerationRequest]) -> str:
    more = f" and {len(requests) - 1} more" if len(requests) > 1 else ""
    return f"{request_name(requests[0])}{more}"
