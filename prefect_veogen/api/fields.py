"""Readers of single values in a response: JSON, records, pages, money, times and texts. No I/O.

Whatever the value is, a reader returns `None` or raises `UnexpectedAnswer`, nothing else.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prefect_veogen.errors import UnexpectedAnswer
from prefect_veogen.masking import with_masked_links
from prefect_veogen.models import Kind, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Member = TypeVar("Member", Status, Kind)

_MAX_DEPTH = 20  # nesting levels that are searched for text
_MAX_TEXT_CHARACTERS = 300


class Response(NamedTuple):
    """One complete HTTP response: status, lower-cased headers, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def read_json(response: Response) -> Any:
    """Return the body's JSON value; numbers with a point are `Decimal`."""
    body = read_json_or_none(response)
    if body is None:
        raise UnexpectedAnswer(
            "The response is not JSON", http_status=response.status, service_text=service_text(response)
        )
    return body


def read_json_or_none(response: Response) -> Any:
    """Return the body's JSON value, `None` if it is not valid JSON."""
    try:
        return _replace_surrogates(json.loads(response.body, parse_float=Decimal))
    except (ValueError, RecursionError, InvalidOperation):
        return None


def _replace_surrogates(value: Any) -> Any:
    """Return the value with "?" for lone surrogates (a truncated emoji), which can't be encoded in a file or log."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_replace_surrogates(name): _replace_surrogates(item) for name, item in value.items()}
    return value


def read_record(response: Response) -> dict[str, Any]:
    """Return the one object of a response, with or without `data` around it."""
    body = read_json(response)
    data = body.get("data", body) if isinstance(body, dict) else None
    if not isinstance(data, dict):
        raise UnexpectedAnswer("The response has no record", http_status=response.status)
    return data


def read_page(response: Response) -> tuple[Sequence[Any], int | None]:
    """Return records, and the number of the last page if stated, from any of the three documented page shapes."""
    body = read_json(response)
    records = body.get("data") if isinstance(body, dict) else body
    if isinstance(records, dict):  # PHP prints a list with gaps as an object
        records = list(records.values())
    if not isinstance(records, list):
        raise UnexpectedAnswer(
            "The response has no list", http_status=response.status, service_text=service_text(response)
        )
    meta = body if isinstance(body, dict) else {}
    if isinstance(meta.get("meta"), dict):
        meta = meta["meta"]
    total, per_page, last = (whole(meta.get(name)) for name in ("total", "per_page", "last_page"))
    if last is None and total is not None and per_page:
        last = -(-total // per_page)
    return records, last


def has_more(records: Sequence[Any], page: int, last_page: int | None) -> bool:
    """Return whether a page is followed by another."""
    return bool(records) and last_page is not None and page < last_page


def read_date(response: Response) -> datetime | None:
    """Return the service's time of the response, to the second; `None` if it has no valid `Date`."""
    try:
        date = parsedate_to_datetime(response.headers["date"])
    except (KeyError, TypeError, ValueError):
        return None
    return date if date.tzinfo else None


def service_text(response: Response) -> str | None:
    """Return the text of an error response, shortened and without secrets; `None` if it has none."""
    body = read_json_or_none(response)
    if body is None:
        found = response.body.decode("utf-8", "replace").strip()
        if "<" in found:
            title = re.search(r"<title>(.*?)</title>", found, re.IGNORECASE | re.DOTALL)
            found = f"an HTML page{': ' + title[1].strip() if title else ''}"
    else:
        found = words(body)
    # Services quote what they can't parse, and the signature of a link is a secret while it is valid.
    found = " ".join(with_masked_links(found).split())
    return (found[:_MAX_TEXT_CHARACTERS] + "…" if len(found) > _MAX_TEXT_CHARACTERS else found) or None


def words(body: Any, depth: int = 0) -> str:
    """Return the text in a JSON value: of its error fields if it has any, else of all of it."""
    if isinstance(body, str):
        return body
    if depth > _MAX_DEPTH:
        return "…"
    if isinstance(body, dict):
        fields = [body[name] for name in ("error", "message", "detail", "errors", "code") if body.get(name)]
        parts = [words(part, depth + 1) for part in fields]
        return " ".join(dict.fromkeys(part for part in parts if part)) or (
            " ".join(f"{name}: {words(value, depth + 1)}" for name, value in body.items() if value)
        )
    if isinstance(body, list):
        return " ".join(words(item, depth + 1) for item in body)
    return "" if body is None else str(body)


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
    """Return an aware time from any of the three documented formats; `None` for anything else."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def whole(value: Any) -> int | None:
    """Return a whole number, from a JSON number or a numeric string."""
    if isinstance(value, bool):
        return None
    try:
        return int(str(value))
    except ValueError:
        return None


def text(value: Any) -> str | None:
    """Return a text that is not blank, without surrounding white space; a whole number counts as one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def member(enum: type[Member], name: str | None) -> Member | None:
    """Return the member of an enum with this value, `None` if there is none."""
    return next((item for item in enum if item.value == name), None)
