"""How armed faults bend the API's responses. Faults of the media host: `media_host`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import Response

from prefect_veogen.sandbox.connections import DroppedConnection
from prefect_veogen.sandbox.faults import Fault
from prefect_veogen.sandbox.responses import (
    gateway_page,
    generation_not_found,
    insufficient_balance,
    invalid,
    server_error,
    too_many_requests,
    unauthenticated,
)

Responses = dict[str, Callable[[], Response]]


def refuse_purchase(fault: Fault | None, *, price: float, balance: float) -> Response | None:
    """Return a response that refuses the purchase, if the fault says so; None means buy."""
    if fault is None:
        return None
    refusals: Responses = {
        "lost-answer-before-charge": DroppedConnection,
        "500-before-charge": server_error,
        "503-before-charge": lambda: gateway_page(503, "Service Unavailable"),
        "429": lambda: too_many_requests(fault.parameters["retry_after"]),
        "402": lambda: insufficient_balance(price, min(balance, price / 2)),
        "401": unauthenticated,
        "422": lambda: invalid({fault.parameters["field"]: [fault.parameters["message"]]}),
    }
    refuse = refusals.get(fault.name)
    return refuse() if refuse else None


async def bend_purchase(fault: Fault | None, response: Response) -> Response:
    """Spoil or delay the response to a purchase that was made."""
    if fault is None:
        return response
    if fault.name == "slow-answer":
        await asyncio.sleep(fault.parameters["seconds"])
        return response
    spoilt: Responses = {
        "lost-answer-after-charge": DroppedConnection,
        "500-after-charge": server_error,
        "502-after-charge": lambda: gateway_page(502, "Bad Gateway"),
        "garbled-json-after-charge": lambda: _garble(response),
        "empty-body-after-charge": lambda: Response(b"", 201, media_type="application/json"),
        "html-after-charge": lambda: gateway_page(201, "Please wait"),
    }
    return spoilt[fault.name]()


async def bend_poll(fault: Fault | None, response: Response) -> Response:
    """Spoil or delay the response to a poll, of one generation or of the list."""
    if fault is None:
        return response
    if fault.name == "look-slow":
        await asyncio.sleep(fault.parameters["seconds"])
        return response
    spoilt: Responses = {
        "look-500": server_error,
        "list-500": server_error,
        "look-dropped": DroppedConnection,
        "look-garbled": lambda: _garble(response),
        "look-html": lambda: gateway_page(200, "Please wait"),
        "look-429": lambda: too_many_requests(fault.parameters["retry_after"]),
        "look-401": unauthenticated,
        "look-404": generation_not_found,
    }
    return spoilt[fault.name]()


def bend_catalogue(fault: Fault | None, response: Response) -> Response:
    """Spoil the response about the catalogue or one of its models."""
    if fault is None:
        return response
    spoilt: Responses = {
        "model-500": server_error,
        "model-html": lambda: gateway_page(200, "Please wait"),
        "model-dropped": DroppedConnection,
    }
    return spoilt[fault.name]()


def _garble(response: Response) -> Response:
    half = bytes(response.body)[: len(response.body) // 2]
    return Response(half, response.status_code, media_type="application/json")
