"""A campaign's results in the store: written last and whole, and read back as items, or as a manifest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from prefect_veogen.campaign.columns import FIELD_COLUMNS, LABEL, is_of_results
from prefect_veogen.campaign.items import CampaignItem, ItemStatus, Step
from prefect_veogen.campaign.packed import Packed
from prefect_veogen.campaign.result_frames import parquet_of
from prefect_veogen.campaign.table import Table
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import Asset, Kind, plain_name
from prefect_veogen.process.io_loop import wait_on_io
from prefect_veogen.store import commit_at_end, open_store

if TYPE_CHECKING:
    from prefect_veogen.store import Store

RESULTS: Final = "results.jsonl"
_LINES_AT_ONCE = 500


# ---------------------------------------------------------------- back from the table


def is_result(fields: Mapping[str, Any]) -> bool:
    """Tell whether a manifest's record is one of results: what every such row has, a manifest has not."""
    return looks_like_result(fields) and fields.get("status") in set(ItemStatus)


def looks_like_result(fields: Mapping[str, Any]) -> bool:
    """Tell whether a manifest's record was one of results, though its status may have been changed since."""
    return {"take", "price_usd", "finished_at"} <= fields.keys()


def item_of(record: Mapping[str, Any]) -> CampaignItem:
    """Return the item that a record of the table describes; in CSV all its values are text.

    Raises:
        ValueError, TypeError, LookupError, ArithmeticError: it was changed, and can't be read.
    """
    steps = tuple(step for kind in Kind if (step := _step_of(record, kind)) is not None)
    return CampaignItem(
        id=str(record["id"]),
        status=ItemStatus(record["status"]),
        steps=steps,
        error=record.get("error"),
        error_type=record.get("error_type"),
        take=str(record["take"]),
        reused=_converted(record, "reused", _truth),
        flow_run_id=record.get("flow_run_id"),
        finished_at=_converted(record, "finished_at", _time),
        fields={name: record[name] for name in FIELD_COLUMNS if record.get(name) is not None},
        labels=_labels(record, LABEL),
        carried={name: value for name, value in record.items() if is_carried(name)},
    )


def _converted(record: Mapping[str, Any], name: str, convert: Callable[[Any], Any]) -> Any:
    """Return a value in its type; what a spreadsheet makes of a number or a time, such as 0,02, is named."""
    value = record.get(name)
    try:
        return None if value is None else convert(value)
    except (ValueError, TypeError, LookupError, ArithmeticError):
        raise ValueError(f"{name} is {value!r}") from None


def _truth(value: Any) -> bool:
    if not isinstance(value, str):
        return bool(value)
    return {"true": True, "false": False}[value.lower()]


def _time(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _money(value: Any) -> Decimal:
    return Decimal(str(value))


def is_carried(column: str) -> bool:
    """Tell whether a column of the results is one that was taken along."""
    return not is_of_results(column) and column != "variants" and not column.startswith(LABEL)


def _step_of(record: Mapping[str, Any], kind: Kind) -> Step | None:
    def get(name: str) -> Any:
        return record.get(f"{kind}_{name}")

    if get("receipt") is None:
        return None
    price = _converted(record, f"{kind}_price_usd", _money)
    asset = None
    if get("uri") is not None:
        asset = Asset(
            uri=get("uri"),
            sha256=get("sha256"),
            size=_converted(record, f"{kind}_bytes", int),
            content_type=get("content_type"),
            generation_id=get("generation_id"),
            price_usd=price,
            model=get("model"),
        )
    return Step(kind, get("receipt"), asset, get("generation_id"), price, _labels(record, f"{kind}_{LABEL}"))


def _labels(record: Mapping[str, Any], prefix: str) -> dict[str, str]:
    found = {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
    return {name: str(value) for name, value in found.items() if value is not None}


# ---------------------------------------------------------------- in the store


def campaign_key(name: str, file: str) -> str:
    """Return where in the store a campaign's file lies."""
    return f"campaigns/{plain_name(name)}/{file}"


async def write_results(store: Store, name: str, items: Sequence[CampaignItem]) -> None:
    """Write the table of results: the JSON Lines last and whole, so that they mark a campaign that has ended. Free."""
    # In a thread: tens of thousands of rows take seconds, in which this loop polls and buys for everybody else.
    table = await asyncio.to_thread(Table, items)
    columnar = await asyncio.to_thread(parquet_of, table)
    if columnar is not None:
        await store.put(campaign_key(name, "results.parquet"), columnar, "application/vnd.apache.parquet")
    async with commit_at_end(store.writer(campaign_key(name, RESULTS), "application/x-ndjson")) as writer:
        records = table.records()
        while lines := [json.dumps(record, ensure_ascii=False) + "\n" for record in islice(records, _LINES_AT_ONCE)]:
            await writer.write("".join(lines).encode())


async def read_results(store: Store, key: str) -> Packed[CampaignItem] | None:
    """Return the items of a table in the store, `None` if there is none."""
    document = await store.read(key)
    return None if document is None else await asyncio.to_thread(_items_of, document.body, store.uri(key))


def read_results_now(uri: str) -> Packed[CampaignItem]:
    """Return the items of the table at a URI, for callers outside of any event loop too."""
    folder, _, _ = uri.rpartition("/")
    return wait_on_io(read_results_at(uri, open_store(folder) if folder else None))


async def read_results_at(uri: str, store: Store | None) -> Packed[CampaignItem]:
    """Return the items of the table at a URI, which lies in the store.

    Raises:
        ConfigurationError: there is none, or not in this store.
    """
    key = None if store is None else store.key(uri)
    if store is not None and key is None:
        raise ConfigurationError(
            f"The table of results {uri} is not in the store {store.uri('')}",
            next_step="Give the store that the campaign had: store=…, or VEOGEN_STORE.",
        )
    items = None if store is None or key is None else await read_results(store, key)
    if items is None:
        raise ConfigurationError(
            f"There is no table of results at {uri or 'all: the campaign was not published'}",
            next_step="Run the campaign to its end; what is bought already is not bought again.",
        )
    return items


def _items_of(body: bytes, uri: str) -> Packed[CampaignItem]:
    try:
        return Packed(item_of(json.loads(line)) for line in body.split(b"\n") if line.strip())
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"The table of results {uri} can't be read: {error}",
            next_step="Run the campaign again: it is written anew, and nothing is bought twice.",
        ) from None
