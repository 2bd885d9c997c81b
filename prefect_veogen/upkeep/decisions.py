"""What a person decides about a purchase in doubt: which generation it was, or that it was never made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.errors import ChangeTheRequest, ConfigurationError
from prefect_veogen.ledger import Entry, Receipt, State
from prefect_veogen.models import ReceiptKey
from prefect_veogen.purchase.matching import differences
from prefect_veogen.store import VersionConflict
from prefect_veogen.upkeep.receipts import find_receipt

if TYPE_CHECKING:
    from prefect_veogen.models import Generation
    from prefect_veogen.session import Session


async def adopt(session: Session, key: str, generation_id: str, *, force: bool = False) -> Receipt:
    """Tell the ledger which generation a lost purchase was; the next run then uses it. It can't be undone.

    `key` may be a unique prefix of the receipt's.

    Raises:
        ConfigurationError: there is no such receipt or generation, the receipt isn't unknown, or another one has that
            generation; or the generation shows another model, prompt or option than was asked for, which only `force`
            overrides.
    """
    entry = await _read_in_doubt(session, key)
    generation = await _read_generation(session, entry.receipt, generation_id)
    owner = await session.ledger.find_claimant(entry.receipt.api, generation.id)
    if owner not in (None, entry.receipt.key):
        raise _belongs_to(owner, generation)  # `force` does not help there
    unlike = differences(entry.receipt, generation)
    if unlike and not force:
        raise ConfigurationError(
            f"Generation {generation.id} is not what the receipt asked for: {', '.join(unlike)} differ",
            next_step="Check the id, for this can't be undone. If it is the one all the same, add --force.",
        )
    if not await session.ledger.claim(entry.receipt, generation.id):
        raise _belongs_to(await session.ledger.find_claimant(entry.receipt.api, generation.id), generation)
    try:
        return (await session.ledger.decide(entry, generation)).receipt
    except VersionConflict:
        raise _changed_meanwhile(entry.receipt) from None


async def release(session: Session, key: str) -> Receipt:
    """Tell the ledger that a lost purchase was never made; the next run then buys.

    COSTS MONEY if that is wrong: look at the account's generations first. `key` may be a unique prefix of the
    receipt's.

    Raises:
        ConfigurationError: there is no such receipt, or it isn't unknown.
    """
    entry = await _read_in_doubt(session, key)
    try:
        return (await session.ledger.release(entry, "by a person's decision")).receipt
    except VersionConflict:
        raise _changed_meanwhile(entry.receipt) from None


async def _read_generation(session: Session, receipt: Receipt, generation_id: str) -> Generation:
    try:
        return await session.client.get_generation(generation_id)
    except ChangeTheRequest as error:
        if error.http_status != 404:
            raise
        asked = session.client.base_url
        elsewhere = (
            "" if asked == receipt.api else f" The purchase was made at {receipt.api}: set VEOGEN_BASE_URL to it."
        )
        raise ConfigurationError(
            f"{asked} knows no generation {generation_id} of this account",
            next_step=f"Check the id, and that the token is of the account that bought.{elsewhere}",
        ) from None


def _belongs_to(owner: str | None, generation: Generation) -> ConfigurationError:
    return ConfigurationError(
        f"Generation {generation.id} belongs to the receipt {owner}",
        next_step=f"It can't be both: check the id. `prefect-veogen receipts show {owner}` shows the other purchase.",
    )


def _changed_meanwhile(receipt: Receipt) -> ConfigurationError:
    return ConfigurationError(
        f"The receipt {receipt.key} has just been changed by a run",
        next_step=f"`prefect-veogen receipts show {receipt.key}` shows what it is now.",
    )


async def _read_in_doubt(session: Session, key: str) -> Entry:
    entry = await find_receipt(session.ledger, key)
    receipt = entry.receipt
    if receipt.key != key and ReceiptKey.reaches_take(key):
        raise ConfigurationError(
            f"There is no receipt {key}, and a decision is not for another take: {receipt.key} begins like it",
            next_step="If it is that one, give its whole key.",
        )
    if receipt.state is not State.IN_DOUBT:
        raise ConfigurationError(
            f"The receipt {receipt.key} is {receipt.state.value}; only one in doubt waits for a decision",
            next_step="`prefect-veogen sweep` finishes what can be finished without one.",
        )
    return entry
