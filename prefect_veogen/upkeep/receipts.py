"""All receipts of a store, damaged ones included, or one by its key."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from prefect_veogen.errors import ConfigurationError, UnreadableReceipt
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


async def find_receipt(ledger: Ledger, prefix: str) -> Entry:
    """Return the receipt whose key is, or alone begins with, what is given; belongs to the I/O loop.

    Raises:
        ConfigurationError: there is none, or more than one.
    """
    entry = await ledger.read(prefix)
    if entry is not None:
        return entry
    keys = [key for key in await ledger.list_keys() if prefix and key.startswith(prefix)]
    if not keys:
        raise ConfigurationError(
            f"There is no receipt {prefix}, and none whose key begins like that",
            next_step="`prefect-veogen receipts` lists them; check VEOGEN_STORE.",
        )
    if len(keys) > 1:
        raise ConfigurationError(
            f"{len(keys)} receipts begin with {prefix}",
            next_step="Give more of the key: `prefect-veogen receipts` lists them.",
        )
    entry = await ledger.read(keys[0])
    assert entry is not None  # receipts are never deleted
    return entry
