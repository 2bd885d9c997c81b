"""Costs: the receipts summed up by what they were for, as budgets count them and the account was charged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from prefect_veogen.errors import GenerationFailed, InsufficientBalance, UnknownSubmission
from prefect_veogen.ledger import State
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.ledger.receipt import LostAttempt
from prefect_veogen.models import Generation, GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.upkeep.costs import Cost, Costs, Grouping, read_costs
from tests.support.receipts import left_behind
from tests.support.upkeep import reconcile

CENTS = Decimal("0.02")
CAP = Cap("all", Decimal(100))
BY_MODEL, BY_DAY, BY_CAMPAIGN = Grouping("model"), Grouping("day"), Grouping("campaign")
BY_PROJECT = Grouping("label", "project")


def picture(prompt: str, **fields: Any) -> GenerationRequest:
    return GenerationRequest(model="gpt-4o-image", prompt=prompt, **fields)


async def bought(
    request: GenerationRequest, labels: Mapping[str, str] | None = None, campaign: str | None = None
) -> str:
    """Buy, wait until it has ended, and return the receipt's key."""
    session = replace(open_session(caps=(CAP,), labels=labels), campaign=campaign)
    purchase = await on_io(buy(session, request))
    await on_io(wait(session, purchase.generation, 30))
    return request.receipt_key(session.client.base_url)


async def costs(grouping: Grouping = BY_PROJECT, since: datetime | None = None) -> Costs:
    return await on_io(read_costs(open_session().ledger, grouping, since))


async def spent(grouping: Grouping = BY_PROJECT, since: datetime | None = None) -> dict[str, Decimal]:
    return {row.key: row.spent_usd for row in (await costs(grouping, since)).rows}


async def committed() -> Decimal:
    return (await on_io(open_session().budgets.read_account(CAP.budget))).committed_usd


def today() -> str:
    return f"{datetime.now(UTC).date()}"


async def test_sums_by_label_campaign_model_and_day_are_those_of_the_bill_and_of_the_statement(
    sandbox: Sandbox, store_url: str
) -> None:
    began = datetime.now(UTC)
    clip = GenerationRequest(model="veo-3.1-fast", prompt="spring clip")
    large = GenerationRequest(model="gpt-image-2", prompt="autumn large", resolution="4K")
    await asyncio.gather(
        bought(picture("spring one"), {"project": "spring"}, "sale"),
        bought(picture("spring two"), {"project": "spring", "team": "shop"}, "sale"),
        bought(clip, {"project": "spring"}),
        bought(large, {"project": "autumn", "team": "shop"}, "fair"),
        bought(picture("none")),
    )
    await bought(picture("spring one"), {"project": "autumn"}, "fair")  # used again: stays spring's
    sandbox.advance(60)
    bill = {word: Decimal(0) for word in ("spring", "autumn", "none")}
    models: dict[str, Decimal] = {}
    for item in sandbox.bill:
        bill[item.prompt.split()[0]] += item.price_usd
        models[item.model] = models.get(item.model, Decimal(0)) + item.price_usd
    assert await spent() == {"spring": bill["spring"], "autumn": bill["autumn"], "": bill["none"]}
    assert await spent(BY_MODEL) == models
    assert await spent(BY_DAY) == {today(): sandbox.bill.total_usd}
    assert await spent(BY_CAMPAIGN) == {
        "sale": 2 * CENTS,
        "fair": bill["autumn"],
        "": sandbox.bill.total_usd - 2 * CENTS - bill["autumn"],
    }
    found = await costs(Grouping("label", "team"))
    assert {row.key: row.spent_usd for row in found.rows}["shop"] == CENTS + bill["autumn"]
    statement = await reconcile(open_session(), began - timedelta(hours=1))
    assert statement.adds_up
    assert found.total.spent_usd == statement.ledger_usd == statement.statement_usd == sandbox.bill.total_usd
    assert found.total.committed_usd == await committed()


async def test_the_dearest_comes_first_and_days_in_their_order(sandbox: Sandbox) -> None:
    await bought(picture("a"), {"project": "a"})
    dear = await bought(GenerationRequest(model="veo-3.1-fast", prompt="z"), {"project": "z"})
    await bought(picture("b"), {"project": "b"})
    assert [row.key for row in (await costs()).rows] == ["z", "a", "b"]
    await on_io(left_behind(open_session(), dear, sent_at=datetime(2026, 11, 1, 0, 30, tzinfo=UTC)))
    assert [row.key for row in (await costs(BY_DAY)).rows] == sorted(["2026-11-01", today()])


async def test_what_failed_or_was_refused_is_no_row(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    with pytest.raises(GenerationFailed):
        await bought(picture("failed"))
    sandbox.fault("402")
    with pytest.raises(InsufficientBalance):
        await bought(picture("refused"))
    assert (await costs(BY_MODEL)).rows == ()
    assert (await costs(BY_MODEL)).total == Cost("")


async def test_what_is_in_doubt_and_what_is_being_bought_have_columns_of_their_own(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("lost-answer-before-charge")
    with pytest.raises(UnknownSubmission):
        await bought(picture("lost"), {"project": "spring"})
    for state in (State.RESERVED, State.SENDING):
        key = await bought(picture(state.value), {"project": "spring"})
        gone = {"sent_at": None} if state is State.RESERVED else {}
        await on_io(left_behind(open_session(), key, state=state, generation=None, **gone))
    assert (await costs()).rows == (Cost("spring", Decimal(0), 2 * CENTS, CENTS),)
    assert [row.key for row in (await costs(BY_DAY)).rows] == [today()]
    assert (await costs()).total.committed_usd == await committed()


async def test_a_lost_attempt_counts_for_a_day_under_its_own_label_as_in_the_budgets(sandbox: Sandbox) -> None:
    key = await bought(picture("x"), {"project": "spring"})
    now = datetime.now(UTC)
    for ago, rows in (
        (timedelta(hours=23), (Cost("autumn", in_doubt_usd=Decimal("0.05")), Cost("spring", CENTS))),
        (timedelta(hours=25), (Cost("spring", CENTS),)),
    ):
        lost = LostAttempt(
            attempt=1,
            sent_at=now - ago,
            quote_usd=Decimal("0.05"),
            given_up_at=now - ago,
            labels={"project": "autumn"},
        )
        await on_io(left_behind(open_session(), key, lost=(lost,)))
        assert (await costs()).rows == rows


async def test_what_was_bought_as_well_is_spent(sandbox: Sandbox) -> None:
    key = await bought(picture("x"), {"project": "spring"})
    also = (Generation(id="also", price_usd=Decimal("0.07")), Generation(id="unpriced"))
    await on_io(left_behind(open_session(), key, also_bought=also))
    assert await spent() == {"spring": CENTS + Decimal("0.07") + CENTS}
    await on_io(left_behind(open_session(), key, state=State.FAILED))
    assert await spent() == {"spring": Decimal("0.09")}


async def test_only_what_was_sent_since_then_counts(sandbox: Sandbox) -> None:
    old = await bought(picture("old"), {"project": "old"})
    await on_io(left_behind(open_session(), old, sent_at=datetime.now(UTC) - timedelta(days=3)))
    await bought(picture("new"), {"project": "new"})
    assert await spent(since=datetime.now(UTC) - timedelta(days=1)) == {"new": CENTS}
    assert await spent(since=datetime.now(UTC) - timedelta(days=4)) == {"new": CENTS, "old": CENTS}


async def test_damaged_receipts_are_named_and_stop_nothing(sandbox: Sandbox) -> None:
    await bought(picture("x"), {"project": "spring"})
    await on_io(open_session().store.put("receipts/v1-damaged.json", b"{", "application/json"))
    found = await costs()
    assert [row.key for row in found.rows] == ["spring"]
    assert ["v1-damaged" in error.message for error in found.damaged] == [True]
