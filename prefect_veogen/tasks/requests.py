"""Checks of requests before the first of them is bought, for flows of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import task

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.campaign.references import placeholder_image
from prefect_veogen.campaign.run import stored_asset
from prefect_veogen.models import Asset, GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.inputs import identify_inputs
from prefect_veogen.purchase.plan import is_bought, priced
from prefect_veogen.session import Session
from prefect_veogen.tasks.generation import FREE, check_is_request, session_for_task
from prefect_veogen.tasks.runs import name_task_run, request_name

__all__ = ["check_requests", "placeholder_of"]


@task(
    name="check requests",
    task_run_name=name_task_run("check", lambda of: _name_of_requests(of["requests"])),
    description="Validates and prices requests before the first of them is bought.",
    **FREE,
)
async def check_requests(
    *requests: GenerationRequest,
    credentials: VeogenCredentials | str | None = None,
    store: str | Path | None = None,
) -> None:
    """Validate and price requests before the first of them is bought. Free, and safe to repeat.

    For an input which another of the requests makes, give `placeholder_of` that request: it isn't made yet. What was
    bought before is not validated again.

    Raises:
        ChangeTheRequest: a model does not offer what a request asks for, so that not all of them could be bought.
    """
    for request in requests:
        check_is_request(request)
    await on_io(_check_requests(await session_for_task(credentials, store), requests))


def placeholder_of(request: GenerationRequest) -> Asset:
    """Return what stands for a request's picture while it isn't made yet: an input for `check_requests`. Free."""
    return placeholder_image(request.receipt_key(""))


async def _check_requests(session: Session, requests: Sequence[GenerationRequest]) -> None:
    makers = {placeholder_of(request).sha256: request for request in requests}
    for request in requests:
        known = await identify_inputs(session, await _with_stored_images(session, request, makers))
        if not await is_bought(session, known.receipt_key(session.client.base_url)):
            await priced(session, known)


async def _with_stored_images(
    session: Session, request: GenerationRequest, makers: Mapping[str, GenerationRequest]
) -> GenerationRequest:
    """Return the request with the stored picture for each placeholder: whether it was bought depends on that."""
    inputs = []
    for given in request.image_urls or ():
        maker = makers.get(given.sha256) if isinstance(given, Asset) else None
        inputs.append((await stored_asset(session, maker) if maker else None) or given)
    return request.model_copy(update={"image_urls": tuple(inputs)}) if inputs else request


def _name_of_requests(requests: Sequence[GenerationRequest]) -> str:
    more = f" and {len(requests) - 1} more" if len(requests) > 1 else ""
    return f"{request_name(requests[0])}{more}"
