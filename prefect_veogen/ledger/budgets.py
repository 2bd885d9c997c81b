"""Caps on spending that hold for any number of workers: money is reserved in the store before it is spent.

One document per budget. What is reserved and what was spent together never exceed the cap: every change is one
conditional write of the whole document, so two workers can't both take the last cent.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_veogen.errors import BudgetExceeded, ConfigurationError, StoreUnavailable, UnreadableReceipt
from prefect_veogen.models import LabelBudget, Labels, in_usd
from prefect_veogen.process.concurrency import backoff_seconds
from prefect_veogen.process.registry import Registry
from prefect_veogen.store import AlreadyExists, VersionConflict

if TYPE_CHECKING:
    from prefect_veogen.store import Store

_TRIES = 200
_longest_pause_seconds = partial(backoff_seconds, first=0.01, longest=0.5)
_WARNED_AT = Decimal("0.8")
_BY_LABEL = "label-"

Change = Callable[["Account"], "Account | None"]


class Cap(NamedTuple):
    """A budget's name and how much may be spent under it, in USD."""

    budget: str
    usd: Decimal

    @classmethod
    def of(cls, budget: str, usd: Decimal | float | None) -> Cap | None:
        """Return the cap, `None` for no amount.

        Raises:
            ConfigurationError: the amount is not valid.
        """
        if usd is None:
            return None
        try:
            amount = Decimal(str(usd))
        except InvalidOperation:
            amount = Decimal("nan")
        if isinstance(usd, bool) or not amount.is_finite() or amount < 0:
            raise ConfigurationError(
                f"budget_usd={usd!r} is not a valid amount of money",
                next_step="Give a number of USD, 0 or more, or None for no cap.",
            )
        return cls(budget, amount)


class Crossing(NamedTuple):
    """A cap of which a reservation has committed 80 % or more, the first that did."""

    cap: Cap
    committed_usd: Decimal

    @property
    def left_usd(self) -> Decimal:
        """What may still be reserved."""
        return self.cap.usd - self.committed_usd

    @classmethod
    def of(cls, cap: Cap, before_usd: Decimal, after_usd: Decimal) -> Crossing | None:
        """Return the crossing that a change made, `None` if it made none."""
        return cls(cap, after_usd) if before_usd < _WARNED_AT * cap.usd <= after_usd else None


class Reservation(BaseModel):
    """Money reserved for one purchase that is not settled yet."""

    model_config = ConfigDict(frozen=True)

    usd: Decimal = Field(ge=0)
    by: str
    at: datetime


class Account(BaseModel):
    """What was spent and reserved under one budget."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    budget: str
    spent_usd: Decimal = Field(default=Decimal(0), ge=0)
    reserved: dict[str, Reservation] = Field(default_factory=dict)
    # Whose money was refunded after a failure: a refund is repeated after a kill, and must not count twice.
    refunded: tuple[str, ...] = ()
    # What was charged without a reservation, and counted: counting is repeated after a kill, and must not count twice.
    charged: tuple[str, ...] = ()
    # A nonce: makes a repeated write distinguishable from another worker's.
    written: str = ""

    @property
    def committed_usd(self) -> Decimal:
        """What is spent or reserved."""
        return self.spent_usd + sum((reservation.usd for reservation in self.reserved.values()), Decimal(0))


def day_budget(now: datetime | None = None) -> str:
    """Return the name of the budget that all who share the store spend from today (UTC)."""
    return f"day-{(now or datetime.now(UTC)).date().isoformat()}"


def label_caps(budgets: Mapping[str, LabelBudget], labels: Labels, now: datetime | None = None) -> tuple[Cap, ...]:
    """Return the caps of the budgets by label that purchases with these labels fall under."""
    return tuple(
        Cap(_label_budget(label, budget, now or datetime.now(UTC)), budget.usd)
        for label, budget in budgets.items()
        if labels.get(label.partition(":")[0]) == label.partition(":")[2]
    )


def is_by_label(cap: Cap) -> bool:
    """Tell whether a cap is one that `label_caps` has made."""
    return cap.budget.startswith(_BY_LABEL)


def _label_budget(label: str, budget: LabelBudget, now: datetime) -> str:
    """Return a budget's name; the period stands before the colon, where no label's name can look like it."""
    name, _, value = label.partition(":")
    day = now.astimezone(UTC).date().isoformat()
    period = {"day": f"@{day}", "month": f"@{day[:7]}", None: ""}[budget.per]
    return f"{_BY_LABEL}{name}{period}:{value}"


class Budgets:
    """The budgets of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def reserve(self, caps: Iterable[Cap], name: str, usd: Decimal, by: str) -> tuple[Crossing, ...]:
        """Reserve money under every cap, or under none. Idempotent.

        Returns the caps of which this took what is committed to 80 % or more.

        Raises:
            BudgetExceeded: it would break a cap; the message says what is left and who has reserved the rest.
        """
        taken: list[str] = []
        crossed: dict[str, Crossing | None] = {}
        try:
            for cap in caps:
                taken.append(cap.budget)
                await self._change(cap.budget, _reserving(cap, name, usd, by, crossed))
        except BaseException:
            await asyncio.shield(self.release(taken, name))
            raise
        return tuple(crossing for crossing in crossed.values() if crossing is not None)

    async def settle(self, budgets: Iterable[str], name: str, usd: Decimal) -> None:
        """Turn a reservation into what was really spent. Idempotent."""
        for budget in budgets:
            await self._change(budget, lambda account: _settled(account, name, usd))

    async def charge(self, budgets: Iterable[str], name: str, usd: Decimal) -> None:
        """Count money that was spent under a name, reserved or not: no cap can undo it. Idempotent."""
        for budget in budgets:
            await self._change(budget, lambda account: _charged(account, name, usd))

    async def release(self, budgets: Iterable[str], name: str, settled_usd: Decimal | None = None) -> None:
        """Release a reservation, or, if it was settled already, refund what was spent. Idempotent."""
        for budget in budgets:
            await self._change(budget, lambda account: _released(account, name, settled_usd))

    async def read_account(self, budget: str) -> Account:
        """Return what was spent and reserved under a budget."""
        document = await self._store.read(_path(budget))
        return Account(budget=budget) if document is None else _account_of(budget, document.body)

    async def _change(self, budget: str, change: Change) -> None:
        await _queues.get((self._store, budget), lambda: _WriteQueue(self._store, budget)).change(change)


class _WriteQueue:
    """The changes of one event loop to one budget: each write makes all of them that wait.

    Hundreds of purchases under one cap would otherwise spend their time on conflicts with each other.
    """

    def __init__(self, store: Store, budget: str) -> None:
        self._store = store
        self._budget = budget
        self._waiting: list[tuple[Change, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def change(self, change: Change) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, done))
        if self._writer is None or self._writer.done():
            # A task of its own: when one caller is cancelled, the changes of the others are still written.
            self._writer = asyncio.create_task(self._write_all())
        await done

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                refused = await self._apply([change for change, _ in batch])
            except Exception as error:  # noqa: BLE001 - every caller gets it
                refused = dict.fromkeys(range(len(batch)), error)
            for number, (_, done) in enumerate(batch):
                if done.done():
                    continue
                if number in refused:
                    done.set_exception(refused[number])
                else:
                    done.set_result(None)

    async def _apply(self, changes: Sequence[Change]) -> dict[int, Exception]:
        """Write all changes at once, and return the refusals of those that can't be made."""
        for attempt in range(1, _TRIES + 1):
            document = await self._store.read(_path(self._budget))
            before = Account(budget=self._budget) if document is None else _account_of(self._budget, document.body)
            account, refused = before, {}
            for number, change in enumerate(changes):
                try:
                    account = change(account) or account
                except BudgetExceeded as error:
                    refused[number] = error
            if account is before:
                return dict(refused)
            body = account.model_copy(update={"written": uuid.uuid4().hex}).model_dump_json(indent=1).encode()
            try:
                if document is None:
                    await self._store.create(_path(self._budget), body)
                else:
                    await self._store.replace(_path(self._budget), body, document.version)
            except (AlreadyExists, VersionConflict):
                await asyncio.sleep(random.uniform(0, _longest_pause_seconds(attempt)))
            else:
                return dict(refused)
        raise StoreUnavailable(f"The budget {self._budget} has too many concurrent writers")


_queues = Registry[tuple["Store", str], _WriteQueue]()


def _reserving(cap: Cap, name: str, usd: Decimal, by: str, crossed: dict[str, Crossing | None]) -> Change:
    def reserve(account: Account) -> Account:
        changed = _reserved(account, cap, name, usd, by)
        # Made again after every conflict: what the last one says was written.
        crossed[cap.budget] = Crossing.of(cap, account.committed_usd, changed.committed_usd)
        return changed

    return reserve


def _reserved(account: Account, cap: Cap, name: str, usd: Decimal, by: str) -> Account:
    # What a run that died had reserved for the same purchase was judged by its cap and its price, not by today's.
    account = account.model_copy(update={"reserved": _without(account.reserved, name)})
    left = cap.usd - account.committed_usd
    if usd > left:
        raise BudgetExceeded(
            _explanation(account, cap, usd),
            wanted_usd=usd,
            left_usd=max(left, Decimal(0)),
            cap_usd=cap.usd,
            budget=cap.budget,
        )
    reservation = Reservation(usd=usd, by=by, at=datetime.now(UTC))
    return account.model_copy(update={"reserved": {**account.reserved, name: reservation}})


def _settled(account: Account, name: str, usd: Decimal) -> Account | None:
    if name not in account.reserved:
        return None
    spent = account.spent_usd + usd
    return account.model_copy(update={"reserved": _without(account.reserved, name), "spent_usd": spent})


def _charged(account: Account, name: str, usd: Decimal) -> Account | None:
    if name in account.charged:
        return None
    changes = {"reserved": _without(account.reserved, name), "spent_usd": account.spent_usd + usd}
    return account.model_copy(update={**changes, "charged": (*account.charged, name)})


def _released(account: Account, name: str, settled_usd: Decimal | None) -> Account | None:
    changes: dict[str, Any] = {}
    if name in account.reserved:
        changes["reserved"] = _without(account.reserved, name)
    elif settled_usd and name not in account.refunded:
        # Never below nothing, even if the account was removed meanwhile: that would be money on top of the cap.
        changes["spent_usd"] = max(account.spent_usd - settled_usd, Decimal(0))
    else:
        return None
    if settled_usd:
        changes["refunded"] = (*account.refunded, name)
    return account.model_copy(update=changes)


def _without(reserved: Mapping[str, Reservation], name: str) -> dict[str, Reservation]:
    return {key: value for key, value in reserved.items() if key != name}


def _explanation(account: Account, cap: Cap, usd: Decimal) -> str:
    left = max(cap.usd - account.committed_usd, Decimal(0))
    text = (
        f"The budget {cap.budget!r} allows {in_usd(cap.usd)}: {in_usd(account.spent_usd)} is spent, "
        f"{in_usd(account.committed_usd - account.spent_usd)} is reserved, {in_usd(left)} is left, "
        f"and {in_usd(usd)} was wanted"
    )
    holders: dict[str, Decimal] = {}
    for reservation in account.reserved.values():
        holders[reservation.by] = holders.get(reservation.by, Decimal(0)) + reservation.usd
    shown = ", ".join(f"{in_usd(held)} by {by}" for by, held in list(holders.items())[:5])
    return f"{text}. Reserved: {shown}{' and others' if len(holders) > 5 else ''}" if shown else text


def _account_of(budget: str, body: bytes) -> Account:
    try:
        account = Account.model_validate_json(body)
    except ValidationError:
        account = None
    if account is None or account.budget != budget:
        raise UnreadableReceipt(
            f"The record of the budget {budget} ({_path(budget)} in the store) can't be read",
            next_step="Nothing was bought. Restore the file, update prefect-veogen if a newer one wrote it, or remove "
            "the file: the budget then begins anew at 0.",
        )
    return account


def _path(budget: str) -> str:
    return f"budgets/{quote(budget, safe='')}.json"
