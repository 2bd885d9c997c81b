"""The table of results: one row per manifest row and variant, with columns that stay whatever became of the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

from prefect_veogen.campaign.columns import BOUGHT_WITH, FIELD_COLUMNS, LABEL, OUTCOME_COLUMNS
from prefect_veogen.campaign.items import CampaignItem, Step

_MAX_INTEGER: Final = 2**63


class Table:
    """Items as rows of one table."""

    def __init__(self, items: Sequence[CampaignItem]) -> None:
        self._items = items
        labels: dict[str, None] = {}
        carried: dict[str, str | None] = {}
        for item in items:
            for given in (item.labels, *(step.labels for step in item.steps)):
                labels |= dict.fromkeys(given)
            for name, value in item.carried.items():
                carried[name] = _common_kind(carried.get(name), _kind(value))
        self._labels = sorted(labels)
        self._carried = {name: kind or "text" for name, kind in carried.items()}

    @property
    def columns(self) -> dict[str, str]:
        """The columns' names and kinds: text, texts, integer, number, money, boolean or time."""
        labels = (f"{prefix}{name}" for name in self._labels for prefix in (LABEL, *BOUGHT_WITH))
        return {**OUTCOME_COLUMNS, **dict.fromkeys(labels, "text"), **self._carried, **FIELD_COLUMNS}

    def __len__(self) -> int:
        return len(self._items)

    def records(self) -> Iterator[dict[str, Any]]:
        """Give each item as one record with all columns, JSON-ready."""
        empty = dict.fromkeys(self.columns)
        for item in self._items:
            yield empty | self._record(item)

    def _record(self, item: CampaignItem) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": item.id,
            "take": item.take,
            "status": item.status.value,
            "error": item.error,
            "error_type": item.error_type,
            "price_usd": float(item.price_usd),
            "flow_run_id": item.flow_run_id,
            "finished_at": item.finished_at and item.finished_at.isoformat(),
            "reused": item.reused,
            **item.fields,
            **{f"{LABEL}{name}": value for name, value in item.labels.items()},
            **{name: _plain(value, self._carried[name]) for name, value in item.carried.items()},
        }
        for step in item.steps:
            record |= _columns_of(step)
        return record


def _columns_of(step: Step) -> dict[str, Any]:
    asset, price = step.asset, step.price_usd
    columns = {
        "receipt": step.receipt,
        "generation_id": step.generation_id,
        "price_usd": None if price is None else float(price),
    }
    if asset is not None:
        columns |= {
            "uri": asset.uri,
            "sha256": asset.sha256,
            "bytes": asset.size,
            "content_type": asset.content_type,
            "model": asset.model,
        }
    columns |= {f"{LABEL}{name}": value for name, value in step.labels.items()}
    return {f"{step.kind}_{name}": value for name, value in columns.items()}


# ---------------------------------------------------------------- kinds of carried values


def _kind(value: Any) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "boolean"
        case int():
            return "integer" if abs(value) < _MAX_INTEGER else "text"
        case float():
            return "number"
        case Decimal():
            return _kind_of_decimal(value)
        case _:
            return "text"


def _kind_of_decimal(value: Decimal) -> str:
    """Return a kind that keeps every digit: to many a database whole numbers are decimals, keys among them."""
    exponent = value.as_tuple().exponent
    if exponent == 0:
        return "integer" if abs(value) < _MAX_INTEGER else "text"
    return "number" if not value.is_finite() or Decimal(repr(float(value))) == value else "text"


def _common_kind(one: str | None, other: str | None) -> str | None:
    if one is None or other is None or one == other:
        return one or other
    return "number" if {one, other} == {"integer", "number"} else "text"


def _plain(value: Any, kind: str) -> Any:
    """Return a carried value as JSON has it, in its column's kind."""
    match kind:
        case _ if value is None:
            return None
        case "number":
            return float(value) if math.isfinite(value) else None  # JSON has no infinity
        case "integer":
            return int(value)
        case "text" if isinstance(value, Decimal):
            return f"{value:f}"
        case "text":
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return value
