"""What GET responses mean: generations, the catalogue and the account, as values. No I/O.

Tolerant: missing or undocumented fields, statuses and page shapes are accepted wherever a value can still be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefect_veogen.api.fields import (
    has_more,
    member,
    money,
    read_date,
    read_json,
    read_page,
    read_record,
    service_text,
    text,
    timestamp,
    whole,
    words,
)
from prefect_veogen.errors import UnexpectedAnswer
from prefect_veogen.masking import with_masked_links
from prefect_veogen.models import CatalogueModel, Generation, Kind, Output, Status

if TYPE_CHECKING:
    from prefect_veogen.api.fields import Response

Item = TypeVar("Item")

_MAX_DURATIONS = 3600


# ---------------------------------------------------------------- generations


def read_generation(response: Response) -> Generation:
    """Return the generation in a create or get response, in either documented shape."""
    body = read_json(response)
    record = body.get("data", body) if isinstance(body, dict) else body
    generation = generation_of(record)
    if generation is None:
        raise UnexpectedAnswer(
            "The response has no generation id", http_status=response.status, service_text=service_text(response)
        )
    price = money(body.get("price_usd"))
    return generation.model_copy(update={"price_usd": price}) if price is not None else generation


def generation_of(record: Any) -> Generation | None:
    """Return a generation from its JSON object, `None` if it is not one; only the id is required."""
    if not isinstance(record, dict) or not text(record.get("id")):
        return None
    status_text = text(record.get("status"))
    parameters = record.get("parameters")
    return Generation(
        id=str(record["id"]),
        status=member(Status, status_text) or Status.UNRECOGNISED,
        status_text=status_text,
        model=text(record.get("model")),
        type=member(Kind, text(record.get("type"))),
        prompt=record.get("prompt") if isinstance(record.get("prompt"), str) else None,
        parameters=parameters if isinstance(parameters, dict) else {},
        output=_output_of(record.get("output")),
        error=with_masked_links(words(record.get("error"))).strip() or None,
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
    """How many records were unparseable."""
    at: datetime | None = None
    """The time of the response by the service's clock."""


def read_generations(response: Response, page: int) -> Page[Generation]:
    """Return a page of generations (/api-reference/generations/list); unparseable records are skipped."""
    records, last_page = read_page(response)
    parsed = [generation for record in records if (generation := generation_of(record))]
    unique = {generation.id: generation for generation in parsed}
    return Page(
        tuple(unique.values()),
        has_more=has_more(records, page, last_page),
        last_page=last_page,
        skipped=len(records) - len(parsed),
        at=read_date(response),
    )


def _output_of(record: Any) -> Output | None:
    if isinstance(record, list):
        record = next((item for item in record if isinstance(item, str | dict) and _output_of(item)), None)
    if isinstance(record, str):
        record = {"url": record}
    if not isinstance(record, dict):
        return None
    url = text(record.get("url")) or text(record.get("download_url"))
    if not url:
        return None
    return Output(url=url, content_type=text(record.get("content_type")))


# ---------------------------------------------------------------- catalogue


def read_model(response: Response) -> CatalogueModel:
    """Return one model (/api-reference/models/get)."""
    body = read_json(response)
    model = _model_of(body.get("data", body) if isinstance(body, dict) else body)
    if model is None:
        raise UnexpectedAnswer("The response has no model", http_status=response.status)
    return model


def read_models(response: Response, page: int) -> Page[CatalogueModel]:
    """Return a page of the catalogue; its shape is not documented, so every known page shape is accepted."""
    records, last_page = read_page(response)
    models = tuple(model for record in records if (model := _model_of(record)))
    return Page(models, has_more(records, page, last_page), last_page)


def _model_of(record: Any) -> CatalogueModel | None:
    if not isinstance(record, dict) or not text(record.get("slug")):
        return None
    multipliers = record.get("resolution_multipliers")
    pairs = multipliers.items() if isinstance(multipliers, dict) else ()  # PHP prints an empty object as []
    return CatalogueModel(
        slug=str(record["slug"]),
        label=text(record.get("label")),
        type=member(Kind, text(record.get("type"))),
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
        lowest, highest = whole(value["min"]), whole(value["max"])
        if lowest is None or highest is None or highest - lowest > _MAX_DURATIONS:
            return None
        return tuple(range(lowest, highest + 1)) or None
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        return tuple(number for item in items if (number := whole(item)) is not None) or None
    return None


# ---------------------------------------------------------------- account


@dataclass(frozen=True, slots=True)
class Balance:
    """What the account has left and has spent, in USD; `None` where the service did not state it."""

    remaining_usd: Decimal | None
    spent_usd: Decimal | None


def read_account(response: Response) -> Balance:
    """Return the account's money from `/account` (/api-reference/account/get)."""
    data = read_record(response)
    return Balance(money(data.get("usd_balance")), money(data.get("usd_spent")))


def read_balance(response: Response) -> Balance:
    """Return the account's money from `/balance` (/api-reference/account/balance)."""
    data = read_record(response)
    return Balance(money(data.get("remaining_balance")), money(data.get("used_balance")))


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of the statement: no generation id, only an internal model key, an amount and a time."""

    id: str
    model_key: str | None
    kind: Kind | None
    amount_usd: Decimal
    source: str | None
    created_at: datetime | None


def read_usage(response: Response, page: int) -> Page[Charge]:
    """Return a page of the statement (/api-reference/account/usage)."""
    records, last_page = read_page(response)
    charges = tuple(charge for record in records if (charge := _charge_of(record)))
    return Page(charges, has_more(records, page, last_page), last_page)


def _charge_of(record: Any) -> Charge | None:
    if not isinstance(record, dict) or (amount := money(record.get("amount_usd"))) is None:
        return None
    return Charge(
        id=str(record.get("id", "")),
        model_key=text(record.get("model_key")),
        kind=member(Kind, text(record.get("generation_type"))),
        amount_usd=amount,
        source=text(record.get("source")),
        created_at=timestamp(record.get("created_at")),
    )
