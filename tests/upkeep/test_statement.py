"""The statement: the ledger's purchases and the service's charges are compared one by one, and add up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from prefect_veogen import GenerationRequest
from prefect_veogen.errors import GenerationFailed, VeogenError
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.upkeep.statement import Reconciliation
from tests.support.buyers import bought_and_stored
from tests.support.upkeep import CENTS, bought, picture, reconcile

LONG_AGO = timedelta(hours=2)


async def compared(since: datetime | None = None) -> Reconciliation:
    return await reconcile(open_session(), since or datetime.now(UTC) - LONG_AGO)


async def bought_elsewhere(sandbox: Sandbox, prompt: str = "by hand") -> None:
    await on_io(bought_and_stored_at("elsewhere", picture(prompt)))


async def bought_and_stored_at(store: str, request: GenerationRequest) -> None:
    await buy(open_session(store=store), request)


async def test_purchases_of_many_pages_add_up(sandbox: Sandbox) -> None:
    session = open_session()
    await asyncio.gather(*(on_io(buy(session, picture(f"number {number}"))) for number in range(230)))
    sandbox.advance(60)
    found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (230, 230, True)
    assert found.ledger_usd == found.statement_usd == 230 * CENTS


async def test_purchases_of_different_prices_add_up_each_with_its_own(sandbox: Sandbox) -> None:
    for resolution in ("1K", "2K", "4K"):
        await on_io(bought_and_stored(GenerationRequest(model="gpt-image-2", prompt="x", resolution=resolution)))
    await bought_elsewhere(sandbox)
    sandbox.advance(60)
    found = await compared()
    assert (found.receipts, found.charges, found.only_in_ledger) == (3, 4, ())
    assert [(charge.model_key, charge.amount_usd) for charge in found.only_in_statement] == [("gpt4o_image", CENTS)]


async def test_a_receipt_without_a_charge_is_named(sandbox: Sandbox) -> None:
    await on_io(bought_and_stored(picture("forgotten")))
    sandbox.reset()
    await on_io(bought_and_stored(picture("charged", aspect_ratio="1:1")))
    found = await compared()
    assert (found.adds_up, found.only_in_statement) == (False, ())
    assert (found.ledger_usd, found.statement_usd, len(found.only_in_ledger)) == (2 * CENTS, CENTS, 1)


async def test_what_still_runs_need_not_be_on_the_statement(sandbox: Sandbox) -> None:
    sandbox.speed = 0
    await bought(picture())
    found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (1, 0, True)


async def test_what_failed_or_was_never_bought_is_in_neither(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    with pytest.raises(GenerationFailed):
        await on_io(bought_and_stored(picture()))
    sandbox.fault("402")
    with pytest.raises(VeogenError):
        await bought(picture("refused"))
    found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (0, 0, True)


async def test_what_came_before_the_period_is_no_difference(sandbox: Sandbox) -> None:
    for number in range(3):
        await on_io(bought_and_stored(picture(f"before {number}")))
    since = datetime.now(UTC)
    for number in range(2):
        await on_io(bought_and_stored(picture(f"after {number}")))
    sandbox.advance(60)
    found = await compared(since)
    assert (found.receipts, found.charges, found.adds_up) == (2, 2, True)


async def test_a_stranger_is_found_in_a_period_that_has_a_past(sandbox: Sandbox) -> None:
    for number in range(3):
        await on_io(bought_and_stored(picture(f"before {number}")))
    since = datetime.now(UTC)
    await on_io(bought_and_stored(picture("after")))
    await bought_elsewhere(sandbox)
    sandbox.advance(60)
    found = await compared(since)
    assert (found.receipts, found.charges, len(found.only_in_statement), found.only_in_ledger) == (1, 2, 1, ())


async def test_another_services_receipts_are_not_compared(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    await on_io(bought_and_stored(picture()))
    with Sandbox() as other:
        monkeypatch.setenv("VEOGEN_BASE_URL", other.base_url)
        found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (0, 0, True)
