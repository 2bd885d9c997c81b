"""Buying at most once, whatever becomes of the response."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from prefect_veogen.errors import (
    AuthenticationError,
    BudgetExceeded,
    GenerationFailed,
    InsufficientBalance,
    InvalidRequest,
    NotSent,
    UnknownSubmission,
    UnreadableReceipt,
    UnsafeStore,
    VeogenError,
)
from prefect_veogen.ledger import Receipt, RecordedRequest, State
from prefect_veogen.ledger.budgets import day_budget
from prefect_veogen.ledger.lease import Owner, _process_mark
from prefect_veogen.models import Generation, GenerationRequest, Kind
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.matching import looks_like
from prefect_veogen.purchase.submit import Purchase, buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import FAULTS, Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import LocalStore
from tests.support.environments import fast_settings
from tests.support.receipts import left_behind
from tests.support.servers import Reply, Request, relayed, serving, without

FOX = GenerationRequest(model="gpt-4o-image", prompt="A red fox, ink on paper")
AFTER_CHARGE = [name for name in FAULTS if name.endswith("-after-charge")]
BEFORE_CHARGE = [name for name in FAULTS if name.endswith("-before-charge")]
REFUSED: dict[str, type[VeogenError]] = {"402": InsufficientBalance, "401": AuthenticationError, "422": InvalidRequest}


@pytest.fixture(autouse=True)
def _only_a_person_decides(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strict setting, under which nothing is ever bought again by itself."""
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")


async def purchase(request: GenerationRequest = FOX) -> Purchase:
    return await on_io(buy(open_session(), request))


async def purchases(*requests: GenerationRequest) -> list[Purchase | BaseException]:
    return await asyncio.gather(*map(purchase, requests), return_exceptions=True)


def takes(count: int, request: GenerationRequest = FOX) -> list[GenerationRequest]:
    return [request.model_copy(update={"take": take}) for take in range(1, count + 1)]


async def receipt_of(request: GenerationRequest = FOX) -> Receipt:
    session = open_session()
    entry = await session.ledger.read(request.receipt_key(session.client.base_url))
    assert entry is not None
    return entry.receipt


def events(receipt: Receipt) -> list[str]:
    return [event.event for event in receipt.history]


async def committed() -> Decimal:
    return (await open_session().budgets.read_account(day_budget())).committed_usd


def posts(sandbox: Sandbox) -> int:
    return sum(record.method == "POST" for record in sandbox.requests)


async def made(sandbox: Sandbox, count: int) -> None:
    """Return when so many purchases were made."""

    def poll() -> None:
        while len(sandbox.bill) < count:
            time.sleep(0.01)

    await asyncio.wait_for(asyncio.to_thread(poll), 60)


# ---------------------------------------------------------------- the good way


async def test_a_purchase_is_written_down_with_its_price(sandbox: Sandbox, store_url: str) -> None:
    bought = await purchase()
    receipt = await receipt_of()
    assert not bought.reused
    assert (receipt.state, events(receipt)) == (State.BOUGHT, ["reserved", "sending", "bought"])
    assert receipt.generation is not None
    assert (receipt.generation.id, receipt.generation.price_usd) == (bought.generation.id, Decimal("0.02"))
    assert (receipt.owner, receipt.quote_usd) == (None, Decimal("0.02"))
    assert [item.id for item in sandbox.bill] == [bought.generation.id]


async def test_the_same_request_is_the_same_purchase_and_another_take_is_not(sandbox: Sandbox, store_url: str) -> None:
    first, again = await purchase(), await purchase()
    other = await purchase(takes(2)[1])
    assert (again.reused, again.generation.id) == (True, first.generation.id)
    assert other.generation.id != first.generation.id
    assert len(sandbox.bill) == posts(sandbox) == 2


async def test_many_callers_at_once_make_one_purchase(sandbox: Sandbox, store_url: str) -> None:
    bought = await purchases(*[FOX] * 25)
    assert len({item.generation.id for item in bought if isinstance(item, Purchase)}) == 1
    assert sorted(item.reused for item in bought if isinstance(item, Purchase)) == [False] + [True] * 24
    assert len(sandbox.bill) == posts(sandbox) == 1


def test_callers_in_many_loops_make_one_purchase(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as threads:
        bought = list(threads.map(lambda _: asyncio.run(purchase()), range(8)))
    assert len({item.generation.id for item in bought}) == 1
    assert len(sandbox.bill) == posts(sandbox) == 1


async def test_the_newer_shape_of_the_response_is_bought_at_the_quoted_price(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(speed=100, tiny_media=True, create_shape="newer") as sandbox:
        for name, value in {**sandbox.environment, "VEOGEN_BUDGET_USD": "1"}.items():
            monkeypatch.setenv(name, value)
        bought = await purchase()
        assert (bought.generation.type, bought.generation.price_usd) == (Kind.IMAGE, Decimal("0.02"))
        assert await committed() == Decimal("0.02")


# ---------------------------------------------------------------- every fault of the purchase


@pytest.mark.parametrize("fault", [*AFTER_CHARGE, "slow-answer", "429"])
async def test_a_purchase_is_made_once_whatever_the_response(
    fault: str, sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    parameters: dict[str, Any] = {"seconds": 0.3} if fault == "slow-answer" else {}
    sandbox.fault(fault, **parameters)
    bought = await purchase()
    receipt = await receipt_of()
    middle = {"slow-answer": ["bought"], "429": ["waiting", "sending", "bought"]}.get(fault, ["unknown", "adopted"])
    assert (receipt.state, events(receipt)) == (State.BOUGHT, ["reserved", "sending", *middle])
    assert [item.id for item in sandbox.bill] == [bought.generation.id]
    assert await committed() == Decimal("0.02")
    assert (await purchase()).generation.id == bought.generation.id
    assert len(sandbox.bill) == 1


@pytest.mark.parametrize("fault", BEFORE_CHARGE)
async def test_a_purchase_that_was_lost_before_it_was_made_is_left_to_a_person(
    fault: str, sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    sandbox.fault(fault)
    for _ in range(2):
        with pytest.raises(UnknownSubmission, match="prefect-veogen receipts release") as caught:
            await purchase()
    receipt = await receipt_of()
    assert (receipt.state, caught.value.receipt) == (State.IN_DOUBT, receipt.key)
    assert await committed() == Decimal("0.02")
    assert (len(sandbox.bill), posts(sandbox)) == (0, 1)


@pytest.mark.parametrize("fault", REFUSED)
async def test_a_refused_purchase_is_released_and_can_be_made_later(
    fault: str, sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.02")
    sandbox.fault(fault)
    with pytest.raises(REFUSED[fault]):
        await purchase()
    assert (await receipt_of()).state is State.RELEASED
    assert await committed() == 0
    await purchase()
    receipt = await receipt_of()
    assert events(receipt) == ["reserved", "sending", "released", "reserved", "sending", "bought"]
    assert (receipt.attempt, len(sandbox.bill), await committed()) == (2, 1, Decimal("0.02"))


async def test_a_service_that_is_not_there_is_never_paid(
    sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    await purchase()
    sandbox.stop()
    other = takes(2)[1]
    with pytest.raises(NotSent):
        await purchase(other)
    assert (await receipt_of(other)).state is State.RELEASED
    assert await committed() == Decimal("0.02")


async def test_a_lost_purchase_that_shows_up_late_is_adopted_by_the_next_run(sandbox: Sandbox) -> None:
    sandbox.fault("lost-answer-after-charge")
    sandbox.fault("hidden-from-list", times=None)
    with pytest.raises(UnknownSubmission):
        await purchase()
    sandbox.clear_faults()
    sandbox.advance(60)
    assert [(await purchase()).generation.id] == [item.id for item in sandbox.bill]
    adopted = (await receipt_of()).generation
    assert adopted is not None
    assert adopted.output is None  # its link may be signed


@pytest.mark.parametrize("fault", ["look-500", "look-dropped", "look-html", "look-garbled"])
async def test_a_search_goes_on_when_a_poll_fails(fault: str, sandbox: Sandbox) -> None:
    await purchase(takes(2)[1])
    sandbox.fault("lost-answer-after-charge")
    sandbox.fault(fault)
    assert (await purchase()).generation.id in {item.id for item in sandbox.bill}
    assert len(sandbox.bill) == 2


@pytest.mark.slow
async def test_a_lost_purchase_is_found_on_any_page_of_a_service_that_counts_none(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uncounted(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        if "/generations?" not in request.path:
            return reply
        return Reply(reply.status, reply.headers, json.dumps({"data": json.loads(reply.body)["data"]}).encode())

    with serving(uncounted) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        sandbox.fault("lost-answer-after-charge")
        sandbox.fault("hidden-from-list", times=None)
        with pytest.raises(UnknownSubmission):
            await purchase()
        sandbox.clear_faults()
        for _ in range(120):
            await open_session().client.create_generation({"model": FOX.model, "prompt": "somebody else's"})
        assert (await purchase()).generation.id == sandbox.generations[0].id


async def test_a_lost_purchase_is_found_in_lists_of_any_order(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:

    def oldest_first(request: Request) -> Reply:
        query = dict(parse_qsl(urlsplit(request.path).query))
        if "per_page" not in query:
            return relayed(sandbox.base_url, request)
        if "type" not in query:
            return Reply(body=b'{"data": []}')
        path, asked = request.path.partition("?")[0], int(query["page"])
        paths = [f"{path}?type={query['type']}&per_page=100&page={page}" for page in (1, 2)]
        bodies = [json.loads(relayed(sandbox.base_url, replace(request, path=path)).body) for path in paths]
        items = [item for body in bodies for item in body["data"]][::-1][asked * 100 - 100 : asked * 100]
        for item in items:
            item["created_at"] = item["created_at"] if item["prompt"] == FOX.prompt else "2025-01-15T10:30:00+00:00"
        return Reply(body=json.dumps({"data": items, "meta": {**bodies[0]["meta"], "current_page": asked}}).encode())

    for _ in range(110):
        await open_session().client.create_generation({"model": FOX.model, "prompt": "somebody else's"})
    with serving(oldest_first) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        sandbox.fault("lost-answer-after-charge")
        assert (await purchase()).reused
    assert len(sandbox.bill) == 111


async def test_a_lost_purchase_is_found_whatever_the_services_clock_says(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = timedelta(minutes=10)

    def slow_clock(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        body = re.sub(
            rb'"created_at":"([^"]+)"',
            lambda found: f'"created_at":"{(datetime.fromisoformat(found[1].decode()) - behind).isoformat()}"'.encode(),
            reply.body,
        )
        return Reply(reply.status, {**reply.headers, "date": format_datetime(datetime.now(UTC) - behind)}, body)

    with serving(slow_clock) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        sandbox.fault("lost-answer-after-charge")
        assert (await purchase()).generation.id == sandbox.generations[0].id
    assert len(sandbox.bill) == 1


async def test_an_input_that_the_service_echoes_under_a_link_of_its_own_is_no_proof_of_absence(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:

    def rehosting(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        return Reply(reply.status, reply.headers, reply.body.replace(b"https://example.com/", b"https://cdn.example/"))

    with serving(rehosting) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        sandbox.fault("lost-answer-after-charge")
        with pytest.raises(UnknownSubmission, match="could be it") as caught:
            await purchase(FOX.model_copy(update={"image_urls": ("https://example.com/in.png",)}))
    assert caught.value.candidates == (sandbox.generations[0].id,)
    assert len(sandbox.bill) == 1


@pytest.mark.parametrize(
    ("asked", "echoed", "is_same"),
    [
        ({"duration": 8}, {"duration": 8.0}, True),
        ({"duration": 8}, {"duration": "8"}, True),
        ({"duration": 8}, {"duration": 10}, False),
        ({"watermark": True}, {"watermark": 1}, True),
        ({"watermark": False}, {"watermark": "false"}, True),
        ({"watermark": True}, {"watermark": False}, False),
        ({"resolution": "4k"}, {"resolution": "4K"}, False),
        ({"resolution": "4k"}, {}, True),
    ],
)
def test_an_option_is_the_same_however_a_service_writes_it(
    asked: dict[str, Any], echoed: dict[str, Any], is_same: bool
) -> None:
    request = RecordedRequest(model="m", prompt="p", **asked)
    receipt = Receipt(key="k", content="c", state=State.IN_DOUBT, request=request, take="1", api="https://api")
    generation = Generation(id="g", model="m", prompt="p", parameters=echoed)
    assert looks_like(receipt, generation) is is_same


# ---------------------------------------------------------------- a store that is away at the worst moment


def is_claim(request: Request) -> bool:
    return request.method == "PUT" and "/claims/" in request.path and ".probe" not in request.path


async def test_an_id_is_written_down_when_the_store_comes_back(
    sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 0

    def away_for_a_moment(request: Request) -> Reply:
        nonlocal refusals
        if is_claim(request) and refusals < 2:
            refusals += 1
            return Reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        return relayed(s3_server, request)

    sandbox.fault("hidden-from-list", times=None)  # the id can't be found again
    with serving(away_for_a_moment) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        assert (await purchase()).generation.id == sandbox.generations[0].id
        assert (refusals, (await receipt_of()).state) == (2, State.BOUGHT)


async def test_a_caller_cancelled_while_the_id_is_written_down_loses_nothing(
    sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claiming, go_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Reply:
        if is_claim(request):
            claiming.set()
            go_on.wait(30)
        return relayed(s3_server, request)

    sandbox.fault("hidden-from-list", times=None)
    with serving(slow) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        buying = asyncio.create_task(purchase())
        await asyncio.to_thread(claiming.wait)
        buying.cancel()
        await asyncio.sleep(0.3)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await buying
        assert (await receipt_of()).state is State.BOUGHT


# ---------------------------------------------------------------- what could be confused


async def test_responses_lost_at_once_of_several_takes_are_never_confused(sandbox: Sandbox, store_url: str) -> None:
    sandbox.fault("lost-answer-after-charge", times=4)
    bought = await purchases(*takes(4))
    found = [item.generation.id for item in bought if isinstance(item, Purchase)]
    assert len(set(found)) == 4, bought
    assert sorted(found) == sorted(item.id for item in sandbox.bill)
    again = await purchases(*takes(4))
    assert [item.generation.id for item in again if isinstance(item, Purchase)] == found


@pytest.mark.slow
async def test_while_the_service_is_in_trouble_few_purchases_are_risked(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_REQUESTS_PER_MINUTE", "1200")
    posted: list[float] = []

    def respond(request: Request) -> Reply:
        if request.method == "POST":
            posted.append(time.monotonic())
        in_trouble = request.method == "POST" and time.monotonic() < posted[0] + 2.0
        return Reply(503, body=b"<html>Down for a moment</html>") if in_trouble else relayed(sandbox.base_url, request)

    with serving(respond) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        ends = await purchases(*takes(40))
    unknown = [end for end in ends if isinstance(end, UnknownSubmission)]
    assert 1 <= len(unknown) <= 10  # at 20 purchases a second all 40 would have been sent
    assert len(sandbox.bill) == 40 - len(unknown)


async def test_of_several_lost_takes_the_one_that_was_not_made_stays_unknown(sandbox: Sandbox) -> None:
    sandbox.fault("lost-answer-before-charge")
    sandbox.fault("lost-answer-after-charge", times=2)
    bought = await purchases(*takes(3))
    assert len({item.generation.id for item in bought if isinstance(item, Purchase)}) == 2
    assert sum(isinstance(item, UnknownSubmission) for item in bought) == 1
    again = await purchases(*takes(3))
    assert [type(item) for item in again] == [type(item) for item in bought]
    assert len(sandbox.bill) == 2


async def test_a_generation_that_a_person_made_is_not_taken_for_a_lost_purchase(sandbox: Sandbox) -> None:
    sandbox.fault("lost-answer-after-charge", times=1)
    client = open_session().client
    for _ in range(2):
        await client.acquire_for_purchase()
        await client.create_generation({"model": FOX.model, "prompt": FOX.prompt})
    sandbox.fault("lost-answer-before-charge")
    with pytest.raises(UnknownSubmission, match="2 generations could be it") as caught:
        await purchase()
    assert set(caught.value.candidates) == {item.id for item in sandbox.bill}


@pytest.mark.parametrize("other", [{"aspect_ratio": "1:1"}, {"prompt": "A red fix"}, {"model": "gpt-image-2"}])
async def test_a_generation_with_another_option_is_not_taken_for_a_lost_purchase(
    other: dict[str, str], sandbox: Sandbox
) -> None:
    request = FOX.model_copy(update={"aspect_ratio": "16:9"})
    client = open_session().client
    await client.acquire_for_purchase()
    await client.create_generation(request.set_fields() | other)
    sandbox.fault("lost-answer-before-charge")
    with pytest.raises(UnknownSubmission, match="does not list it"):
        await purchase(request)
    assert len(sandbox.bill) == 1


def echoing(echo: Any, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    sandbox = Sandbox(speed=100, tiny_media=True, requests_per_minute=None, parameters_echo=echo).start()
    for name, value in {**sandbox.environment, **fast_settings(), "VEOGEN_IN_DOUBT_SECONDS": "never"}.items():
        monkeypatch.setenv(name, value)
    return sandbox


def with_inputs(count: int) -> list[GenerationRequest]:
    links = [f"https://example.com/{number}.png?signature={number}" for number in range(count)]
    return [FOX.model_copy(update={"image_urls": (link,)}) for link in links]


@pytest.mark.parametrize("echo", ["sent", "with-defaults"])
async def test_the_same_prompt_with_other_inputs_lost_at_once_is_never_swapped(
    echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_echo = echoing(echo, monkeypatch)
    with_echo.fault("lost-answer-after-charge", times=3)
    requests = with_inputs(3)
    bought = await purchases(*requests)
    made = {record.id: record.parameters["image_urls"] for record in with_echo.generations}
    assert [made[item.generation.id] for item in bought if isinstance(item, Purchase)] == [
        list(request.image_urls or ()) for request in requests
    ]
    with_echo.stop()


async def test_inputs_that_are_not_echoed_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = echoing("without-inputs", monkeypatch)
    silent.fault("lost-answer-after-charge", times=2)
    bought = await purchases(*with_inputs(2))
    assert [type(item) for item in bought] == [UnknownSubmission, UnknownSubmission]
    assert (len(silent.bill), posts(silent)) == (2, 2)
    silent.stop()


async def test_the_only_generation_is_not_taken_while_it_could_be_another_receipts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = echoing("without-inputs", monkeypatch)
    silent.fault("lost-answer-before-charge")
    silent.fault("lost-answer-after-charge")
    bought = await purchases(*with_inputs(2))
    assert [type(item) for item in bought] == [UnknownSubmission, UnknownSubmission]
    assert len(silent.bill) == 1
    silent.stop()


async def test_inputs_that_are_not_echoed_are_found_when_there_is_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = echoing("without-inputs", monkeypatch)
    first, second = with_inputs(2)
    await purchase(first)
    silent.fault("lost-answer-after-charge")
    assert (await purchase(second)).generation.id == silent.generations[1].id
    silent.stop()


# ---------------------------------------------------------------- failures of the generation


async def test_a_failed_generation_is_bought_again_with_its_history(
    sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.02")
    sandbox.fault("failed", reason="out of ink")
    first = (await purchase()).generation
    sandbox.advance(60)
    with pytest.raises(GenerationFailed, match="out of ink"):
        await on_io(wait(open_session(), first))
    assert (await receipt_of()).state is State.FAILED
    assert await committed() == 0
    second = await purchase()
    receipt = await receipt_of()
    assert not second.reused
    assert second.generation.id != first.id
    assert events(receipt) == ["reserved", "sending", "bought", "failed", "reserved", "sending", "bought"]
    assert first.id in [event.detail for event in receipt.history]
    assert (len(sandbox.bill), await committed()) == (1, Decimal("0.02"))


async def test_what_failed_is_given_back_once_however_many_wait(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    await purchase(takes(2)[1])
    sandbox.fault("failed")
    generation = (await purchase()).generation
    sandbox.advance(60)
    waits = (on_io(wait(open_session(), generation)) for _ in range(6))
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(result, GenerationFailed) for result in results)
    assert await committed() == Decimal("0.02")


# ---------------------------------------------------------------- budgets


async def test_many_purchases_at_once_never_exceed_the_cap(
    sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.11")
    bought = await purchases(*takes(12))
    assert sum(isinstance(item, Purchase) for item in bought) == len(sandbox.bill) == 5
    refused = [item for item in bought if not isinstance(item, Purchase)]
    assert all(isinstance(error, BudgetExceeded) for error in refused)
    states = [(await receipt_of(request)).state for request in takes(12)]
    assert (states.count(State.BOUGHT), states.count(State.RELEASED)) == (5, 7)
    assert await committed() == Decimal("0.10")


async def test_what_a_dead_buyer_had_set_aside_is_not_set_aside_twice(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.02")
    await purchase()
    session, receipt = open_session(), await receipt_of()
    # As if killed after the money was reserved, then released by hand and killed again before the release.
    await session.budgets.release(receipt.budgets, receipt.reservation, Decimal("0.02"))
    await session.budgets.reserve(session.caps, receipt.reservation, Decimal("0.02"), "dead")
    await left_behind(session, receipt.key, state=State.RELEASED, generation=None)
    assert not (await purchase()).reused
    assert await committed() == Decimal("0.02")


# ---------------------------------------------------------------- stopped in the middle


async def test_a_caller_cancelled_during_the_purchase_loses_nothing(sandbox: Sandbox, store_url: str) -> None:
    await purchase(takes(2)[1])
    sandbox.fault("slow-answer", seconds=60.0)
    buying = asyncio.create_task(purchase())
    await made(sandbox, 2)
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying
    again = await purchase()
    assert again.generation.id == list(sandbox.bill)[1].id
    assert "adopted" in events(await receipt_of())
    assert len(sandbox.bill) == 2


@pytest.mark.parametrize("late", [b'"state": "reserved"', b'"spent_usd"', b'"state": "sending"'])
async def test_a_caller_cancelled_before_the_purchase_leaves_nothing_that_others_wait_for(
    late: bytes, sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Reply:
        if request.method == "PUT" and late in request.body and not writing.is_set():
            writing.set()
            go_on.wait(30)
        return relayed(s3_server, request)

    with serving(slow) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.02")
        buying = asyncio.create_task(purchase())
        await asyncio.to_thread(writing.wait)
        buying.cancel()
        await asyncio.sleep(0.1)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await buying
        assert ((await receipt_of()).state, await committed()) == (State.RELEASED, 0)
        assert not (await purchase()).reused
    assert len(sandbox.bill) == 1  # of the first one nothing but the headers was sent


@pytest.mark.parametrize("is_expired", [False, True])
async def test_what_a_living_process_only_reserved_is_taken_over_when_its_time_is_over(
    is_expired: bool, sandbox: Sandbox
) -> None:
    sandbox.fault("402")
    with pytest.raises(InsufficientBalance):
        await purchase()
    session, receipt = open_session(), await receipt_of()
    until = datetime.now(UTC) + timedelta(hours=-1 if is_expired else 1)
    living = [sys.executable, "-c", "input()"]
    with subprocess.Popen(living, stdin=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - a moment
        mark = _process_mark(process.pid)
        other = Owner(id="1", host="here", pid=process.pid, process=mark, lease_until=until)
        await left_behind(session, receipt.key, state=State.RESERVED, owner=other)
        buying = asyncio.create_task(purchase())
        await asyncio.wait([buying], timeout=20 if is_expired else 0.5)
        assert (buying.done(), len(sandbox.bill)) == (is_expired, int(is_expired))
        process.communicate("")
    assert not (await buying).reused
    assert len(sandbox.bill) == 1


async def test_a_purchase_under_way_in_a_living_process_is_waited_for(sandbox: Sandbox) -> None:
    sandbox.fault("slow-answer", seconds=0.8)
    first = asyncio.create_task(purchase())
    await made(sandbox, 1)
    second = await purchase()
    assert (second.reused, second.generation.id) == (True, (await first).generation.id)
    assert "unknown" not in events(await receipt_of())


# ---------------------------------------------------------------- before the money


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"format": 2}', json.dumps({"format": 1, "state": "bought"}).encode(), b"\xff\xfe\x00"]
)
async def test_nothing_is_bought_beside_a_receipt_that_cannot_be_read(body: bytes, sandbox: Sandbox) -> None:
    session = open_session()
    key = FOX.receipt_key(session.client.base_url)
    await session.store.put(f"receipts/{key}.json", body, "application/json")
    with pytest.raises(UnreadableReceipt, match="Nothing is bought"):
        await purchase()
    assert posts(sandbox) == 0


async def test_nothing_is_bought_with_a_store_that_cannot_guard_money(
    sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda request: relayed(s3_server, without(request, "if-none-match"))) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        with pytest.raises(UnsafeStore):
            await purchase()
    assert sandbox.requests == ()


async def test_a_request_the_model_does_not_take_is_refused_before_anything_is_written(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidRequest, match="aspect_ratio"):
        await purchase(FOX.model_copy(update={"aspect_ratio": "7:3"}))
    assert posts(sandbox) == 0
    store = open_session().store
    assert isinstance(store, LocalStore)
    assert await store.list_objects("") == []


@pytest.mark.parametrize("fault", ["lost-answer-after-charge", "422", "500-before-charge"])
async def test_receipts_hold_no_secrets(fault: str, sandbox: Sandbox, store_url: str) -> None:
    secret = "https://example.com/in.png?X-Amz-Signature=hunter2#hunter2"
    request = FOX.model_copy(update={"image_urls": (secret,)})
    sandbox.fault(fault)
    await purchases(request)
    store = open_session().store
    receipt = await receipt_of(request)
    assert receipt.links == {"image_urls": ("https://example.com/in.png",)}
    for found in await store.list_objects(""):
        document = await store.read(found.key)
        assert document is not None
        assert b"hunter2" not in document.body
        assert sandbox.token.encode() not in document.body


async def test_an_input_signed_anew_is_bought_once_and_sent_as_it_was_signed(sandbox: Sandbox) -> None:
    def signed(secret: str) -> GenerationRequest:
        link = f"https://example.com/in.png?Expires=1&Signature={secret}&Key-Pair-Id=K&id=7"
        return FOX.model_copy(update={"image_urls": (link,)})

    first, second = await purchase(signed("hunter2")), await purchase(signed("other"))
    assert (first.reused, second.reused) == (False, True)
    assert first.generation.id == second.generation.id
    assert sandbox.generations[0].parameters["image_urls"] == list(signed("hunter2").image_urls or ())
    assert not (await purchase(signed("other").model_copy(update={"take": 2}))).reused
    assert len(sandbox.bill) == 2


# ---------------------------------------------------------------- failures of others


@pytest.mark.slow
async def test_a_call_that_waited_while_another_workers_purchase_failed_gets_the_failure_and_buys_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.fault("failed")
    fast = open_session()
    monkeypatch.setenv("VEOGEN_REQUESTS_PER_MINUTE", "12")
    slow = open_session()
    for _ in range(2):
        await on_io(slow.client.get_account())  # so that the limiter makes its purchase wait
    late = asyncio.create_task(on_io(buy(slow, FOX)))
    await asyncio.sleep(0.5)
    with pytest.raises(GenerationFailed):
        await on_io(wait(fast, (await on_io(buy(fast, FOX))).generation, 30))
    with pytest.raises(GenerationFailed):
        await late
    assert len(sandbox.generations) == 1
    assert (await on_io(buy(fast, FOX))).reused is False, "whoever begins afterwards buys again"


async def test_a_failure_is_told_with_the_labels_that_it_was_bought_with(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    told: list[Any] = []
    purchase = await on_io(buy(open_session(labels={"project": "spring"}), FOX))
    session = replace(open_session(), emit=lambda name, _resource, payload: told.append((name, payload["labels"])))
    with pytest.raises(GenerationFailed):
        await on_io(wait(session, purchase.generation, 30))
    assert told == [("veogen.generation.failed", {"project": "spring"})]
