"""The balance: for how many days more it lasts, and who is told when it doesn't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import Session, open_session
from prefect_veogen.upkeep.balance import read_outlook, warn_of_low_balance

Sent = list[tuple[str, Mapping[str, Any]]]


@pytest.fixture
def poor(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox whose account holds hardly anything."""
    with Sandbox(speed=100, tiny_media=True, requests_per_minute=None, balance_usd="0.19") as poor:
        for name, value in poor.environment.items():
            monkeypatch.setenv(name, value)
        yield poor


async def buy_pictures(count: int) -> None:
    for number in range(count):
        await on_io(buy(open_session(), GenerationRequest(model="gpt-4o-image", prompt=f"picture {number}")))


def listening(sent: Sent) -> Session:
    return replace(open_session(), emit=lambda name, _resource, payload: sent.append((name, payload)))


async def test_a_balance_lasts_as_long_as_the_spending_of_the_last_seven_days_allows(sandbox: Sandbox) -> None:
    await buy_pictures(7)
    sandbox.advance(60)  # the statement shows what is completed
    outlook = await on_io(read_outlook(open_session()))
    assert outlook is not None
    assert outlook.daily_usd == Decimal("0.02")
    assert outlook.days_covered == pytest.approx(float(sandbox.balance_usd) / 0.02)


async def test_of_a_balance_that_lasts_for_less_than_three_days_the_event_says_how_long(
    poor: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sent: Sent = []
    await buy_pictures(7)
    poor.advance(60)  # the statement shows what is completed
    await on_io(warn_of_low_balance(listening(sent)))
    ((name, payload),) = sent
    assert name == "veogen.balance.low"
    assert payload["balance_usd"] == "0.05"
    assert Decimal(payload["daily_usd"]) == Decimal("0.02")
    assert payload["days_covered"] == 2.5
    assert "Top up" in payload["next_step"]
    assert "$0.05 are left: at $0.02 a day they last for 2.5 days" in caplog.text


async def test_nothing_is_said_of_a_balance_that_lasts(sandbox: Sandbox) -> None:
    sent: Sent = []
    await buy_pictures(7)
    await on_io(warn_of_low_balance(listening(sent)))
    assert sent == []


async def test_nothing_is_said_of_an_account_that_spends_nothing(poor: Sandbox) -> None:
    sent: Sent = []
    await on_io(warn_of_low_balance(listening(sent)))
    assert sent == []


async def test_a_service_that_does_not_say_is_no_reason_to_fail(sandbox: Sandbox) -> None:
    sandbox.fault("balance-500", times=50)
    sent: Sent = []
    await on_io(warn_of_low_balance(listening(sent)))
    assert sent == []
