"""The ledger: one author per step, claims that are never given up, and no guessing about damaged records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from prefect_veogen.errors import UnreadableReceipt
from prefect_veogen.ledger import Entry, Intent, Ledger
from prefect_veogen.ledger.budgets import Budgets, Cap
from prefect_veogen.ledger.lease import Owner
from prefect_veogen.ledger.receipt import Event, Reading, Receipt, RecordedInput, RecordedRequest, missing_part
from prefect_veogen.ledger.transitions import EventName, IllegalTransition, State
from prefect_veogen.models import Asset, Generation, GenerationRequest, ReceiptKey
from prefect_veogen.store import AlreadyExists, Store, VersionConflict, open_store

API = "https://veogen.studio/api/v1"
FOX = GenerationRequest(model="gpt-4o-image", prompt="A red fox")
OWNER = Owner(id="1", host="here", pid=1, process=None, lease_until=datetime(2999, 1, 1, tzinfo=UTC))


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def receipt_for(request: GenerationRequest = FOX, **changes: Any) -> Receipt:
    key = request.receipt_key(API)
    receipt = Receipt(
        key=key,
        content=ReceiptKey.parse(key).content_key,
        state=State.RESERVED,
        request=RecordedRequest.of(request),
        take=str(request.take),
        api=API,
    )
    return receipt.reserved(OWNER, quote_usd=None, budgets=(), flow_run_id=None).model_copy(update=changes)


async def created(ledger: Ledger, request: GenerationRequest = FOX) -> Entry:
    return await ledger.reserve(None, Intent(request, API, OWNER, None))


@pytest.mark.parametrize("place", ["s3://bucket/a.png", "file:///a.png"])
async def test_what_has_to_be_read_to_be_known_gets_no_receipt(place: str, store: Store) -> None:
    with pytest.raises(AssertionError, match="bytes of its inputs"):
        await created(Ledger(store), GenerationRequest(**FOX.set_fields(), image_urls=[place]))
    assert await store.list_objects("") == []


async def test_a_receipt_is_read_as_it_was_written(store: Store) -> None:
    written = await created(Ledger(store), GenerationRequest(**FOX.set_fields(), image_urls=("https://a.b/c.png?s=1",)))
    read = await Ledger(store).read(written.receipt.key)
    assert read is not None
    assert (read.receipt, read.version) == (written.receipt, written.version)
    assert read.receipt.request.image_urls == (RecordedInput(url="https://a.b/c.png"),)
    assert await Ledger(store).read("v1-another") is None


async def test_one_creator_and_one_mover_win(store: Store) -> None:
    ledger = Ledger(store)
    made = await asyncio.gather(*(created(ledger) for _ in range(8)), return_exceptions=True)
    entries = [entry for entry in made if not isinstance(entry, BaseException)]
    assert len(entries) == 1
    assert all(isinstance(entry, AlreadyExists) for entry in made if entry is not entries[0])
    moving = (ledger.send(entries[0], OWNER, None, {}) for _ in range(8))
    moved = await asyncio.gather(*moving, return_exceptions=True)
    assert sorted(type(entry).__name__ for entry in moved) == ["Entry"] + ["VersionConflict"] * 7


async def test_every_step_is_in_the_history(store: Store) -> None:
    ledger = Ledger(store)
    stale = await ledger.send(await created(ledger), OWNER, timedelta(seconds=-3), {})
    entry = await ledger.doubt(stale, "the response was lost")
    assert [event.event for event in entry.receipt.history] == ["reserved", "sending", "unknown"]
    assert entry.receipt.history[-1].detail == "the response was lost"
    assert (entry.receipt.revision, entry.receipt.clock_offset_seconds) == (3, -3)
    with pytest.raises(VersionConflict):
        await ledger.doubt(stale, "again")


# ---------------------------------------------------------------- the state machine


def reading(number: int) -> Reading:
    at = datetime(2026, 1, 31, tzinfo=UTC) + timedelta(minutes=number)
    return Reading(began_at=at, ended_at=at, generations=number, recognised="ours")


def generation(number: int) -> Generation:
    return Generation(id=f"gen-{number}", price_usd=Decimal("0.02"), created_at=datetime.now(UTC))


ASSET = Asset(uri="file:///a.png", sha256="00", size=1, content_type="image/png", generation_id="gen-1")
STEPS: dict[str, Callable[[Receipt, int], Receipt]] = {
    "reserve": lambda it, _: it.reserved(OWNER, quote_usd=Decimal("0.02"), budgets=("day",), flow_run_id=None),
    "send": lambda it, n: it.sending(OWNER, clock_offset=timedelta(seconds=n), links={}),
    "wait": lambda it, n: it.waiting(OWNER, n),
    "buy": lambda it, n: it.bought(generation(n), EventName.BOUGHT),
    "adopt": lambda it, n: it.bought(generation(n), EventName.ADOPTED, by_a_person=True),
    "buy also": lambda it, n: it.bought_also(generation(n)),
    "store": lambda it, _: it.stored(ASSET, "etag"),
    "fail": lambda it, n: it.failed(generation(n)),
    "release": lambda it, _: it.released("nothing was bought"),
    "doubt": lambda it, _: it.in_doubt("the response was lost"),
    "read": lambda it, n: it.read(reading(n)),
    "reopen": lambda it, _: it.reopened("it is listed by now"),
}
PAID = (State.BOUGHT, State.STORED)
# What a receipt may become, said anew by what it means, and not read from the state machine that is tested. Only what
# is RELEASED or FAILED is free to be bought again: of what is paid for, that is what failed and was refunded, and never
# what is in the store.
MAY_BECOME = {
    State.RESERVED: {State.RESERVED, State.SENDING, State.BOUGHT, State.RELEASED, State.IN_DOUBT},
    State.SENDING: {State.RESERVED, State.BOUGHT, State.RELEASED, State.IN_DOUBT},
    State.IN_DOUBT: {State.RESERVED, State.BOUGHT, State.RELEASED, State.IN_DOUBT},
    State.RELEASED: {State.RESERVED, State.BOUGHT},
    State.BOUGHT: {State.BOUGHT, State.STORED, State.FAILED},
    State.STORED: {State.STORED},
    State.FAILED: {State.FAILED, State.RESERVED},
}


def check_money(before: Receipt, after: Receipt) -> None:
    """Validate that a step neither forgets what was paid for, nor lets it be bought again."""
    assert after.state in MAY_BECOME[before.state]
    if before.state is State.FAILED is after.state or (before.state in PAID and after.state in PAID):
        assert after.generation == before.generation, "it is about another one"
        assert (after.attempt, after.quote_usd, after.budgets) == (before.attempt, before.quote_usd, before.budgets)
    if after.state in (*PAID, State.FAILED):
        assert after.generation is not None
    else:
        assert after.generation is None, "what is free to be bought has been"
    if before.state is State.STORED:
        assert after.asset is not None
    ids = [item.id for item in after.also_bought]
    assert ids[: len(before.also_bought)] == [item.id for item in before.also_bought]
    assert ids == [item.id for item in before.also_bought] or before.state in (*PAID, State.FAILED)


def check_attempt(before: Receipt, after: Receipt) -> None:
    """Validate that nothing is sent without a note, and that what was sent is not given up without a proof."""
    if after.state is State.SENDING:
        assert (before.state, after.readings) == (State.RESERVED, ()), "readings made before prove nothing about it"
    if after.readings not in ((), before.readings):
        assert after.state is State.IN_DOUBT
    match before.state, after.state:
        case State.IN_DOUBT, State.RESERVED:
            assert len(before.readings) >= 2
            assert after.lost[-1].attempt == before.attempt == after.attempt - 1
        case State.RELEASED | State.FAILED, State.RESERVED:
            assert after.attempt == before.attempt + 1
        case State.RESERVED, State.IN_DOUBT:
            assert (*after.lost, after.attempt) == (*before.lost[:-1], before.lost[-1].attempt), "not the lost attempt"
        case State.IN_DOUBT, State.IN_DOUBT:
            assert (after.attempt, after.sent_at) == (before.attempt, before.sent_at)
        case _:
            assert after.attempt == before.attempt, "nobody knows what became of the attempt that this replaces"


def take_step(name: str, before: Receipt, number: int) -> Receipt | None:
    """Return what a step makes of a receipt, which is checked, or `None` where it is refused."""
    try:
        after = STEPS[name](before, number)
    except IllegalTransition:
        return None
    assert Receipt.model_validate_json(after.model_dump_json(by_alias=True, exclude_none=True)) == after
    assert missing_part(after) is None
    assert after.revision == before.revision + 1
    assert after.known_ids >= before.known_ids
    check_money(before, after)
    check_attempt(before, after)
    return after


@settings(max_examples=300, deadline=None)
@given(
    strategies.lists(strategies.tuples(strategies.sampled_from(sorted(STEPS)), strategies.integers(0, 9)), max_size=25)
)
def test_whatever_is_tried_only_what_can_happen_is_written(steps: list[tuple[str, int]]) -> None:
    receipt = receipt_for()
    for name, number in steps:
        receipt = take_step(name, receipt, number) or receipt


def test_every_step_is_tried_on_every_kind_of_receipt() -> None:
    tried: set[tuple[State | int, ...]] = set()
    left = [receipt_for()]
    while left:
        receipt = left.pop(0)
        counts = (receipt.attempt, len(receipt.lost), len(receipt.readings), len(receipt.also_bought))
        if (kind := (receipt.state, *counts)) not in tried and max(counts) <= 3:
            tried.add(kind)
            made = (take_step(name, receipt, number) for number, name in enumerate(STEPS))
            left += [after for after in made if after is not None]
    assert {state for state, *_ in tried} == {*State}


def test_a_purchase_in_doubt_is_not_reserved_before_it_is_proven_absent() -> None:
    receipt = receipt_for().sending(OWNER, clock_offset=timedelta(0), links={}).in_doubt("lost").read(reading(1))
    with pytest.raises(IllegalTransition, match="1 readings prove no absence"):
        STEPS["reserve"](receipt, 0)
    again = STEPS["reserve"](receipt.read(reading(2)), 0)
    assert (again.attempt, again.readings, len(again.lost[0].readings)) == (2, (), 2)
    assert again.reopened("found").model_copy(update={"history": (), "revision": 0}) == receipt.read(
        reading(2)
    ).model_copy(update={"history": (), "revision": 0, "owner": None, "quote_usd": None})


@pytest.mark.parametrize(
    ("event", "detail", "generation_id"),
    [
        ("bought", "gen-1", "gen-1"),
        ("adopted", "gen-1, by a person's decision", "gen-1"),
        ("also bought", "gen,1", "gen,1"),
        ("released", "gen-1", None),
    ],
)
def test_the_id_in_an_older_receipts_history_is_known(event: str, detail: str, generation_id: str | None) -> None:
    line = Event.model_validate({"at": "2026-01-31T00:00:00Z", "event": event, "detail": detail})
    assert line.generation_id == generation_id


# ---------------------------------------------------------------- a transition and its money


async def committed(store: Store) -> Decimal:
    return (await Budgets(store).read_account("day")).committed_usd


async def in_doubt_under_a_cap(store: Store) -> Entry:
    ledger = Ledger(store)
    cap = Cap("day", Decimal(1))
    entry = await ledger.reserve(None, Intent(FOX, API, OWNER, Decimal("0.30"), caps=(cap,)))
    return await ledger.doubt(await ledger.send(entry, OWNER, timedelta(0), {}), "lost")


async def bought_again(store: Store) -> Entry:
    ledger, entry = Ledger(store), await in_doubt_under_a_cap(store)
    for number in range(2):
        entry = await ledger.note_reading(entry, reading(number))
    intent = Intent(FOX, API, OWNER, Decimal("0.30"), caps=(Cap("day", Decimal(1)),))
    entry = await ledger.send(await ledger.reserve(entry, intent), OWNER, timedelta(0), {})
    bought = await ledger.buy(entry, generation(2))
    assert bought is not None
    return bought


async def test_money_follows_its_receipt(store: Store) -> None:
    ledger, entry = Ledger(store), await in_doubt_under_a_cap(store)
    assert await committed(store) == Decimal("0.30")
    bought = await ledger.buy(entry, generation(1), EventName.ADOPTED)
    assert bought is not None
    assert await committed(store) == Decimal("0.02")
    await ledger.fail(bought, generation(1))
    assert await committed(store) == 0
    await ledger.fail(bought, generation(1))
    assert await committed(store) == 0


async def test_a_lost_attempt_counts_for_a_day_beside_the_one_that_replaced_it(store: Store) -> None:
    entry = await bought_again(store)
    await Ledger(store).settle(entry.receipt)
    assert await committed(store) == Decimal("0.32")
    old = entry.receipt.lost[0].model_copy(update={"given_up_at": datetime.now(UTC) - timedelta(days=1, minutes=1)})
    await Ledger(store).settle(entry.receipt.model_copy(update={"lost": (old,)}))
    assert await committed(store) == Decimal("0.02")


@pytest.mark.parametrize("is_released", [False, True])
async def test_what_turns_up_of_a_lost_attempt_is_counted_once(is_released: bool, store: Store) -> None:
    ledger, entry = Ledger(store), await bought_again(store)
    if is_released:  # more than a day later
        await Budgets(store).release(["day"], f"{entry.receipt.key}#1")
    for _ in range(2):
        late = await ledger.buy(entry, generation(1), EventName.ADOPTED)
        assert late is not None
        assert [item.id for item in late.receipt.also_bought] == ["gen-1"]
        assert (late.receipt.generation and late.receipt.generation.id, late.receipt.lost) == ("gen-2", ())
        assert await committed(store) == Decimal("0.04")


async def test_a_response_that_comes_after_its_release_is_counted(store: Store) -> None:
    ledger, entry = Ledger(store), await in_doubt_under_a_cap(store)
    released = await ledger.release(entry, "by a person's decision")
    assert await committed(store) == 0
    bought = await ledger.buy(released, generation(1))
    assert bought is not None
    assert (bought.receipt.state, await committed(store)) == (State.BOUGHT, Decimal("0.02"))


# ---------------------------------------------------------------- claims and families


async def test_a_generation_is_claimed_once_and_for_ever(store: Store) -> None:
    ledger = Ledger(store)
    takes = [receipt_for(FOX.model_copy(update={"take": take})) for take in range(6)]
    claims = await asyncio.gather(*(ledger.claim(receipt, "gen/1 ü") for receipt in takes))
    assert claims.count(True) == 1
    owner = takes[claims.index(True)]
    assert await ledger.claim(owner, "gen/1 ü")
    assert await ledger.find_claimant(API, "gen/1 ü") == owner.key
    assert await ledger.find_claimant(API, "gen-2") is None
    assert await ledger.find_claimant("https://elsewhere/api/v1", "gen/1 ü") is None


async def test_the_family_is_what_looks_the_same_from_outside(store: Store) -> None:
    ledger = Ledger(store)
    takes = [FOX, FOX.model_copy(update={"take": 2})]
    with_input = GenerationRequest(**FOX.set_fields(), image_urls=("https://example.com/a.png",))
    stranger = GenerationRequest(model="gpt-4o-image", prompt="A red fix")
    for request in (*takes, with_input, stranger):
        await created(ledger, request)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    family = await ledger.read_family(receipt_for(), hour_ago)
    assert {entry.receipt.key for entry in family} == {takes[1].receipt_key(API), with_input.receipt_key(API)}
    assert await ledger.read_family(receipt_for(), datetime.now(UTC) + timedelta(minutes=1)) == []
    assert len(await ledger.list_keys()) == len(await ledger.list_keys(hour_ago)) == 4
    assert await ledger.list_keys(datetime.now(UTC) + timedelta(minutes=1)) == []


async def test_the_probe_of_the_store_is_no_receipt(store: Store) -> None:
    await store.check()
    assert await Ledger(store).list_keys() == []


def _whole() -> dict[str, Any]:
    return dict(json.loads(receipt_for().model_dump_json(exclude_none=True, by_alias=True)))


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
        (json.dumps(_whole() | {"request": {}}).encode(), "request.model"),
        (json.dumps(_whole() | {"request": {"model": ["x"], "prompt": "y"}}).encode(), "request.model"),
        (json.dumps(_whole() | {"request": {"model": "x", "prompt": "y", "seed": 7}}).encode(), "request.seed"),
        (json.dumps(_whole() | {"history": [{"at": "2026-01-31T00:00:00Z", "event": "x"}]}).encode(), "event"),
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
    (claim,) = await store.list_objects("claims/")
    await store.put(claim.key, body, "application/json")
    with pytest.raises(UnreadableReceipt, match="gen-1"):
        await ledger.find_claimant(API, "gen-1")


def test_the_price_is_what_was_charged_else_what_was_quoted() -> None:
    quoted = receipt_for(quote_usd=Decimal("0.30"), state=State.SENDING)
    assert quoted.price_usd == Decimal("0.30")
    charged = quoted.bought(Generation(id="1", price_usd=Decimal("0.25")), EventName.BOUGHT)
    assert charged.price_usd == Decimal("0.25")
    silent = quoted.bought(Generation(id="1"), EventName.BOUGHT)
    assert silent.price_usd == Decimal("0.30")


def test_another_attempt_has_a_reservation_of_its_own() -> None:
    receipt = receipt_for()
    assert receipt.reservation == f"{receipt.key}#1"
    again = STEPS["reserve"](receipt.released("refused"), 0)
    assert again.reservation == f"{receipt.key}#2"
    assert ReceiptKey.of_reservation(again.reservation) == receipt.key
