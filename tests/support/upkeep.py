"""Upkeep as tasks and the command line call it, on the I/O loop, once per call; and what it is needed for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from prefect_veogen.errors import UnknownSubmission
from prefect_veogen.ledger import Receipt, State
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase import plan
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import Session, open_session
from prefect_veogen.upkeep import decisions, statement
from prefect_veogen.upkeep import sweep as sweeping
from prefect_veogen.upkeep.receipts import Receipts, read_receipts

CAP = Cap("autumn", Decimal(1))
CENTS = Decimal("0.02")


async def sweep(session: Session) -> list[sweeping.Swept]:
    return await on_io(sweeping.sweep(session))


async def reconcile(session: Session, since: datetime) -> statement.Reconciliation:
    return await on_io(statement.reconcile(session, since))


async def adopt(session: Session, key: str, generation_id: str, *, force: bool = False) -> Receipt:
    return await on_io(decisions.adopt(session, key, generation_id, force=force))


async def release(session: Session, key: str) -> Receipt:
    return await on_io(decisions.release(session, key))


async def all_receipts(session: Session) -> Receipts:
    return await on_io(read_receipts(session.ledger))


async def make_plan(session: Session, requests: Sequence[GenerationRequest]) -> plan.Plan:
    return await on_io(plan.make_plan(session, requests))


# ---------------------------------------------------------------- what it is needed for


def picture(prompt: str = "a lighthouse", **fields: Any) -> GenerationRequest:
    return GenerationRequest(model="gpt-4o-image", prompt=prompt, **fields)


def capped() -> Session:
    return open_session(caps=(CAP,))


async def bought(request: GenerationRequest) -> str:
    """Buy without waiting, as a run that is killed then does, and return the receipt's key."""
    session = capped()
    await on_io(buy(session, request))
    return request.receipt_key(session.client.base_url)


async def buy_everything(prompts: list[str]) -> None:
    async def all_at_once() -> None:
        buying = []
        for prompt in prompts:
            buying.append(asyncio.create_task(buy(capped(), picture(prompt))))
            await asyncio.sleep(0.1)  # in this order
        await asyncio.gather(*buying)

    await on_io(all_at_once())


async def lost(sandbox: Sandbox, prompt: str = "lost", *, charged: bool) -> str:
    """Lose the response to a purchase, leave the receipt unknown, and return its key."""
    sandbox.fault("lost-answer-after-charge" if charged else "lost-answer-before-charge", prompt=prompt)
    if charged:
        sandbox.fault("hidden-from-list", times=None, prompt=prompt)
    session = capped()
    with pytest.raises(UnknownSubmission):
        await on_io(buy(session, picture(prompt)))
    sandbox.clear_faults()
    return picture(prompt).receipt_key(session.client.base_url)


async def receipt(key: str) -> Receipt:
    entry = await on_io(open_session().ledger.read(key))
    assert entry is not None
    return entry.receipt


async def states() -> dict[str, State]:
    return {item.request.prompt: item.state for item in (await all_receipts(open_session())).readable}


async def committed() -> Decimal:
    return (await on_io(open_session().budgets.read_account(CAP.budget))).committed_usd


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    give_up_at = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < give_up_at, "it never came about"
        await asyncio.sleep(0.02)
