"""Budgets by label: a cap holds for every purchase with the label, whoever makes it, and for no other."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen.campaign.rows import Row
from prefect_veogen.campaign.run import check_rows
from prefect_veogen.errors import BudgetExceeded, ConfigurationError, GenerationFailed, UnknownSubmission
from prefect_veogen.ledger import Receipt, State
from prefect_veogen.ledger.budgets import Cap, day_budget, label_caps
from prefect_veogen.ledger.receipt import Reading
from prefect_veogen.models import GenerationRequest, LabelBudget
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.notices import note_refused
from prefect_veogen.purchase.plan import BudgetLeft
from prefect_veogen.purchase.submit import Purchase, buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import Session, open_session
from tests.support.receipts import left_behind
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.upkeep import make_plan

ROOT = Path(__file__).parents[2]
SPRING = {"project": "spring"}
CENTS = Decimal("0.02")

Budget = Callable[..., None]


@pytest.fixture
def budgets(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Budget:
    def set_budgets(**usd: Any) -> None:
        monkeypatch.setenv("VEOGEN_BUDGETS", json.dumps({f"project:{value}": amount for value, amount in usd.items()}))

    return set_budgets


def picture(prompt: str) -> GenerationRequest:
    return GenerationRequest(model="gpt-4o-image", prompt=prompt)


async def bought(prompt: str, labels: Mapping[str, str] | None = SPRING) -> Purchase:
    return await on_io(buy(open_session(labels=labels), picture(prompt)))


async def committed(budget: str = "label-project:spring") -> Decimal:
    return (await on_io(open_session().budgets.read_account(budget))).committed_usd


async def receipt_of(prompt: str) -> Receipt:
    session = open_session()
    entry = await on_io(session.ledger.read(picture(prompt).receipt_key(session.client.base_url)))
    assert entry is not None
    return entry.receipt


# ---------------------------------------------------------------- a cap is a cap

BUYER = """
import asyncio, sys, time
from prefect_veogen.errors import BudgetExceeded
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.session import open_session

async def one(session, prompt):
    try:
        await on_io(buy(session, GenerationRequest(model="gpt-4o-image", prompt=prompt)))
    except BudgetExceeded:
        return "refused"
    return "bought"

async def main(me):
    by_call = open_session(labels={"project": "spring"})
    by_row = open_session(labels={"team": "shop", "project": "autumn"}).labelled({"project": "spring"})
    other = open_session(labels={"project": "summer"})
    print("ready", flush=True)
    sys.stdin.readline()
    work = [one(by_call, f"{me} a"), one(by_row, f"{me} b"), one(by_call, f"{me} c"), one(other, f"{me} other")]
    print(*await asyncio.gather(*work))

asyncio.run(main(sys.argv[1]))
"""


def all_buy_at_once(count: int) -> list[list[str]]:
    """Return what became of the four purchases of each process."""
    buyers = [
        subprocess.Popen(
            [sys.executable, "-c", BUYER, f"buyer {number}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for buyer in buyers:
        assert buyer.stdout is not None
        assert buyer.stdout.readline() == "ready\n"
    return [buyer.communicate("go\n", timeout=120)[0].split() for buyer in buyers]


@pytest.mark.slow
def test_eight_processes_spend_together_exactly_what_a_labels_cap_allows(
    sandbox: Sandbox, store_url: str, budgets: Budget
) -> None:
    budgets(spring=0.15, autumn=0)
    answers = all_buy_at_once(8)
    labelled = [answer for four in answers for answer in four[:3]]
    assert (labelled.count("bought"), labelled.count("refused")) == (7, 17)
    assert [four[3] for four in answers] == ["bought"] * 8
    assert len(sandbox.bill) == 15
    assert asyncio.run(committed()) == 7 * CENTS


async def test_a_purchase_without_the_label_is_not_capped_and_counts_for_nothing(
    sandbox: Sandbox, budgets: Budget
) -> None:
    budgets(spring=0)
    await bought("plain", None)
    await bought("other", {"project": "summer", "team": "spring"})
    with pytest.raises(BudgetExceeded, match=r"'label-project:spring' allows \$0\.00"):
        await bought("spring")
    assert (len(sandbox.bill), await committed()) == (2, 0)


async def test_all_caps_that_apply_hold_together(
    sandbox: Sandbox, budgets: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    monkeypatch.setenv("VEOGEN_BUDGETS", '{"project:spring": 1, "team:shop": 0.03}')
    both = {**SPRING, "team": "shop"}
    await bought("one", both)
    with pytest.raises(BudgetExceeded, match="'label-team:shop'") as caught:
        await bought("two", both)
    assert caught.value.budget == "label-team:shop"
    names = ("label-project:spring", "label-team:shop", day_budget())
    assert [await committed(name) for name in names] == [CENTS] * 3
    assert (await receipt_of("one")).budgets == (names[2], names[0], names[1])


async def test_what_is_used_again_costs_a_label_nothing_and_keeps_its_own(sandbox: Sandbox, budgets: Budget) -> None:
    budgets(spring=0.02, autumn=0)
    await bought("shared", {**SPRING, "team": "shop"})
    again = await bought("shared", {"project": "autumn"})
    assert (again.reused, again.labels) == (True, {**SPRING, "team": "shop"})
    assert (await committed(), await committed("label-project:autumn"), len(sandbox.bill)) == (CENTS, 0, 1)
    assert (await bought("shared")).reused  # though its cap is used up


async def test_what_is_in_doubt_keeps_its_labels_reservation(
    sandbox: Sandbox, budgets: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets(spring=0.03)
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("lost-answer-before-charge")
    with pytest.raises(UnknownSubmission):
        await bought("lost")
    assert await committed() == CENTS
    with pytest.raises(BudgetExceeded):
        await bought("more")


async def test_what_failed_is_given_back_and_bought_again_under_the_new_label(
    sandbox: Sandbox, budgets: Budget
) -> None:
    budgets(spring=0.02, autumn=0.02)
    sandbox.fault("failed")
    first = await bought("again")
    with pytest.raises(GenerationFailed):
        await on_io(wait(open_session(), first.generation, 10))
    assert ((await receipt_of("again")).state, await committed()) == (State.FAILED, 0)
    second = await bought("again", {"project": "autumn"})
    assert (second.reused, second.labels) == (False, {"project": "autumn"})
    assert (await receipt_of("again")).labels == {"project": "autumn"}
    assert (await committed(), await committed("label-project:autumn")) == (0, CENTS)


async def test_a_doubt_that_is_opened_again_is_again_one_about_its_own_labels(sandbox: Sandbox) -> None:
    await bought("x")
    session, before = open_session(), await receipt_of("x")
    when = datetime.now(UTC)
    reading = Reading(began_at=when, ended_at=when, generations=1, recognised="ours")
    doubted = await on_io(
        left_behind(session, before.key, state=State.IN_DOUBT, generation=None, readings=(reading, reading))
    )
    assert doubted.sent_at is not None
    owner: Any = before.owner
    next_one = doubted.reserved(
        owner, quote_usd=CENTS, budgets=(), flow_run_id=None, labels={"project": "autumn"}, campaign="c"
    )
    assert (next_one.labels, next_one.campaign, next_one.lost[0].labels) == ({"project": "autumn"}, "c", SPRING)
    stored = Receipt.model_validate_json(next_one.model_dump_json(exclude_none=True, by_alias=True))
    assert stored == next_one
    assert (stored.reopened("why").labels, stored.reopened("why").campaign) == (SPRING, None)


# ---------------------------------------------------------------- periods and names


@pytest.mark.parametrize(
    ("per", "name"),
    [
        (None, "label-project:spring"),
        ("month", "label-project@2026-11:spring"),
        ("day", "label-project@2026-11-30:spring"),
    ],
)
def test_a_period_is_one_of_utc(per: Any, name: str) -> None:
    abroad = datetime(2026, 12, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    caps = label_caps({"project:spring": LabelBudget(Decimal(5), per)}, SPRING, abroad)
    assert caps == (Cap(name, Decimal(5)),)


async def test_the_next_period_begins_at_nothing_and_for_good_is_for_good(sandbox: Sandbox, budgets: Budget) -> None:
    budgets(spring={"usd": 0.02, "per": "month"})
    await bought("this month")
    with pytest.raises(BudgetExceeded):
        await bought("too much")
    limits = open_session().settings.budgets
    (later,) = label_caps(limits, SPRING, datetime.now(UTC) + timedelta(days=32))
    assert await committed(later.budget) == 0
    assert await committed(f"label-project@{datetime.now(UTC):%Y-%m}:spring") == CENTS
    assert await committed() == 0


def test_no_two_budgets_share_a_name() -> None:
    now = datetime(2026, 11, 27, tzinfo=UTC)
    values = ("spring", "spring-2026-11", "2026-11:spring", "spring@2026-11")
    periods: list[tuple[str, Any]] = [("p", None), ("p-2026-11", None), ("q", "month"), ("r", "day")]
    limits = {f"{name}:{value}": LabelBudget(Decimal(1), per) for name, per in periods for value in values}
    names = [
        cap.budget
        for label in limits
        for cap in label_caps(limits, {label.partition(":")[0]: label.partition(":")[2]}, now)
    ]
    assert len(names) == len({*names}) == len(limits)


# ---------------------------------------------------------------- sessions


def test_a_session_labelled_twice_is_capped_once_and_the_last_value_wins(sandbox: Sandbox, budgets: Budget) -> None:
    budgets(spring=5, autumn=6)
    session = open_session(caps=(Cap("mine", Decimal(1)),), labels={"team": "shop"})
    spring = session.labelled(SPRING)
    assert spring.labels == {"team": "shop", **SPRING}
    assert spring.caps == (Cap("mine", Decimal(1)), Cap("label-project:spring", Decimal(5)))
    assert spring.labelled(SPRING) == spring.labelled({}) == spring.labelled(None) == spring
    autumn = spring.labelled({"project": "autumn"})
    assert autumn.caps == (Cap("mine", Decimal(1)), Cap("label-project:autumn", Decimal(6)))
    assert session.caps == (Cap("mine", Decimal(1)),)


def test_labels_together_are_no_more_than_labels_alone(sandbox: Sandbox) -> None:
    session = open_session(labels={f"a{number}": "x" for number in range(20)})
    with pytest.raises(ConfigurationError, match="40 of them"):
        session.labelled({f"b{number}": "x" for number in range(20)})


async def test_a_plan_shows_what_a_labels_budget_has_left(sandbox: Sandbox, budgets: Budget) -> None:
    budgets(spring=0.05)
    await bought("one")
    plan = await make_plan(open_session(labels=SPRING), [picture("one"), picture("two"), picture("three")])
    assert plan.budgets == (BudgetLeft("label-project:spring", Decimal("0.05"), Decimal("0.03"), 2 * CENTS),)
    assert (plan.total_usd, plan.is_affordable) == (2 * CENTS, False)


async def test_a_price_nobody_names_is_refused_by_the_caps_it_falls_under_and_by_no_other(
    sandbox: Sandbox, budgets: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_price(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        return Reply(reply.status, reply.headers, reply.body.replace(b'"price_usd":0.03', b'"price_usd":null'))

    budgets(spring=0.05)
    unpriced = GenerationRequest(model="nano-banana-2", prompt="a hat")
    with serving(without_price) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        spring = Row("in it", picture("one"), labels=SPRING)
        assert await on_io(check_rows(open_session(), [spring, Row("in none", unpriced)])) == CENTS
        with pytest.raises(BudgetExceeded, match="no price for nano-banana-2"):
            await on_io(check_rows(open_session(), [spring, Row("in it too", unpriced, labels=SPRING)]))


# ---------------------------------------------------------------- what is said of it


class Heard(list[tuple[str, str, dict[str, Any]]]):
    """The events of a session."""

    def emit(self, name: str, resource: str, payload: Mapping[str, Any]) -> None:
        self.append((name, resource, dict(payload)))


@pytest.fixture
def heard() -> Heard:
    return Heard()


def listening(heard: Heard) -> Session:
    return replace(open_session(labels=SPRING), emit=heard.emit, campaign="sale")


async def test_a_purchase_a_warning_and_a_refusal_are_said_once_each(
    sandbox: Sandbox, budgets: Budget, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    budgets(spring=0.05)
    with caplog.at_level(logging.WARNING):
        purchases = [await on_io(buy(listening(heard), picture(prompt))) for prompt in ("one", "two", "one")]
        with pytest.raises(BudgetExceeded):
            await on_io(buy(listening(heard), picture("three")))
    assert [name for name, _, _ in heard] == [
        "veogen.generation.bought",
        "veogen.budget.warned",
        "veogen.generation.bought",
        "veogen.budget.refused",
    ]
    _, resource, payload = heard[0]
    generation = purchases[0].generation
    assert resource == f"veogen.generation.{generation.id}"
    assert payload == {
        "generation_id": generation.id,
        "model": "gpt-4o-image",
        "price_usd": "0.02",
        "take": "1",
        "receipt": generation.receipt,
        "labels": SPRING,
        "campaign": "sale",
    }
    amounts = {"cap_usd": "0.05", "left_usd": "0.01"}
    assert heard[1][1:] == (
        "veogen.budget.label-project:spring",
        {"budget": "label-project:spring", "committed_usd": "0.04", **amounts},
    )
    refused = {"budget": "label-project:spring", "wanted_usd": "0.02", "model": "gpt-4o-image", "labels": SPRING}
    assert heard[3][1:] == ("veogen.budget.label-project:spring", {**refused, **amounts})
    warned = [record.getMessage() for record in caplog.records if "budget" in record.getMessage()]
    assert warned == ["$0.04 of the budget 'label-project:spring' of $0.05 are spent or reserved: $0.01 left"]


async def test_an_adopted_purchase_is_said_to_be_in_doubt_and_then_bought(sandbox: Sandbox, heard: Heard) -> None:
    sandbox.fault("lost-answer-after-charge")
    purchase = await on_io(buy(listening(heard), picture("lost")))
    assert (purchase.reused, purchase.labels, [name for name, _, _ in heard]) == (
        True,
        SPRING,
        ["veogen.generation.in_doubt", "veogen.generation.bought"],
    )


async def test_every_cap_refuses_what_has_no_price(sandbox: Sandbox, heard: Heard) -> None:
    session = replace(listening(heard), caps=(Cap("one", Decimal(1)), Cap("two", Decimal(2))))
    refusal = BudgetExceeded.without_a_price("some-model")
    note_refused(session, refusal)
    assert [resource for _, resource, _ in heard] == ["veogen.budget.one", "veogen.budget.two"]
