"""Finish what runs that died or were cancelled left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass as pydantic_dataclass

from prefect_veogen.download.deliver import deliver, find_intact_asset
from prefect_veogen.errors import (
    GenerationFailed,
    StillRunning,
    UnknownSubmission,
    UnreadableReceipt,
    VeogenError,
)
from prefect_veogen.ledger import Entry, Receipt, State, attach
from prefect_veogen.models import in_usd, named_by_the_package
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.purchase.in_doubt import adopt_found, note_doubt, search_lost_attempts
from prefect_veogen.purchase.wait import wait
from prefect_veogen.store import VersionConflict

if TYPE_CHECKING:
    from prefect_veogen.session import Session

_UNFINISHED_SECONDS = 24 * 3600.0
_UNSETTLED = (State.RESERVED, State.SENDING, State.IN_DOUBT)
# Enough for one poll, which may have to wait for the rate limit.
_SWEEP_WAIT_SECONDS = 3.0


@named_by_the_package
@pydantic_dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did about one receipt."""

    key: str
    before: State
    after: State
    note: str


async def sweep(session: Session) -> list[Swept]:
    """Finish what runs that died or were cancelled left behind, and say what was done.

    Free: downloads what was paid for, reconciles purchases in doubt, releases money that was reserved for
    nothing, and removes unfinished uploads. Generations which still run are left for the next sweep. Safe to repeat,
    and to run beside working flows.
    """
    try:
        await session.store.clear_unfinished(_UNFINISHED_SECONDS)
    except VeogenError as error:  # no right to list uploads, for instance: what is paid for is worth more than tidiness
        session.log.warning("Unfinished uploads could not be cleared: %s", error.message)
    swept = await map_bounded(await session.ledger.list_keys(), lambda key: _sweep_one(session, key))
    return [item for item in swept if item is not None]


async def _sweep_one(session: Session, key: str) -> Swept | None:
    try:
        entry = await session.ledger.read(key)
    except UnreadableReceipt as error:
        return Swept(key, State.IN_DOUBT, State.IN_DOUBT, str(error))  # one damaged receipt must not hold up the others
    if entry is None:
        return None
    receipt = entry.receipt
    try:
        note = await _search_lost(session, entry) or await _finish(session, entry)
    except VersionConflict:
        return None  # another worker is at work on it
    except GenerationFailed as error:
        note = f"failed and was not charged: {error.service_text or 'no reason given'}"
    except StillRunning:
        note = "still running at the service; the next sweep or run picks it up"
    except UnknownSubmission as error:
        note = str(error)
    except VeogenError as error:
        note = error.message
    if note is None:
        return None
    current = await session.ledger.read(receipt.key)
    return Swept(receipt.key, receipt.state, current.receipt.state if current else receipt.state, note)


async def _search_lost(session: Session, entry: Entry) -> str | None:
    """Search for what was given up as absent, as long as that may turn up; say so if it did."""
    receipt = entry.receipt
    if not receipt.lost or receipt.api != session.client.base_url or receipt.state in _UNSETTLED:
        return None
    found = await search_lost_attempts(session, entry)
    if found is None:
        return None
    if not found.receipt.also_bought:
        return await _fetch(session, found.receipt)
    late = found.receipt.also_bought[-1]
    return (
        f"BOUGHT TWICE: generation {late.id} turned up for {in_usd(late.price_usd)} after it had been proven absent, "
        "so this service is slower than VEOGEN_IN_DOUBT_SECONDS allows; it was claimed and counted. Raise that setting"
    )


async def _finish(session: Session, entry: Entry) -> str | None:
    receipt = entry.receipt
    match receipt.state:
        case State.STORED if await find_intact_asset(session.store, receipt) is not None:
            await session.ledger.settle(receipt)
            return None
        case State.STORED | State.BOUGHT | State.IN_DOUBT | State.SENDING if receipt.api != session.client.base_url:
            return f"was bought at {receipt.api}, which is not asked here: sweep with VEOGEN_BASE_URL set to it"
        case State.STORED | State.BOUGHT:
            return await _fetch(session, receipt)
        case State.IN_DOUBT:
            return await _fetch(session, (await adopt_found(session, entry)).receipt)
        case State.SENDING if receipt.is_abandoned:
            doubted = await note_doubt(session, entry, "the buyer died")
            return await _fetch(session, (await adopt_found(session, doubted)).receipt)
        case State.FAILED | State.RELEASED:
            # Its worker may have died before releasing the money.
            await session.ledger.settle(receipt)
            return None
        case State.RESERVED if receipt.is_abandoned:
            await session.ledger.release(entry, "the buyer died before sending")
            return "its buyer died before anything was sent: nothing was bought"
        case _:
            return None


async def _fetch(session: Session, receipt: Receipt) -> str:
    await session.ledger.settle(receipt)
    generation = await wait(session, attach(receipt), _SWEEP_WAIT_SECONDS) if receipt.asset is None else attach(receipt)
    delivery = await deliver(session, generation)
    return f"stored {delivery.asset.uri}"
