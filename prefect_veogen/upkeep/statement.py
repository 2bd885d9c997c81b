"""Compare the ledger with what the account was charged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from prefect_veogen.api.pages import read_pages
from prefect_veogen.ledger import Receipt, State
from prefect_veogen.upkeep.receipts import read_receipts

if TYPE_CHECKING:
    from prefect_veogen.api.responses import Charge
    from prefect_veogen.session import Session

# A charge is stamped at submission or at completion (undocumented), by a clock that isn't ours.
_STATEMENT_TOLERANCE = timedelta(hours=1)


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


async def reconcile(session: Session, since: datetime) -> Reconciliation:
    """Compare the ledger's purchases with the account's statement since a time. Free.

    The statement names no generations (/api-reference/account/usage), so charges and receipts are matched by amount
    and time. What another store or a person bought on the account shows up as only in the statement.
    """
    before = since - _STATEMENT_TOLERANCE
    known, damaged = await read_receipts(session.ledger, before)
    receipts = [
        receipt
        for receipt in known
        if receipt.state in (State.BOUGHT, State.STORED)
        and _sent_at(receipt) >= before
        and receipt.api == session.client.base_url
    ]
    charges = await _read_charges(session, before)
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


async def _read_charges(session: Session, since: datetime) -> list[Charge]:
    def is_since(charge: Charge) -> bool:
        return charge.created_at is None or charge.created_at >= since

    charges = await read_pages(
        session.client.list_usage,
        lambda charge: charge.id,
        is_past=lambda charges: not any(map(is_since, charges)),
    )
    return [*filter(is_since, charges)]
