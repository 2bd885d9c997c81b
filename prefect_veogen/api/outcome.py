"""What a response means for the money: accepted, refused, busy or unknown, and the typed error of a failure. No I/O."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from prefect_veogen.api.fields import Response, money, read_json_or_none, service_text, words
from prefect_veogen.api.responses import read_generation
from prefect_veogen.errors import (
    AuthenticationError,
    ChangeTheRequest,
    ContentRejected,
    GenerationFailed,
    InsufficientBalance,
    InvalidRequest,
    ModelNotFound,
    Problem,
    RateLimited,
    ServiceUnavailable,
    UnexpectedAnswer,
    VeogenError,
)
from prefect_veogen.masking import with_masked_links

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from prefect_veogen.models import Generation

DEFAULT_RETRY_AFTER_SECONDS = 5.0
MAX_RETRY_AFTER_SECONDS = 120.0
_MODERATION = re.compile(
    r"moderat|polic|safety|nsfw|prohibited|sensitive|not allowed|violat|inappropriate", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service accepted the purchase: paid for."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Refused:
    """The service surely did not accept the purchase."""

    error: VeogenError


@dataclass(frozen=True, slots=True)
class Busy:
    """Too many requests: surely not accepted, retryable after a pause."""

    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """The purchase is in doubt: it may or may not have been accepted."""

    reason: str


Submission = Accepted | Refused | Busy | Unknown


def read_submission(response: Response, now: datetime) -> Submission:
    """Return what the response to a POST means for the money (/api-reference/generations/create)."""
    if response.status == 429:
        return Busy(retry_after_seconds(response.headers, now))
    if 200 <= response.status < 300:
        try:
            return Accepted(read_generation(response))
        except VeogenError as error:
            return Unknown(f"HTTP {response.status} with an unparseable response: {error.message}")
    # 408 and 303 may come after the work was done; a permanent or method-keeping redirect says that it was not.
    if response.status in (301, 307, 308) or (400 <= response.status < 500 and response.status != 408):
        return Refused(error_of(response, "the purchase", now))
    return Unknown(f"HTTP {response.status}: {service_text(response) or 'no explanation'}")


def error_of(response: Response, doing: str, now: datetime) -> VeogenError:
    """Return the typed error for a response that is not a success."""
    said = service_text(response)
    facts: dict[str, Any] = {"http_status": response.status, "service_text": said}
    match response.status:
        case 401 | 403:
            return AuthenticationError(f"The service refused the token for {doing}", **facts)
        case 402:
            body = read_json_or_none(response)
            body = body if isinstance(body, dict) else {}
            return InsufficientBalance(
                "The account's balance is too low",
                required_usd=money(body.get("required")),
                balance_usd=money(body.get("balance")),
                **facts,
            )
        case 404 if said and "model" in said.lower():
            return ModelNotFound("The service does not know this model", **facts)
        case 404:
            where = "Check the request, and VEOGEN_BASE_URL: it ends in /api/v1 at the service."
            return ChangeTheRequest(f"The service returned 404 for {doing}", next_step=where, **facts)
        case 422 | 400:
            return InvalidRequest(_field_problems(response), **facts)
        case 429:
            wait = retry_after_seconds(response.headers, now)
            return RateLimited(f"Too many requests during {doing}", retry_after_seconds=wait, **facts)
        case status if status >= 500 or status == 408:
            return ServiceUnavailable(f"The service failed during {doing}", **facts)
        case status if 300 <= status < 400:
            where = response.headers.get("location", "nowhere").partition("?")[0]
            return UnexpectedAnswer(f"The service redirected {doing} to {where}; redirects are not followed", **facts)
        case _:
            return ChangeTheRequest(f"The service refused {doing}", **facts)


def _field_problems(response: Response) -> list[Problem]:
    body = read_json_or_none(response)
    errors = body.get("errors") if isinstance(body, dict) else None
    if isinstance(errors, dict) and errors:
        return [
            Problem(str(name), None, f"the service says: {with_masked_links(words(said))}")
            for name, said in errors.items()
        ]
    return [Problem("request", None, f"the service says: {service_text(response) or 'nothing'}")]


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """Return the pause a 429 asks for: seconds as documented (/authentication), or an HTTP date, or a default."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (TypeError, ValueError, OverflowError):
            seconds = DEFAULT_RETRY_AFTER_SECONDS
    if not math.isfinite(seconds):
        seconds = DEFAULT_RETRY_AFTER_SECONDS
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def failure_of(generation: Generation) -> GenerationFailed:
    """Return the error of a failed generation: `ContentRejected` where the service's text mentions moderation."""
    reason = generation.error or "the service gave no reason"
    kind = ContentRejected if _MODERATION.search(reason) else GenerationFailed
    message = f"Generation {generation.id} failed: {reason.rstrip('.')}. It was not charged"
    return kind(message, generation_id=generation.id, service_text=generation.error)
