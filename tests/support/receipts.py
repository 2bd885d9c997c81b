"""Receipts in states that only a crash or another version leaves behind."""

from __future__ import annotations

from typing import Any

from prefect_veogen.ledger import Entry, Receipt
from prefect_veogen.session import Session


async def left_behind(session: Session, key: str, **fields: Any) -> Receipt:
    """Write a receipt with other fields, bypassing the state machine, as a worker that died may have left it."""
    entry = await session.ledger.read(key)
    assert entry is not None
    written: Entry = await session.ledger._write(entry, entry.receipt.model_copy(update=fields))
    return written.receipt
