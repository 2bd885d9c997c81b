"""All receipts of a store, damaged ones included."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from prefect_veogen.errors import (
    UnreadableReceipt,
)
from prefect_veogen.ledger import Entry, Ledger, Receipt
from prefect_veogen.process.concurrency import map_bounded


class Receipts(NamedTuple):
    """The receipts of a store; one that is damaged holds up none of the others, but is not passed over either."""

    readable: list[Receipt]
    damaged: list[UnreadableReceipt]


async def read_receipts(ledger: Ledger, since: datetime | None = None) -> Receipts:
    """Return the receipts of a ledger; belongs to the I/O loop."""

    async def read(key: str) -> Entry | UnreadableReceipt | None:
        try:
            return await ledger.read(key)
        except UnreadableReceipt as error:
            return error

    found = await map_bounded(await ledger.list_keys(since), read)
    damaged = [item for item in found if isinstance(item, UnreadableReceipt)]
    return Receipts([item.receipt for item in found if isinstance(item, Entry)], damaged)
