"""Upkeep as tasks and the command line call it: on the I/O loop, once per call."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from prefect_veogen.ledger import Receipt
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase import plan
from prefect_veogen.session import Session
from prefect_veogen.upkeep import decisions, statement
from prefect_veogen.upkeep import sweep as sweeping
from prefect_veogen.upkeep.receipts import Receipts, read_receipts


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
