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
from prefect_veogen.campaign.kinds import Kinds
from prefect_veogen.campaign.references import placeholder_image
from prefect_veogen.campaign.run import find_stored_asset
from prefect_veogen.errors import InvalidRequest, Problem
from prefect_veogen.models import Asset, GenerationRequest, Kind
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
    animates: bool = False,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: Decimal | float | None = None,
) -> None:
    """Validate and price requests before the first of them is bought. Free, and safe to repeat.

    For an input which another of the requests makes, give `placeholder_of` that request: it isn't made yet, and has to
    be a picture. `animates` says that what is made of it has to be a clip. What was bought before is not validated
    again, and costs nothing. `budget_usd` is that with which this flow run buys. Of `later`, some may be bought once
    these are made: they are validated as well, but need no money yet.

    Raises:
        ChangeTheRequest: a model does not offer what a request asks for, or makes a clip where a picture is needed, so
            that not all of them could be bought.
        BudgetExceeded, InsufficientBalance: the money would run out half-way.
    """
    for request in (*requests, *later):
        check_is_request(request)
    session = await open_task_session(credentials, store, run_cap(budget_usd))
    await on_io(_check_requests(session, requests, later, animates=animates))


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
    session: Session, requests: Sequence[GenerationRequest], later: Sequence[GenerationRequest], *, animates: bool
) -> None:
    makers = {placeholder_of(request).sha256: request for request in requests}
    planner, possible = Planner(session), Planner(session)
    items = await planner.add([(await _fill_in_stored_images(session, one, makers), session.caps) for one in requests])
    others = await possible.add([(await _fill_in_stored_images(session, one, makers), ()) for one in later])
    for item in (*items, *others):
        if item.problem is not None:
            raise item.problem
    to_buy = [one for one, item in zip((*requests, *later), (*items, *others), strict=True) if not item.already_bought]
    await _check_kinds(session, to_buy, makers, animates=animates)
    if all(item.already_bought for item in items):
        return
    require_money(session, await planner.finish(), "That")


async def _check_kinds(
    session: Session, to_buy: Sequence[GenerationRequest], makers: Mapping[str, GenerationRequest], *, animates: bool
) -> None:
    """Validate that what stands for a picture will be one, and, if it is to be animated, that a clip is made of it."""
    kinds = Kinds(session)
    for request in to_buy:
        used = [
            makers[one.sha256] for one in request.image_urls or () if isinstance(one, Asset) and one.sha256 in makers
        ]
        needs = [(maker.model, Kind.IMAGE) for maker in used]
        needs += [(request.model, Kind.VIDEO)] if animates and used else []
        for model, needed in needs:
            if (problem := await kinds.find_problem(model, needed)) is not None:
                raise InvalidRequest([Problem("model", None, problem)])


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
