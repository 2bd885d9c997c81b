"""In doubt: found, proven absent and bought again, or left to a person; never bought twice, never by a guess."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from prefect_veogen.errors import NotSent, UnknownSubmission
from prefect_veogen.ledger.budgets import day_budget
from prefect_veogen.ledger.receipt import Receipt
from prefect_veogen.ledger.transitions import State
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import Purchase, buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.receipts import left_behind
from tests.support.servers import Reply, Request, relayed, serving, without
from tests.support.upkeep import sweep

LOST = GenerationRequest(model="gpt-4o-image", prompt="A red fox, ink on paper")
OURS = GenerationRequest(model="gpt-4o-image", prompt="ours")
PRICE = Decimal("0.02")
DELAY_SECONDS = 10.0
_CLIENTS = itertools.count(1)


@pytest.fixture(autouse=True)
def _default_delay(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "900")


async def purchase(request: GenerationRequest = LOST) -> Purchase:
    return await on_io(buy(open_session(), request))


async def receipt_of(request: GenerationRequest = LOST) -> Receipt:
    session = open_session()
    entry = await on_io(session.ledger.read(request.receipt_key(session.client.base_url)))
    assert entry is not None
    return entry.receipt


async def lose(sandbox: Sandbox, request: GenerationRequest = LOST) -> UnknownSubmission:
    """Lose a purchase before it is made, and return the error that its caller gets."""
    sandbox.fault("503-before-charge", prompt=request.prompt)
    with pytest.raises(UnknownSubmission) as caught:
        await purchase(request)
    return caught.value


def when_it_is_over(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the delay pass, and make the readings' distance short enough for a test."""
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", str(DELAY_SECONDS))
    sandbox.advance(DELAY_SECONDS + 1)


def bought(sandbox: Sandbox, request: GenerationRequest = LOST) -> int:
    return sum(generation.prompt == request.prompt for generation in sandbox.generations)


def events(receipt: Receipt) -> list[str]:
    return [event.event.value for event in receipt.history]


def readings_of(sandbox: Sandbox) -> int:
    return sum(record.headers.get("cache-control") == "no-cache" for record in sandbox.requests)


# ---------------------------------------------------------------- it heals by itself


async def test_what_is_proven_absent_is_bought_again_and_the_receipt_says_why(
    sandbox: Sandbox, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    await purchase(OURS)
    sandbox.speed = 1  # what is left of the doubt is told by the service's clock
    doubted = await lose(sandbox)
    assert doubted.doubt_until is not None
    assert timedelta(minutes=12) < doubted.doubt_until - datetime.now(UTC) < timedelta(minutes=16)
    assert f"{doubted.doubt_until:%Y-%m-%d %H:%M:%S} UTC" in str(doubted)
    with pytest.raises(UnknownSubmission):
        await purchase()
    sandbox.speed = 100
    when_it_is_over(sandbox, monkeypatch)
    assert not (await purchase()).reused
    receipt = await receipt_of()
    assert events(receipt) == ["reserved", "sending", "unknown", "read", "read", "reserved", "sending", "bought"]
    first, second = receipt.lost[0].readings
    assert second.began_at - first.ended_at >= timedelta(seconds=DELAY_SECONDS / 10)
    assert first.recognised == sandbox.generations[0].id
    assert "proven absent" in (receipt.history[-3].detail or "")
    assert bought(sandbox) == 1
    account = await open_session().budgets.read_account(day_budget())
    assert account.committed_usd == 3 * PRICE  # the lost attempt counts for one more day


async def test_a_doubt_that_lasts_hardly_any_time_is_ended_by_the_run_that_met_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "0.1")
    await purchase(OURS)
    sandbox.fault("503-before-charge")
    assert not (await purchase()).reused
    receipt = await receipt_of()
    first, second = receipt.lost[0].readings
    assert second.began_at > first.ended_at
    assert bought(sandbox) == 1


async def test_what_is_listed_late_is_adopted_by_the_next_run_and_not_bought_again(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purchase(OURS)
    sandbox.fault("lost-answer-after-charge")
    sandbox.fault("hidden-from-list", times=None, prompt=LOST.prompt)
    with pytest.raises(UnknownSubmission):
        await purchase()
    sandbox.clear_faults()
    when_it_is_over(sandbox, monkeypatch)
    assert (await purchase()).reused
    assert bought(sandbox) == 1


async def test_what_is_listed_only_after_two_readings_is_found_by_the_one_before_the_purchase(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purchase(OURS)
    sandbox.fault("lost-answer-after-charge")
    sandbox.fault("hidden-from-list", times=None, prompt=LOST.prompt)
    with pytest.raises(UnknownSubmission):
        await purchase()
    when_it_is_over(sandbox, monkeypatch)

    def shown_from_the_third_on(request: Request) -> Reply:
        if request.headers.get("cache-control") == "no-cache" and readings_of(sandbox) == 2:
            sandbox.clear_faults()
        return relayed(sandbox.base_url, request)

    with through(shown_from_the_third_on, sandbox):
        assert (await purchase()).reused
    assert readings_of(sandbox) == 3
    assert "reopened" in events(await receipt_of())
    assert bought(sandbox) == 1


async def test_many_in_doubt_at_once_share_their_readings_and_are_each_bought_once(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purchase(OURS)
    requests = [LOST.model_copy(update={"prompt": f"lost {number}"}) for number in range(12)]
    sandbox.fault("503-before-charge", times=12)
    lost = await asyncio.gather(*map(purchase, requests), return_exceptions=True)
    assert all(isinstance(error, UnknownSubmission) for error in lost)
    when_it_is_over(sandbox, monkeypatch)
    workers = [*map(purchase, requests), *map(purchase, requests)]
    healed = await asyncio.gather(*workers)
    assert sum(not item.reused for item in healed) == 12
    assert len(sandbox.bill) == 13
    assert readings_of(sandbox) <= 3 * 12  # alone, each of the 24 would need two, and each of the 12 one more


# ---------------------------------------------------------------- what proves nothing


@contextmanager
def through(bend: Callable[[Request], Reply | None], sandbox: Sandbox) -> Iterator[None]:
    """Let all requests of this process go through a server that may bend the responses."""
    bending = pytest.MonkeyPatch()

    def respond(request: Request) -> Reply | None:
        # The ledger's keys hold the API's address, which stays the sandbox's.
        return bend(replace(request, path=urlsplit(request.path)._replace(scheme="", netloc="").geturl()))

    with serving(respond) as proxy:
        bending.setenv("HTTP_PROXY", proxy)
        # A client keeps the proxy that it was made with: this is another client.
        bending.setenv("VEOGEN_REQUEST_TIMEOUT_SECONDS", str(60 + next(_CLIENTS)))
        try:
            yield
        finally:
            bending.undo()


def is_reading(request: Request) -> bool:
    return request.headers.get("cache-control") == "no-cache"


def bent(change: Callable[[dict[str, Any]], Any]) -> Callable[[Reply], Reply]:
    """Return a change of a reading's response, which is JSON."""

    def respond(reply: Reply) -> Reply:
        body = json.loads(reply.body)
        return replace(reply, body=json.dumps(change(body) or body).encode())

    return respond


def without_date(reply: Reply) -> Reply:
    return replace(reply, headers={name: value for name, value in reply.headers.items() if name != "date"})


def reverse(body: dict[str, Any]) -> None:
    body["data"].append({**body["data"][0], "id": "another", "created_at": "2999-01-01T00:00:00+00:00"})


VOID: dict[str, tuple[Callable[[Reply], Reply], str]] = {
    "an error": (lambda reply: Reply(500, reply.headers, b"{}"), "could not be asked"),
    "a web page": (lambda reply: replace(reply, body=b"<html>Please log in</html>"), "could not be asked"),
    "an empty list": (bent(lambda body: body["data"].clear()), "shows no image that this store has bought"),
    "no time": (without_date, "does not say when it responded"),
    "another order": (bent(reverse), "not newest first"),
    "no times of creation": (
        bent(lambda body: [item.pop("created_at") for item in body["data"]] and body),
        "were made",
    ),
    "an unreadable record": (bent(lambda body: body["data"].append({"id": None})), "can't be read"),
    "a missing page": (
        bent(lambda body: body["meta"].update(last_page=2) if body["data"] else None),
        "page 2 of the list is missing",
    ),
    "a clock that stands": (
        lambda reply: replace(reply, headers={**reply.headers, "date": "Fri, 27 Nov 2099 00:00:00 GMT"}),
        "clock does not go on",
    ),
}


FOR_GOOD = ("no time", "another order", "no times of creation")


@pytest.mark.parametrize("what", VOID)
async def test_a_reading_that_proves_nothing_buys_nothing(
    what: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purchase(OURS)
    await lose(sandbox)
    when_it_is_over(sandbox, monkeypatch)
    change, reason = VOID[what]

    def void(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        if is_reading(request) and what == "a missing page" and "page=2" in request.path:
            return bent(lambda body: body["data"].clear())(reply)
        return change(reply) if is_reading(request) else reply

    with through(void, sandbox), pytest.raises(UnknownSubmission, match=reason) as caught:
        await purchase()
    assert caught.value.doubt_until is not None
    needs = {"an empty list": "another image has to be bought"} | dict.fromkeys(FOR_GOOD, "list in another way")
    assert ("Time alone" in caught.value.next_step, needs.get(what, "") in caught.value.next_step) == (
        what in needs,
        True,
    )
    assert ((await receipt_of()).state, bought(sandbox)) == (State.IN_DOUBT, 0)
    assert not (await purchase()).reused
    assert bought(sandbox) == 1


@pytest.mark.parametrize("first", [None, GenerationRequest(model="veo-3.1-fast", prompt="another kind")])
async def test_a_list_that_shows_nothing_of_ours_proves_nothing(
    first: GenerationRequest | None, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if first is not None:
        await purchase(first)
    client = open_session().client
    await client.create_generation({"model": OURS.model, "prompt": "somebody else's"})
    await lose(sandbox)
    when_it_is_over(sandbox, monkeypatch)
    with pytest.raises(UnknownSubmission, match="silence proves nothing") as caught:
        await purchase()
    told = "Time alone won't end this: another image has to be bought with this store. Then run it again after 20"
    assert caught.value.next_step.startswith(told)
    await purchase(OURS)
    assert not (await purchase()).reused


@pytest.mark.parametrize("private_before", [False, True])
async def test_a_private_purchase_is_absent_only_from_a_list_that_shows_private_ones(
    private_before: bool, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def that_takes_private(request: Request) -> Reply:
        body = json.loads(request.body or b"{}")
        body.pop("private", None)
        sent = replace(request, body=json.dumps(body).encode() if body else b"")
        reply = relayed(sandbox.base_url, without(sent, "content-length"))
        return (
            bent(lambda model: model["data"]["supported_params"].append("private"))(reply)
            if ("/models/" in request.path)
            else reply
        )

    with through(that_takes_private, sandbox):
        await purchase(OURS.model_copy(update={"private": private_before or None}))
        lost = LOST.model_copy(update={"private": True})
        await lose(sandbox, lost)
        when_it_is_over(sandbox, monkeypatch)
        if private_before:
            assert not (await purchase(lost)).reused
        else:
            with pytest.raises(UnknownSubmission, match=r"no private image(?s:.*)end this: another private image has"):
                await purchase(lost)


async def test_ours_is_recognised_on_any_page(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    await purchase(OURS)
    await lose(sandbox)
    client = open_session().client
    for _ in range(130):
        await client.create_generation({"model": OURS.model, "prompt": "somebody else's"})
    when_it_is_over(sandbox, monkeypatch)
    assert not (await purchase()).reused
    pages = {dict(parse_qsl(record.query)).get("page") for record in sandbox.requests}
    assert "2" in pages
    assert bought(sandbox) == 1


# ---------------------------------------------------------------- what stays a person's decision


@pytest.mark.parametrize("prompt", [LOST.prompt, f"  {LOST.prompt.upper()}\n", LOST.prompt.replace(" ", "  ")])
async def test_whatever_could_be_it_is_left_to_a_person(
    prompt: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purchase(OURS)
    client = open_session().client
    for _ in range(2):
        await client.create_generation({"model": LOST.model, "prompt": prompt})
    sandbox.fault("503-before-charge", prompt=LOST.prompt)
    when_it_is_over(sandbox, monkeypatch)
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "0.1")
    with pytest.raises(UnknownSubmission, match="2 generations could be it") as caught:
        await purchase()
    assert (caught.value.doubt_until, len(sandbox.bill)) == (None, 3)


async def test_never_leaves_it_to_a_person(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    await purchase(OURS)
    doubted = await lose(sandbox)
    sandbox.advance(7 * 86400)
    with pytest.raises(UnknownSubmission, match="leaves it to a person"):
        await purchase()
    assert (doubted.doubt_until, bought(sandbox)) == (None, 0)
    assert "receipts release" in str(doubted)


async def test_without_the_senders_clock_time_proves_nothing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    await purchase(OURS)
    await lose(sandbox)
    await on_io(left_behind(open_session(), (await receipt_of()).key, clock_offset_seconds=None))
    when_it_is_over(sandbox, monkeypatch)
    with pytest.raises(UnknownSubmission, match="clock was not known") as caught:
        await purchase()
    assert caught.value.doubt_until is None


@pytest.mark.parametrize("hours", [-3, 3])
async def test_the_delay_is_counted_by_the_services_clock(
    hours: int, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = timedelta(0)

    def other_clock(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        now = datetime.now(UTC) + timedelta(hours=hours) + passed

        def moved(found: re.Match[bytes]) -> bytes:
            made = datetime.fromisoformat(found[1].decode()) + timedelta(hours=hours)
            return f'"created_at":"{made.isoformat()}"'.encode()

        body = re.sub(rb'"created_at":"([^"]+)"', moved, reply.body)
        return replace(reply, headers={**reply.headers, "date": format_datetime(now, usegmt=True)}, body=body)

    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "600")
    with through(other_clock, sandbox):
        await purchase(OURS)
        await lose(sandbox)
        receipt = await receipt_of()
        assert abs((receipt.clock_offset_seconds or 0) + hours * 3600) < 5
        with pytest.raises(UnknownSubmission, match="does not list it"):
            await purchase()
        passed = timedelta(seconds=601)
        monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", str(DELAY_SECONDS))
        assert not (await purchase()).reused


# ---------------------------------------------------------------- what a late sender can do


@pytest.mark.slow
async def test_a_sender_whose_note_took_too_long_sends_nothing(
    sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_note(request: Request) -> Reply:
        if request.method == "PUT" and b'"state": "sending"' in request.body:
            time.sleep(10.5)
        return relayed(s3_server, request)

    with serving(slow_note) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        with pytest.raises(NotSent, match="took longer than"):
            await purchase()
        assert ((await receipt_of()).state, len(sandbox.bill)) == (State.RELEASED, 0)


async def test_the_kernel_gives_up_what_it_cannot_deliver_within_the_requests_time(sandbox: Sandbox) -> None:
    connected: list[int] = []
    setting = socket.socket.setsockopt

    def noting(own: socket.socket, level: int, option: int, *value: Any) -> None:
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT):
            connected.append(value[0])
        setting(own, level, option, *value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "setsockopt", noting)
        patch.setenv("VEOGEN_REQUEST_TIMEOUT_SECONDS", "7")
        await purchase()
    assert connected
    assert set(connected) == {7000}


async def test_a_response_that_comes_late_is_recorded_beside_the_purchase_that_replaced_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purchase(OURS)
    arrived, go_on = threading.Event(), threading.Event()

    def held_back(request: Request) -> Reply:
        if request.method == "POST" and not arrived.is_set():
            arrived.set()
            go_on.wait(30)
        return relayed(sandbox.base_url, request)

    with through(held_back, sandbox):
        late = asyncio.create_task(purchase())
        await asyncio.to_thread(arrived.wait)
        # As another machine sees it when the sender's lease is over: the sender itself is alive, and only frozen.
        session, receipt = open_session(), await receipt_of()
        await on_io(left_behind(session, receipt.key, state=State.IN_DOUBT, owner=None))
        monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "0.1")
        again = await purchase()
        go_on.set()
        assert (await late).generation.id == again.generation.id
    receipt = await receipt_of()
    assert [item.id for item in receipt.also_bought] == [sandbox.generations[-1].id]
    assert (bought(sandbox), receipt.state) == (2, State.BOUGHT)


# ---------------------------------------------------------------- when the assumption does not hold


async def test_what_turns_up_within_a_week_is_claimed_counted_and_reported(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    await purchase(OURS)
    sandbox.fault("lost-answer-after-charge")
    sandbox.fault("hidden-from-list", times=None, prompt=LOST.prompt)
    with pytest.raises(UnknownSubmission):
        await purchase()
    first = sandbox.generations[-1]
    when_it_is_over(sandbox, monkeypatch)
    assert not (await purchase()).reused
    sandbox.clear_faults()
    sandbox.advance(3600)
    swept = {item.key: item for item in await sweep(open_session())}
    receipt = await receipt_of()
    assert f"BOUGHT TWICE: generation {first.id}" in swept[receipt.key].note
    assert [item.id for item in receipt.also_bought] == [first.id]
    assert (await open_session().budgets.read_account(day_budget())).spent_usd == 3 * PRICE
    await sweep(open_session())
    assert (await receipt_of()).state is State.STORED
    assert await sweep(open_session()) == []


async def test_what_never_turns_up_is_not_searched_for_after_a_week(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purchase(OURS)
    await lose(sandbox)
    when_it_is_over(sandbox, monkeypatch)
    await purchase()
    sandbox.advance(3600)
    await sweep(open_session())
    (attempt,) = (await receipt_of()).lost
    old = attempt.model_copy(update={"given_up_at": datetime.now(UTC) - timedelta(days=8)})
    for lost, lists in (((attempt,), True), ((old,), False)):
        await on_io(left_behind(open_session(), (await receipt_of()).key, lost=lost))
        before = len(sandbox.requests)
        await sweep(open_session())
        assert any("type=image" in record.query for record in sandbox.requests[before:]) is lists
