"""What a person decides about a purchase in doubt: which generation it was, or that it was never made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.errors import (
    ConfigurationError,
)
from prefect_veogen.ledger import Entry, Receipt, State
from prefect_veogen.purchase.matching import differences
from prefect_veogen.store import VersionConflict

if TYPE_CHECKING:
    from prefect_veogen.session import Session


async def adopt(session: Session, key: str, generation_id: str, *, force: bool = False) -> Receipt:
    """Tell the ledger which generation a lost purchase was; the next run then uses it. It can't be undone.

    Raises:
        ConfigurationError: there is no such receipt, it isn't unknown, or another one has that generation; or the
            generation shows another model, prompt or option than was asked for, which only `force` overrides.
    """
    entry = await _read_in_doubt(session, key)
    generation = await session.client.get_generation(generation_id)
    unlike = differences(entry.receipt, generation)
    if unlike and not force:
        raise ConfigurationError(
            f"Generation {generation.id} is not what the receipt asked for: {', '.join(unlike)} differ",
            next_step="Check the id, for this can't be undone. If it is the one all the same, add --force.",
        )
    if not await session.ledger.claim(entry.receipt, generation.id):
        owner = await session.ledger.find_claimant(entry.receipt.api, generation.id)
        raise ConfigurationError(
            f"Generation {generation.id} belongs to the receipt {owner}",
            next_step="Check the id: `prefect-veogen receipts show` shows what each receipt has.",
        )
    try:
        return (await session.ledger.decide(entry, generation)).receipt
    except VersionConflict:
        raise _changed_meanwhile(key) from None


async def release(session: Session, key: str) -> Receipt:
    """Tell the ledger that a lost purchase was never made; the next run then buys.

    COSTS MONEY if that is wrong: look at the account's generations first.

    Raises:
        ConfigurationError: there is no such receipt, or it isn't unknown.
    """
    entry = await _read_in_doubt(session, key)
    try:
        return (await session.ledger.release(entry, "by a person's decision")).receipt
    except VersionConflict:
        raise _changed_meanwhile(key) from None


def _changed_meanwhile(key: str) -> ConfigurationError:
    return ConfigurationError(f"The receipt {key} has just been changed by a run", next_step="Look at it again.")


async def _read_in_doubt(session: Session, key: str) -> Entry:
    entry = await session.ledger.read(key)
    if entry is None:
        raise ConfigurationError(
            f"There is no receipt {key}", next_step="`prefect-veogen receipts` lists them; check VEOGEN_STORE."
        )
    if entry.receipt.state is not State.IN_DOUBT:
        raise ConfigurationError(
            f"The receipt {key} is {entry.receipt.state.value}; only one in doubt waits for a decision",
            next_step="`prefect-veogen sweep` finishes what can be finished without one.",
        )
    return entry
