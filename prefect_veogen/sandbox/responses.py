"""The API's error responses.

Bodies of 401, 404 for generations, 422, 429 and 500 are not documented by the vendor: those are inventions, in the one
error format that /authentication prints (`error`, `message`) and, for 422, in the way of a Laravel server.
"""

from __future__ import annotations

from typing import cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from prefect_veogen.sandbox.validation import Problems


def unauthenticated() -> Response:
    """Refuse a request without a valid token."""
    return JSONResponse({"error": "Unauthenticated.", "message": "The API token is missing or invalid."}, 401)


def insufficient_balance(required: float, balance: float) -> Response:
    """Shape the refusal as documented at /authentication."""
    message = f"This generation costs ${required:.2f} but your balance is ${balance:.2f}."
    error = "Insufficient balance."
    return JSONResponse({"error": error, "message": message, "required": required, "balance": balance}, 402)


def invalid(problems: Problems) -> Response:
    """Refuse a request, naming the problems by field."""
    every = [problem for of_field in problems.values() for problem in of_field]
    more = f" (and {len(every) - 1} more)" if len(every) > 1 else ""
    return JSONResponse({"message": every[0] + more, "errors": problems}, 422)


def too_many_requests(seconds: int) -> Response:
    """Refuse a request beyond the rate limit; it may be repeated after so many real seconds."""
    body = {"error": "Too many requests.", "message": f"Retry after {seconds} seconds."}
    return JSONResponse(body, 429, headers={"Retry-After": str(seconds)})


def generation_not_found() -> Response:
    """Respond that there is no generation with this id."""
    return JSONResponse({"error": "Generation not found."}, 404)


def model_not_found() -> Response:
    """Shape the refusal as documented at /api-reference/models/get."""
    return JSONResponse({"error": "Model not found."}, 404)


def server_error() -> Response:
    """Fail as the API's own server would: in JSON."""
    return JSONResponse({"error": "Server error.", "message": "Something went wrong."}, 500)


def gateway_page(status: int, text: str) -> Response:
    """Respond as a gateway in front of the API would: in HTML."""
    return HTMLResponse(f"<!doctype html><title>{text}</title><h1>{status} {text}</h1>", status)


async def routing_error(request: Request, error: Exception) -> Response:
    """Respond in JSON where the web framework refuses a path or a method."""
    del request
    refusal = cast("HTTPException", error)
    return JSONResponse({"error": str(refusal.detail)}, refusal.status_code, headers=dict(refusal.headers or {}))
