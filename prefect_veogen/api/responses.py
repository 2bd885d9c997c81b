"""What the API's answers mean: values in, values or errors out, no I/O and no waiting.

Tolerant in what it reads: fields, statuses, page shapes and error bodies which the documentation lacks are lived with.
Strict in what it writes: only fields that the caller set.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

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
    with_masked_links,
)
from prefect_veogen.models import CatalogueModel, Generation, Kind, Output, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Item = TypeVar("Item")
Member = TypeVar("Member", Status, Kind)

DEFAULT_RETRY_AFTER_SECONDS = 5.0
MAX_RETRY_AFTER_SECONDS = 120.0
_DEEPEST = 20  # levels of an answer in which words are looked for
_WIDEST_SECONDS = 3600
_MODERATION = re.compile(
    r"moderat|polic|safety|nsfw|prohibited|sensitive|not allowed|violat|inappropriate", re.IGNORECASE
)


class Answer(NamedTuple):
    """One HTTP answer, whole: status, lower-cased headers, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


# ---------------------------------------------------------------- purchases


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service took the order: paid for."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Refused:
    """The service surely did not take the order."""

    error: VeogenError


@dataclass(frozen=True, slots=True)
class Busy:
    """Too many requests: surely not taken, and to be sent again after a pause."""

    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can say whether the order was taken."""

    reason: str


Submission = Accepted | Refused | Busy | Unknown


def read_submission(answer: Answer, now: datetime) -> Submission:
    """Return what the answer to a POST means for the money (/api-reference/generations/create)."""
    if answer.status == 429:
        return Busy(retry_after_seconds(answer.headers, now))
    if 200 <= answer.status < 300:
        try:
            return Accepted(read_generation(answer))
        except VeogenError as error:
            return Unknown(f"HTTP {answer.status} with an answer nobody can read: {error.message}")
    # 408 and 303 may come after the work was done; a permanent or method-keeping redirect says that it was not.
    if answer.status in (301, 307, 308) or (400 <= answer.status < 500 and answer.status != 408):
        return Refused(error_of(answer, "the purchase", now))
    return Unknown(f"HTTP {answer.status}: {service_text(answer) or 'no explanation'}")


# ---------------------------------------------------------------- errors


def error_of(answer: Answer, doing: str, now: datetime) -> VeogenError:
    """Return the typed error for an answer that is none of success."""
    text = service_text(answer)
    facts: dict[str, Any] = {"http_status": answer.status, "service_text": text}
    match answer.status:
        case 401 | 403:
            return AuthenticationError(f"The service refused the token for {doing}", **facts)
        case 402:
            body = _json_or_none(answer)
            body = body if isinstance(body, dict) else {}
            return InsufficientBalance(
                "The account's balance is too low",
                required_usd=money(body.get("required")),
                balance_usd=money(body.get("balance")),
                **facts,
            )
        case 404 if text and "model" in text.lower():
            return ModelNotFound("The service does not know this model", **facts)
        case 404:
            where = "Check what was asked for, and VEOGEN_BASE_URL: it ends in /api/v1 at the service."
            return ChangeTheRequest(f"The service knows nothing of {doing}", next_step=where, **facts)
        case 422 | 400:
            return InvalidRequest(_field_problems(answer), **facts)
        case 429:
            wait = retry_after_seconds(answer.headers, now)
            return RateLimited(f"Too many requests during {doing}", retry_after_seconds=wait, **facts)
        case status if status >= 500 or status == 408:
            return ServiceUnavailable(f"The service failed during {doing}", **facts)
        case status if 300 <= status < 400:
            where = answer.headers.get("location", "nowhere").partition("?")[0]
            return UnexpectedAnswer(f"The service redirected {doing} to {where}; redirects are not followed", **facts)
        case _:
            return ChangeTheRequest(f"The service refused {doing}", **facts)


def service_text(answer: Answer) -> str | None:
    """Return whatever the service said in words, shortened; `None` if nothing readable."""
    body = _json_or_none(answer)
    if body is None:
        text = answer.body.decode("utf-8", "replace").strip()
        if "<" in text:
            title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
            text = f"an HTML page{': ' + title[1].strip() if title else ''}"
    else:
        text = _words(body)
    # What a service can't read it likes to quote, and a link's signature is a secret while it lasts.
    text = " ".join(with_masked_links(text).split())
    return (text[:300] + "…" if len(text) > 300 else text) or None


def failure_of(generation: Generation) -> GenerationFailed:
    """Return the error of a failed generation; moderation is told apart where the service's text allows it."""
    text = generation.error or "the service gave no reason"
    kind = ContentRejected if _MODERATION.search(text) else GenerationFailed
    message = f"Generation {generation.id} failed: {text}. It was not charged"
    return kind(message, generation_id=generation.id, service_text=generation.error)


def read_date(answer: Answer) -> datetime | None:
    """Return what time it is at the service, to the second; `None` if the response has no valid `Date`."""
    try:
        date = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, TypeError, ValueError):
        return None
    return date if date.tzinfo else None


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """Return how long a 429 asks to wait: seconds as documented (/authentication), or an HTTP date, or a default."""
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


def _words(body: Any, depth: int = 0) -> str:
    if isinstance(body, str):
        return body
    if depth > _DEEPEST:
        return "…"
    if isinstance(body, dict):
        told = [body[name] for name in ("error", "message", "detail", "errors", "code") if body.get(name)]
        parts = [_words(part, depth + 1) for part in told]
        return " ".join(dict.fromkeys(part for part in parts if part)) or (
            " ".join(f"{name}: {_words(value, depth + 1)}" for name, value in body.items() if value)
        )
    if isinstance(body, list):
        return " ".join(_words(item, depth + 1) for item in body)
    return "" if body is None else str(body)


def _field_problems(answer: Answer) -> list[Problem]:
    body = _json_or_none(answer)
    errors = body.get("errors") if isinstance(body, dict) else None
    if isinstance(errors, dict) and errors:
        return [
            Problem(str(name), None, f"the service says: {with_masked_links(_words(text))}")
            for name, text in errors.items()
        ]
    return [Problem("request", None, f"the service says: {service_text(answer) or 'nothing'}")]


# ---------------------------------------------------------------- generations


def read_generation(answer: Answer) -> Generation:
    """Return the generation of a create or get answer, in either documented shape."""
    body = _json(answer)
    record = body.get("data", body) if isinstance(body, dict) else body
    generation = generation_of(record)
    if generation is None:
        raise UnexpectedAnswer(
            "The answer holds no generation id", http_status=answer.status, service_text=service_text(answer)
        )
    price = money(body.get("price_usd"))
    return generation.model_copy(update={"price_usd": price}) if price is not None else generation


def generation_of(record: Any) -> Generation | None:
    """Return one generation object, or `None` if it is none; only its id is indispensable."""
    if not isinstance(record, dict) or not _text(record.get("id")):
        return None
    status_text = _text(record.get("status"))
    parameters = record.get("parameters")
    return Generation(
        id=str(record["id"]),
        status=_member(Status, status_text) or Status.UNRECOGNISED,
        status_text=status_text,
        model=_text(record.get("model")),
        type=_member(Kind, _text(record.get("type"))),
        prompt=record.get("prompt") if isinstance(record.get("prompt"), str) else None,
        parameters=parameters if isinstance(parameters, dict) else {},
        output=_output_of(record.get("output")),
        error=with_masked_links(_words(record.get("error"))).strip() or None,
        created_at=timestamp(record.get("created_at")),
        completed_at=timestamp(record.get("completed_at")),
        price_usd=money(record.get("price_usd")),
    )


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list and whether another may follow."""

    items: tuple[Item, ...]
    has_more: bool
    last_page: int | None = None
    """The number of the last page, if the service states it."""
    skipped: int = 0
    """How many records could not be read."""
    at: datetime | None = None
    """When the service answered, by its own clock."""


def read_generations(answer: Answer, page: int) -> Page[Generation]:
    """Return a page of generations (/api-reference/generations/list); records that can't be read are skipped."""
    records, last_page = _page(answer)
    read = [generation for record in records if (generation := generation_of(record))]
    found = {generation.id: generation for generation in read}
    return Page(
        tuple(found.values()),
        has_more=_has_more(records, page, last_page),
        last_page=last_page,
        skipped=len(records) - len(read),
        at=read_date(answer),
    )


def _output_of(record: Any) -> Output | None:
    if isinstance(record, list):
        record = next((item for item in record if isinstance(item, str | dict) and _output_of(item)), None)
    if isinstance(record, str):
        record = {"url": record}
    if not isinstance(record, dict):
        return None
    url = _text(record.get("url")) or _text(record.get("download_url"))
    if not url:
        return None
    return Output(url=url, content_type=_text(record.get("content_type")))


# ---------------------------------------------------------------- catalogue


def read_model(answer: Answer) -> CatalogueModel:
    """Return one model (/api-reference/models/get)."""
    body = _json(answer)
    model = _model_of(body.get("data", body) if isinstance(body, dict) else body)
    if model is None:
        raise UnexpectedAnswer("The answer holds no model", http_status=answer.status)
    return model


def read_models(answer: Answer, page: int) -> Page[CatalogueModel]:
    """Return a page of the catalogue; its shape is not documented, so every known page shape is read."""
    records, last_page = _page(answer)
    models = tuple(model for record in records if (model := _model_of(record)))
    return Page(models, _has_more(records, page, last_page), last_page)


def _model_of(record: Any) -> CatalogueModel | None:
    if not isinstance(record, dict) or not _text(record.get("slug")):
        return None
    multipliers = record.get("resolution_multipliers")
    pairs = multipliers.items() if isinstance(multipliers, dict) else ()  # PHP prints an empty object as []
    return CatalogueModel(
        slug=str(record["slug"]),
        label=_text(record.get("label")),
        type=_member(Kind, _text(record.get("type"))),
        price_usd=money(record.get("price_usd")),
        multiply_by_duration=record.get("multiply_by_duration") in (True, 1, "1", "true"),
        resolution_multipliers={str(name): number for name, value in pairs if (number := money(value)) is not None},
        supported_params=_names(record.get("supported_params")),
        aspect_ratios=_names(record.get("aspect_ratios")),
        resolutions=_names(record.get("resolutions")),
        durations=_durations(record.get("durations")),
        modes=_names(record.get("modes")),
        styles=_names(record.get("styles")),
    )


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, dict):
        value = list(value.values()) if all(str(key).isdigit() for key in value) else list(value)
    if not isinstance(value, list):
        return None
    return tuple(str(item) for item in value if isinstance(item, str | int)) or None


def _durations(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, dict) and {"min", "max"} <= value.keys():
        least, most = _whole(value["min"]), _whole(value["max"])
        if least is None or most is None or most - least > _WIDEST_SECONDS:
            return None
        return tuple(range(least, most + 1)) or None
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        return tuple(number for item in items if (number := _whole(item)) is not None) or None
    return None


# ---------------------------------------------------------------- account


@dataclass(frozen=True, slots=True)
class Balance:
    """What the account holds and has spent, in USD; `None` where the service did not say."""

    remaining_usd: Decimal | None
    spent_usd: Decimal | None


def read_account(answer: Answer) -> Balance:
    """Return the account's money from `/account` (/api-reference/account/get)."""
    data = _record(answer)
    return Balance(money(data.get("usd_balance")), money(data.get("usd_spent")))


def read_balance(answer: Answer) -> Balance:
    """Return the account's money from `/balance` (/api-reference/account/balance)."""
    data = _record(answer)
    return Balance(money(data.get("remaining_balance")), money(data.get("used_balance")))


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of the statement; it names no generation, only an internal model key, an amount and a time."""

    id: str
    model_key: str | None
    kind: Kind | None
    amount_usd: Decimal
    source: str | None
    created_at: datetime | None


def read_usage(answer: Answer, page: int) -> Page[Charge]:
    """Return a page of the statement (/api-reference/account/usage)."""
    records, last_page = _page(answer)
    charges = tuple(charge for record in records if (charge := _charge_of(record)))
    return Page(charges, _has_more(records, page, last_page), last_page)


def _charge_of(record: Any) -> Charge | None:
    if not isinstance(record, dict) or (amount := money(record.get("amount_usd"))) is None:
        return None
    return Charge(
        id=str(record.get("id", "")),
        model_key=_text(record.get("model_key")),
        kind=_member(Kind, _text(record.get("generation_type"))),
        amount_usd=amount,
        source=_text(record.get("source")),
        created_at=timestamp(record.get("created_at")),
    )


# ---------------------------------------------------------------- readers of single things


def money(value: Any) -> Decimal | None:
    """Return an amount exactly as written, from a JSON number or a numeric string."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        amount = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None


def timestamp(value: Any) -> datetime | None:
    """Return an aware time from any of the three documented spellings; `None` for anything else."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _json(answer: Answer) -> Any:
    body = _json_or_none(answer)
    if body is None:
        raise UnexpectedAnswer(
            "The service did not answer with JSON", http_status=answer.status, service_text=service_text(answer)
        )
    return body


def _json_or_none(answer: Answer) -> Any:
    try:
        return _without_half_characters(json.loads(answer.body, parse_float=Decimal))
    except (ValueError, RecursionError, InvalidOperation):
        return None


def _without_half_characters(value: Any) -> Any:
    """Return the value with "?" for lone surrogates (a cut emoji, for instance), which no file or log can hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_without_half_characters(item) for item in value]
    if isinstance(value, dict):
        return {_without_half_characters(name): _without_half_characters(item) for name, item in value.items()}
    return value


def _record(answer: Answer) -> dict[str, Any]:
    body = _json(answer)
    data = body.get("data", body) if isinstance(body, dict) else None
    if not isinstance(data, dict):
        raise UnexpectedAnswer("The answer holds no record", http_status=answer.status)
    return data


def _page(answer: Answer) -> tuple[Sequence[Any], int | None]:
    """Return records, and the number of the last page if stated, from any of the three documented page shapes."""
    body = _json(answer)
    records = body.get("data") if isinstance(body, dict) else body
    if isinstance(records, dict):  # PHP prints a list with gaps as an object
        records = list(records.values())
    if not isinstance(records, list):
        raise UnexpectedAnswer("The answer holds no list", http_status=answer.status, service_text=service_text(answer))
    meta = body if isinstance(body, dict) else {}
    if isinstance(meta.get("meta"), dict):
        meta = meta["meta"]
    total, per_page, last = (_whole(meta.get(name)) for name in ("total", "per_page", "last_page"))
    if last is None and total is not None and per_page:
        last = -(-total // per_page)
    return records, last


def _has_more(records: Sequence[Any], page: int, last_page: int | None) -> bool:
    return bool(records) and last_page is not None and page < last_page


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return int(str(value))
    except ValueError:
        return None


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def _member(enum: type[Member], text: str | None) -> Member | None:
    return next((member for member in enum if member.value == text), None)
