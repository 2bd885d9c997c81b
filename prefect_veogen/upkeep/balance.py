"""How long the account's balance lasts at the rate of the last days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from prefect_veogen.api.client import find_balance
from prefect_veogen.api.pages import read_pages
from prefect_veogen.errors import VeogenError
from prefect_veogen.models import in_usd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.api.responses import Charge
    from prefect_veogen.session import Session

LOW: Final = "veogen.balance.low"
LOW_DAYS: Final = 3
"""A balance that doesn't last for so many days more is low: a weekend, and a day to top it up."""

_WINDOW = timedelta(days=7)
_DAY = timedelta(days=1)
_MAX_CHARGES = 2000


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the account holds, what it spent per day lately, and for how many days more that lasts."""

    balance_usd: Decimal
    daily_usd: Decimal

    @property
    def days_covered(self) -> float | None:
        """For how many days more the balance lasts; `None` where nothing was spent lately."""
        return float(self.balance_usd / self.daily_usd) if self.daily_usd > 0 else None


async def warn_of_low_balance(session: Session) -> None:
    """Warn, in the log and by `veogen.balance.low`, of a balance that doesn't last for three days more. Free.

    A courtesy: what the service does not state, or refuses to, is no reason to fail.
    """
    try:
        outlook = await read_outlook(session)
    except VeogenError as error:
        session.log.debug("The balance could not be read: %s", error.message)
        return
    if outlook is None or outlook.days_covered is None or outlook.days_covered >= LOW_DAYS:
        return
    balance, daily, days = in_usd(outlook.balance_usd), in_usd(outlook.daily_usd), round(outlook.days_covered, 1)
    session.log.warning("%s are left: at %s a day they last for %s days", balance, daily, days)
    payload = {
        "balance_usd": f"{outlook.balance_usd:f}",
        "daily_usd": f"{outlook.daily_usd:f}",
        "days_covered": days,
        "next_step": "Top up the account (https://veogen.studio/billing).",
    }
    session.emit(LOW, f"veogen.account.{session.client.account}", payload)


async def read_outlook(session: Session) -> Outlook | None:
    """Return how long the balance lasts at the rate of the last seven days; `None` if it isn't stated. Free."""
    balance = await find_balance(session.client)
    if balance is None or balance.remaining_usd is None:
        return None
    return Outlook(balance.remaining_usd, await _read_daily_usd(session))


async def _read_daily_usd(session: Session) -> Decimal:
    """Return what the statement shows per day; of an account that buys thousands a day, the newest two thousand."""
    now, read = datetime.now(UTC), 0

    def is_past(charges: Sequence[Charge]) -> bool:
        nonlocal read
        read += len(charges)
        return read >= _MAX_CHARGES or all(_age(charge, now) > _WINDOW for charge in charges)

    charges = await read_pages(session.client.list_usage, lambda charge: charge.id, is_past)
    recent = [charge for charge in charges if _age(charge, now) <= _WINDOW]
    is_cut = len(charges) >= _MAX_CHARGES
    span = max((_age(charge, now) for charge in recent), default=_WINDOW) if is_cut else _WINDOW
    total = sum((charge.amount_usd for charge in recent), Decimal(0))
    return round(total / Decimal(max(span, _DAY) / _DAY), 4)


def _age(charge: Charge, now: datetime) -> timedelta:
    return now - charge.created_at if charge.created_at else timedelta(0)
