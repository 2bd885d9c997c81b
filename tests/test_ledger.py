"""The ledger: one author per step, claims that are never given up, and no guessing about damaged records."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen.errors import UnreadableReceipt
from prefect_veogen.ledger import Ledger, Receipt, State
from prefect_veogen.models import Generation, GenerationRequest
from prefect_veogen.store import AlreadyThere, Changed, Store, open_store

API = "https://veogen.studio/api/v1"
FOX = GenerationRequest(model="gpt-4o-image", prompt="A red fox")


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def receipt_for(request: GenerationRequest = FOX, **changes: Any) -> Receipt:
    receipt = Receipt(
        key=request.receipt_key(API),
        content=request.content_key(API),
        state=State.RESERVED,
        request=request.canonical(),
        take=str(request.take),
        api=API,
    )
    return receipt.moved(State.RESERVED, "reserved", **changes)


async def test_a_receipt_is_read_as_it_was_written(store: Store) -> None:
    receipt = receipt_for(quote_usd=Decimal("0.02"), budgets=("day-2026-01-31",), sent_at=datetime.now(UTC))
    written = await Ledger(store).create(receipt)
    read = await Ledger(store).read(receipt.key)
    assert read is not None
    assert (read.receipt, read.version) == (receipt, written.version)
    assert await Ledger(store).read("v1-another") is None


async def test_one_creator_and_one_mover_win(store: Store) -> None:
    ledger = Ledger(store)
    receipts = [receipt_for(quote_usd=Decimal(number)) for number in range(8)]
    created = await asyncio.gather(*map(ledger.create, receipts), return_exceptions=True)
    entries = [entry for entry in created if not isinstance(entry, BaseException)]
    assert len(entries) == 1
    assert all(isinstance(entry, AlreadyThere) for entry in created if entry is not entries[0])
    moving = (ledger.move(entries[0], State.SENDING, "sending", f"by {number}") for number in range(8))
    moved = await asyncio.gather(*moving, return_exceptions=True)
    assert sorted(type(entry).__name__ for entry in moved) == ["Changed"] * 7 + ["Entry"]


async def test_every_step_is_in_the_history(store: Store) -> None:
    ledger = Ledger(store)
    entry = await ledger.create(receipt_for())
    entry = await ledger.move(entry, State.SENDING, "sending")
    stale = entry
    entry = await ledger.move(entry, State.UNKNOWN, "unknown", "the answer was lost")
    assert [event.event for event in entry.receipt.history] == ["reserved", "sending", "unknown"]
    assert entry.receipt.history[-1].detail == "the answer was lost"
    assert entry.receipt.revision == 3
    with pytest.raises(Changed):
        await ledger.move(stale, State.BOUGHT, "bought")


async def test_a_generation_is_claimed_once_and_for_ever(store: Store) -> None:
    ledger = Ledger(store)
    takes = [receipt_for(FOX.model_copy(update={"take": take})) for take in range(6)]
    claims = await asyncio.gather(*(ledger.claim(receipt, "gen/1 ü") for receipt in takes))
    assert claims.count(True) == 1
    owner = takes[claims.index(True)]
    assert await ledger.claim(owner, "gen/1 ü")
    assert await ledger.claimant(API, "gen/1 ü") == owner.key
    assert await ledger.claimant(API, "gen-2") is None
    assert await ledger.claimant("https://elsewhere/api/v1", "gen/1 ü") is None


async def test_the_family_is_what_looks_the_same_from_outside(store: Store) -> None:
    ledger = Ledger(store)
    takes = [FOX, FOX.model_copy(update={"take": 2})]
    with_input = GenerationRequest(**FOX.set_fields(), image_urls=("https://example.com/a.png",))
    stranger = GenerationRequest(model="gpt-4o-image", prompt="A red fix")
    for request in (*takes, with_input, stranger):
        await ledger.create(receipt_for(request))
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    family = await ledger.family(receipt_for(), hour_ago)
    assert {entry.receipt.key for entry in family} == {takes[1].receipt_key(API), with_input.receipt_key(API)}
    assert await ledger.family(receipt_for(), datetime.now(UTC) + timedelta(minutes=1)) == []
    assert len(await ledger.keys()) == len(await ledger.keys(hour_ago)) == 4
    assert await ledger.keys(datetime.now(UTC) + timedelta(minutes=1)) == []


async def test_the_probe_of_the_store_is_no_receipt(store: Store) -> None:
    await store.check()
    assert await Ledger(store).keys() == []


def _whole() -> dict[str, Any]:
    return dict(json.loads(receipt_for().model_dump_json()))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (json.dumps(_whole()).encode()[:-20], "JSON"),
        (json.dumps(_whole() | {"format": 2}).encode(), "format"),
        (json.dumps(_whole() | {"state": "refunded"}).encode(), "state"),
        (json.dumps(_whole() | {"key": "v1-another"}).encode(), "copy of v1-another"),
        (json.dumps(_whole() | {"state": "bought"}).encode(), "bought without a generation"),
        (json.dumps(_whole() | {"state": "stored"}).encode(), "stored without a generation"),
        (json.dumps(_whole() | {"state": "unknown"}).encode(), "unknown without the time of its sending"),
        (json.dumps(_whole() | {"history": []}).encode(), "without a history"),
        (json.dumps(_whole() | {"request": {}}).encode(), "without a request"),
        (json.dumps(_whole() | {"request": {"model": ["x"], "prompt": "y"}}).encode(), "without a request"),
        (b"[]", "object|dictionary|dict"),
    ],
)
async def test_a_damaged_or_newer_receipt_is_not_interpreted(body: bytes, words: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    key = FOX.receipt_key(API)
    await store.put(f"receipts/{key}.json", body, "application/json")
    with pytest.raises(UnreadableReceipt, match=words):
        await Ledger(store).read(key)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"[" * 100_000])
async def test_a_damaged_claim_is_not_taken_for_none(body: bytes, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    ledger = Ledger(store)
    await ledger.claim(receipt_for(), "gen-1")
    (claim,) = await store.find("claims/")
    await store.put(claim.key, body, "application/json")
    with pytest.raises(UnreadableReceipt, match="gen-1"):
        await ledger.claimant(API, "gen-1")


def test_the_price_is_what_was_charged_else_what_was_quoted() -> None:
    quoted = receipt_for(quote_usd=Decimal("0.30"))
    assert quoted.price_usd == Decimal("0.30")
    charged = quoted.moved(State.BOUGHT, "bought", generation=Generation(id="1", price_usd=Decimal("0.25")))
    assert charged.price_usd == Decimal("0.25")
    silent = quoted.moved(State.BOUGHT, "bought", generation=Generation(id="1"))
    assert silent.price_usd == Decimal("0.30")


def test_another_attempt_has_a_reservation_of_its_own() -> None:
    receipt = receipt_for()
    assert receipt.reservation == f"{receipt.key}#1"
    assert receipt.moved(State.RESERVED, "reserved", attempt=2).reservation == f"{receipt.key}#2"
