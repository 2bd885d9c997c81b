"""Looking after the ledger: finish what dead runs left, compare with the statement, and let a person decide."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from pydantic.dataclasses import dataclass as pydantic_dataclass

from prefect_veogen.delivery import deliver, intact_asset
from prefect_veogen.errors import (
    ConfigurationError,
    GenerationFailed,
    StillRunning,
    UnknownSubmission,
    UnreadableReceipt,
    VeogenError,
)
from prefect_veogen.in_doubt import adopt_found, note_doubt, search_lost_attempts
from prefect_veogen.iothread import each, on_io
from prefect_veogen.ledger import Entry, Ledger, Receipt, State, attach
from prefect_veogen.matching import differences
from prefect_veogen.models import in_usd, named_by_the_package
from prefect_veogen.store import Changed
from prefect_veogen.waiting import wait

if TYPE_CHECKING:
    from prefect_veogen.protocol import Charge
    from prefect_veogen.session import Session

_UNFINISHED_SECONDS = 24 * 3600.0
_UNSETTLED = (State.RESERVED, State.SENDING, State.IN_DOUBT)
# Enough for one look, which may have to wait for its turn.
_SWEEP_WAIT_SECONDS = 3.0
# A charge is stamped at submission or at completion (undocumented), by a clock that isn't ours.
_STATEMENT_TOLERANCE = timedelta(hours=1)


class Receipts(NamedTuple):
    """The receipts of a store; one that is damaged holds up none of the others, but is not passed over either."""

    readable: list[Receipt]
    damaged: list[UnreadableReceipt]


@named_by_the_package
@pydantic_dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did about one receipt."""

    key: str
    before: State
    after: State
    note: str


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """How the ledger and the statement compare over a period, in USD."""

    since: datetime
    receipts: int
    charges: int
    ledger_usd: Decimal
    statement_usd: Decimal
    only_in_ledger: tuple[Receipt, ...]
    only_in_statement: tuple[Charge, ...]
    damaged: tuple[str, ...] = ()

    @property
    def adds_up(self) -> bool:
        """Whether every finished purchase has its charge, every charge its purchase, and every receipt can be read."""
        return not self.only_in_ledger and not self.only_in_statement and not self.damaged


async def all_receipts(session: Session, since: datetime | None = None) -> Receipts:
    """Return all receipts of the store, or those written since a time. Free."""
    return await on_io(read_receipts(session.ledger, since))


async def read_receipts(ledger: Ledger, since: datetime | None = None) -> Receipts:
    """Return the receipts of a ledger; belongs to the I/O loop."""

    async def read(key: str) -> Entry | UnreadableReceipt | None:
        try:
            return await ledger.read(key)
        except UnreadableReceipt as error:
            return error

    found = await each(await ledger.keys(since), read)
    damaged = [item for item in found if isinstance(item, UnreadableReceipt)]
    return Receipts([item.receipt for item in found if isinstance(item, Entry)], damaged)


async def sweep(session: Session) -> list[Swept]:
    """Finish what runs that died or were cancelled left behind, and say what was done.

    Free: downloads what was paid for, finds purchases whose answer was lost, gives back money that was set aside for
    nothing, and removes unfinished uploads. Generations which still run are left for the next sweep. Safe to repeat,
    and to run beside working flows.
    """
    return await on_io(_sweep(session))


async def reconcile(session: Session, since: datetime) -> Reconciliation:
    """Compare the ledger's purchases with the account's statement since a time. Free.

    The statement names no generations (/api-reference/account/usage), so charges and receipts are matched by amount
    and time. What another store or a person bought on the account shows up as only in the statement.
    """
    return await on_io(_reconcile(session, since))


async def adopt(session: Session, key: str, generation_id: str, *, force: bool = False) -> Receipt:
    """Tell the ledger which generation a lost purchase was; the next run then uses it. It can't be taken back.

    Raises:
        ConfigurationError: there is no such receipt, it isn't unknown, or another one has that generation; or the
            generation shows another model, prompt or option than was asked for, which only `force` overrides.
    """
    return await on_io(_adopt(session, key, generation_id, force=force))


async def release(session: Session, key: str) -> Receipt:
    """Tell the ledger that a lost purchase was never made; the next run then buys.

    COSTS MONEY if that is wrong: look at the account's generations first.

    Raises:
        ConfigurationError: there is no such receipt, or it isn't unknown.
    """
    return await on_io(_release(session, key))


# ---------------------------------------------------------------- sweep


async def _sweep(session: Session) -> list[Swept]:
    try:
        await session.store.clear_unfinished(_UNFINISHED_SECONDS)
    except VeogenError as error:  # no right to list uploads, for instance: what is paid for is worth more than tidiness
        session.log.warning("Unfinished uploads could not be cleared: %s", error.message)
    swept = await each(await session.ledger.keys(), lambda key: _sweep_one(session, key))
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
    except Changed:
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
        case State.STORED if await intact_asset(session.store, receipt) is not None:
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
            # Its worker may have died before giving the money back.
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


# ---------------------------------------------------------------- reconcile


async def _reconcile(session: Session, since: datetime) -> Reconciliation:
    before = since - _STATEMENT_TOLERANCE
    known, damaged = await read_receipts(session.ledger, before)
    receipts = [
        receipt
        for receipt in known
        if receipt.state in (State.BOUGHT, State.STORED)
        and _sent_at(receipt) >= before
        and receipt.api == session.client.base_url
    ]
    charges = await _charges(session, before)
    found = [
        _compared(
            sorted((receipt for receipt in receipts if _amount(receipt) == amount), key=_sent_at),
            sorted(
                (charge for charge in charges if charge.amount_usd == amount), key=lambda it: it.created_at or since
            ),
            since,
        )
        for amount in sorted({*map(_amount, receipts), *(charge.amount_usd for charge in charges)})
    ]
    bought = [receipt for receipt in receipts if _sent_at(receipt) >= since]
    charged = [charge for item in found for charge in item.charged]
    return Reconciliation(
        since=since,
        receipts=len(bought),
        charges=len(charged),
        ledger_usd=sum(map(_amount, bought), Decimal(0)),
        statement_usd=sum((charge.amount_usd for charge in charged), Decimal(0)),
        only_in_ledger=tuple(receipt for item in found for receipt in item.missing),
        only_in_statement=tuple(charge for item in found for charge in item.extra),
        damaged=tuple(error.message for error in damaged),
    )


class _Compared(NamedTuple):
    charged: list[Charge]
    missing: list[Receipt]
    extra: list[Charge]


def _compared(receipts: list[Receipt], charges: list[Charge], since: datetime) -> _Compared:
    """Compare purchases and charges of one amount, oldest first; what came before `since` explains what crosses it."""
    sent = [receipt for receipt in receipts if _sent_at(receipt) >= since]
    charged = [charge for charge in charges if charge.created_at is None or charge.created_at >= since]
    # More purchases than charges before: so many were charged after. More charges: so many were charged too early.
    crossing = (len(receipts) - len(sent)) - (len(charges) - len(charged))
    late = min(max(crossing, 0), max(len(charged) - len(sent), 0))
    charged = charged[late:]
    over = [receipt for receipt in sent if not _may_be_running(receipt)]
    missing = len(over) - len(charged) - max(-crossing, 0)
    extra = len(charged) - len(sent)
    return _Compared(charged, over[-missing:] if missing > 0 else [], charged[-extra:] if extra > 0 else [])


def _sent_at(receipt: Receipt) -> datetime:
    return receipt.sent_at or datetime.min.replace(tzinfo=UTC)


def _amount(receipt: Receipt) -> Decimal:
    return receipt.price_usd or Decimal(0)


def _may_be_running(receipt: Receipt) -> bool:
    """Tell whether a purchase may not be on the statement yet."""
    return receipt.state is State.BOUGHT and _sent_at(receipt) > datetime.now(UTC) - _STATEMENT_TOLERANCE


async def _charges(session: Session, since: datetime) -> list[Charge]:
    found: dict[str, Charge] = {}
    page = 1
    while True:
        answer = await session.client.list_usage(page=page)
        new = [charge for charge in answer.items if charge.id not in found]
        found.update((charge.id, charge) for charge in new)
        # `page` is not documented here: a service which ignores it shows the same charges again.
        if not answer.has_more or not any(charge.created_at is None or charge.created_at >= since for charge in new):
            break
        page += 1
    return [charge for charge in found.values() if charge.created_at is None or charge.created_at >= since]


# ---------------------------------------------------------------- a person's decisions


async def _adopt(session: Session, key: str, generation_id: str, *, force: bool) -> Receipt:
    entry = await _entry_in_doubt(session, key)
    generation = await session.client.get_generation(generation_id)
    unlike = differences(entry.receipt, generation)
    if unlike and not force:
        raise ConfigurationError(
            f"Generation {generation.id} is not what the receipt asked for: {', '.join(unlike)} differ",
            next_step="Check the id, for this can't be taken back. If it is the one all the same, add --force.",
        )
    if not await session.ledger.claim(entry.receipt, generation.id):
        owner = await session.ledger.claimant(entry.receipt.api, generation.id)
        raise ConfigurationError(
            f"Generation {generation.id} belongs to the receipt {owner}",
            next_step="Check the id: `prefect-veogen receipts show` tells what each receipt has.",
        )
    try:
        return (await session.ledger.decide(entry, generation)).receipt
    except Changed:
        raise _changed_meanwhile(key) from None


async def _release(session: Session, key: str) -> Receipt:
    entry = await _entry_in_doubt(session, key)
    try:
        return (await session.ledger.release(entry, "by a person's decision")).receipt
    except Changed:
        raise _changed_meanwhile(key) from None


def _changed_meanwhile(key: str) -> ConfigurationError:
    return ConfigurationError(f"The receipt {key} has just been changed by a run", next_step="Look at it again.")


async def _entry_in_doubt(session: Session, key: str) -> Entry:
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
