"""Buying at most once: the one place from which money is spent.

Whatever happens to this process, the receipt says what may safely be done next; see `ledger` for its states. The order
of the steps is the whole safety: everything that can fail for free comes first, then the receipt, then the money set
aside, then the note that the purchase is on its way, and at once the purchase.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect_veogen.catalogue import check, quote
from prefect_veogen.errors import (
    BudgetExceeded,
    ConfigurationError,
    GenerationFailed,
    NotSent,
    RateLimited,
    StoreUnavailable,
    TryAgainLater,
    UnexpectedAnswer,
    VeogenError,
)
from prefect_veogen.iothread import uninterrupted
from prefect_veogen.ledger import Entry, Receipt, State
from prefect_veogen.links import offered_links
from prefect_veogen.liveness import holding
from prefect_veogen.models import Generation, GenerationRequest, Quote, in_usd
from prefect_veogen.protocol import Accepted, Busy, Refused, Unknown, failure_of
from prefect_veogen.recovery import (
    Search,
    attach,
    is_abandoned,
    is_about,
    look_for,
    readable,
    recorded,
    shown_links,
    unknown_submission,
    write_down,
)
from prefect_veogen.store import AlreadyThere, Changed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect_veogen.liveness import Holder
    from prefect_veogen.session import Session

# Longer than a purchase can take to be answered; only other machines ever have to wait for it.
_LEASE_MARGIN_SECONDS = 30.0
_BUSY_SECONDS = 900.0
_RIVAL_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
_LOOK_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0)
_BLIND_SECONDS = 60.0
_LEAST_LOOKS = 2
_STORE_AWAY_SECONDS = 60.0
_LAST_WORDS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Purchase:
    """A generation, and whether it had been bought before."""

    generation: Generation
    reused: bool


async def buy(session: Session, request: GenerationRequest) -> Purchase:
    """Return the generation of a request, bought now unless the ledger knows it already.

    Safe to call again, at once, from anywhere: equal requests with equal takes are one purchase.
    """
    await session.store.check()
    lease = session.settings.request_timeout_seconds + _LEASE_MARGIN_SECONDS
    with holding(lease, session.flow_run_id) as holder:
        return await _Buyer(session, request, holder, lease).get()


async def mark_failed(session: Session, generation: Generation) -> GenerationFailed:
    """Return the error of a failed generation, after writing into its receipt that nothing was charged."""
    error = failure_of(generation)
    while generation.receipt is not None:
        entry = await session.ledger.read(generation.receipt)
        if entry is None or entry.receipt.state is not State.BOUGHT or not is_about(entry.receipt, generation):
            break
        receipt = entry.receipt
        try:
            await session.ledger.move(
                entry, State.FAILED, "failed", generation.error, generation=recorded(receipt, generation)
            )
        except Changed:
            continue
        # Only the one who moved the receipt gives the money back, so that it is given back once.
        await session.budgets.release(receipt.budgets, receipt.reservation, receipt.price_usd)
        break
    return error


class _Note:
    """The note that a purchase is on its way, written when nothing but the purchase itself is left to be sent.

    Connecting takes long enough to be killed in; after the note, only a person can tell whether money was spent.
    """

    def __init__(self, entry: Entry, write: Callable[[Entry], Awaitable[Entry]]) -> None:
        self.entry = entry
        self.is_written = False
        self._write = write

    async def write(self) -> None:
        self.entry = await self._write(self.entry)
        self.is_written = True


class _Buyer:
    """One call's attempt to come to a generation."""

    def __init__(self, session: Session, request: GenerationRequest, holder: Holder, lease_seconds: float) -> None:
        self._session = session
        self._ledger = session.ledger
        self._request = request
        self._key = request.receipt_key(session.client.base_url)
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._quote: Quote | None = None
        self._body: dict[str, Any] = {}

    async def get(self) -> Purchase:
        try:
            return await self._got()
        except BaseException:
            await asyncio.shield(self._let_go())
            raise

    async def _let_go(self) -> None:
        """Give up what is only reserved: others would wait for it for as long as this process lives."""
        with contextlib.suppress(Changed, VeogenError):
            entry = await self._ledger.read(self._key)
            if entry is None or entry.receipt.state is not State.RESERVED or entry.receipt.holder is None:
                return
            if entry.receipt.holder.id == self._holder.id:
                await self._release(entry, "the buyer was stopped before sending")

    async def _got(self) -> Purchase:
        attempt = 0
        while True:
            if attempt == 1:
                self._session.log.info("Somebody else is buying this just now: waiting for what comes of it")
            entry = await self._ledger.read(self._key)
            try:
                if entry is None:
                    return await self._buy(await self._reserved(None))
                match entry.receipt.state:
                    case State.BOUGHT | State.STORED:
                        return Purchase(attach(entry.receipt), reused=True)
                    case State.RESERVED | State.SENDING if not is_abandoned(entry.receipt):
                        await asyncio.sleep(_RIVAL_SECONDS[min(attempt, len(_RIVAL_SECONDS) - 1)])
                        attempt += 1
                    case State.SENDING:
                        entry = await self._ledger.move(entry, State.UNKNOWN, "unknown", "the buyer died")
                        return await self._find(entry)
                    case State.UNKNOWN:
                        return await self._find(entry)
                    case State.RESERVED | State.RELEASED | State.FAILED:
                        return await self._buy(await self._reserved(entry))
            except (AlreadyThere, Changed):
                continue  # somebody else was faster: see what he did

    # ------------------------------------------------------------ before the money

    async def _reserved(self, entry: Entry | None) -> Entry:
        """Return the receipt as ours, everything checked that can be checked for free, and our turn come."""
        await self._prepare()
        await self._session.client.turn_to_buy()
        try:
            return await uninterrupted(self._held(entry))
        except BaseException:
            self._session.client.limiter.give_back()
            raise

    async def _held(self, entry: Entry | None) -> Entry:
        left_over = entry.receipt if entry is not None and entry.receipt.state is not State.UNKNOWN else None
        entry = await self._written_ahead(entry)
        if left_over is not None:
            # What an attempt that bought nothing had set aside, if whoever made it died before giving it back.
            kept = entry.receipt.budgets if left_over.reservation == entry.receipt.reservation else ()
            settled = left_over.price_usd if left_over.state is State.FAILED else None
            await self._session.budgets.release(set(left_over.budgets) - set(kept), left_over.reservation, settled)
        await self._set_aside(entry)
        return entry

    async def _prepare(self) -> None:
        if self._quote is None:
            model = await self._session.catalogue.model(self._request.model)
            check(self._request, model)
            self._quote = quote(self._request, model)
            if self._quote.usd is None and self._session.caps:
                raise BudgetExceeded.without_a_price(model.slug)
        self._body = {**self._request.set_fields(), **await offered_links(self._session, self._request)}

    async def _written_ahead(self, entry: Entry | None) -> Entry:
        assert self._quote is not None
        changes: dict[str, Any] = {
            "holder": self._holder.renewed(self._lease_seconds),
            "quote_usd": self._quote.usd,
            "flow_run_id": self._session.flow_run_id,
            "budgets": tuple(cap.budget for cap in self._session.caps),
        }
        if entry is None:
            receipt = Receipt(
                key=self._key,
                content=self._request.content_key(self._session.client.base_url),
                state=State.RESERVED,
                request=readable(self._request),
                take=str(self._request.take),
                api=self._session.client.base_url,
            )
            return await self._ledger.create(receipt.moved(State.RESERVED, "reserved", **changes))
        if entry.receipt.state is not State.RESERVED:
            changes |= {"attempt": entry.receipt.attempt + 1, "generation": None, "sent_at": None}
        return await self._ledger.move(entry, State.RESERVED, "reserved", **changes)

    async def _set_aside(self, entry: Entry) -> None:
        if not self._session.caps:
            return
        assert self._quote is not None
        assert self._quote.usd is not None
        by = f"{self._holder.host}/{self._holder.pid}"
        try:
            await self._session.budgets.reserve(self._session.caps, entry.receipt.reservation, self._quote.usd, by)
        except VeogenError as error:
            await self._ledger.move(entry, State.RELEASED, "released", error.message, holder=None)
            raise

    # ------------------------------------------------------------ the money

    async def _buy(self, entry: Entry) -> Purchase:
        give_up_at = time.monotonic() + _BUSY_SECONDS
        while True:
            note = _Note(entry, self._sending)
            try:
                submission = await self._session.client.create_generation(self._body, note.write)
            except (NotSent, ConfigurationError) as error:
                await self._release(note.entry, error.message)
                raise
            except BaseException:
                if note.is_written:
                    # Stopped in the middle: nobody heard the answer, so the next caller is to look for the purchase.
                    await asyncio.shield(
                        self._ledger.move(note.entry, State.UNKNOWN, "unknown", "the buyer was stopped")
                    )
                raise
            entry = note.entry
            match submission:
                case Accepted(generation):
                    return await self._bought(entry, generation, "bought")
                case Refused(refusal):
                    await self._release(entry, refusal.message)
                    raise refusal
                case Unknown(reason):
                    self._session.log.warning("The answer to a purchase was lost (%s): looking for it", reason)
                    return await self._find(await self._ledger.move(entry, State.UNKNOWN, "unknown", reason))
                case Busy(seconds):
                    if time.monotonic() > give_up_at:
                        await self._release(entry, "too many requests")
                        raise RateLimited("The service is too busy to sell anything", retry_after_seconds=seconds)
                    entry = await self._ledger.move(
                        entry,
                        State.RESERVED,
                        "waiting",
                        f"too many requests: {seconds:g} s",
                        holder=self._holder.renewed(self._lease_seconds + seconds),
                    )
                    await self._session.client.turn_to_buy()

    async def _sending(self, entry: Entry) -> Entry:
        """Return the receipt with the note that the purchase is on its way."""
        noting = asyncio.ensure_future(
            self._ledger.move(
                entry,
                State.SENDING,
                "sending",
                holder=self._holder.renewed(self._lease_seconds),
                sent_at=datetime.now(UTC),
                links=shown_links(self._body),
            )
        )
        try:
            return await asyncio.shield(noting)
        except asyncio.CancelledError:
            # Stopped before anything was sent: with the note left behind, a person would have to find that out.
            with contextlib.suppress(Changed, VeogenError):
                await asyncio.shield(self._release(await noting, "the buyer was stopped before sending"))
            raise

    async def _release(self, entry: Entry, reason: str) -> None:
        receipt = entry.receipt
        await self._ledger.move(entry, State.RELEASED, "released", reason, holder=None)
        await self._session.budgets.release(receipt.budgets, receipt.reservation)

    async def _bought(self, entry: Entry, generation: Generation, event: str) -> Purchase:
        noting = asyncio.ensure_future(self._written_down(entry, generation, event))
        try:
            written = await asyncio.shield(noting)
        except asyncio.CancelledError:
            # Stopped with the id in hand, which nobody else knows: a moment to write it down.
            await asyncio.wait([noting], timeout=_LAST_WORDS_SECONDS)
            raise
        if written is None:
            # A twin purchase whose answer was lost has adopted ours; its own one is still to be found.
            reason = f"generation {generation.id} was adopted for another take"
            return await self._find(await self._ledger.move(entry, State.UNKNOWN, "unknown", reason))
        bought = attach(written.receipt)
        if event == "bought":
            self._session.watcher.bought(bought)
        return Purchase(bought, reused=event != "bought")

    async def _written_down(self, entry: Entry, generation: Generation, event: str) -> Entry | None:
        """Return the receipt with what was paid for; a store that is away for a moment must not lose that."""
        give_up_at, attempt = time.monotonic() + _STORE_AWAY_SECONDS, 0
        while True:
            try:
                return await write_down(self._session, entry, generation, event)
            except StoreUnavailable as error:
                paid = f"Generation {generation.id} is bought for {in_usd(generation.price_usd)}, but can't be noted"
                if time.monotonic() > give_up_at:
                    raise StoreUnavailable(
                        f"{paid}: {error.message}",
                        next_step="Run it again when the store is back: the purchase is then found in the account's "
                        "generations, and not made again.",
                    ) from None
                self._session.log.warning("%s yet: %s", paid, error.message)
            await asyncio.sleep(_LOOK_SECONDS[min(attempt, len(_LOOK_SECONDS) - 1)])
            attempt += 1

    # ------------------------------------------------------------ after a lost answer

    async def _find(self, entry: Entry) -> Purchase:
        """Return the lost purchase once the service lists it; the receipt stays UNKNOWN if it never does."""
        # From the loss on: a purchase may have been under way for longer than the grace before its answer was lost.
        lost_at = entry.receipt.history[-1].at
        grace_over = lost_at + timedelta(seconds=self._session.settings.unknown_grace_seconds)
        blind_until = max(grace_over, datetime.now(UTC)) + timedelta(seconds=_BLIND_SECONDS)
        attempt = looks = 0
        while True:
            began = datetime.now(UTC)
            try:
                search = await look_for(self._session, entry.receipt)
            except (TryAgainLater, UnexpectedAnswer) as error:
                if began > blind_until:
                    reason = f"the service could not be asked: {error.message}"
                    raise unknown_submission(entry.receipt, reason) from None
            else:
                if search.found is not None:
                    return await self._bought(entry, search.found, "adopted")
                looks += 1
                if began >= grace_over and looks >= _LEAST_LOOKS and not search.wait:
                    return await self._not_found(entry, search)
            await asyncio.sleep(_LOOK_SECONDS[min(attempt, len(_LOOK_SECONDS) - 1)])
            attempt += 1
            current = await self._ledger.read(self._key)
            if current is None or current.version != entry.version:
                raise Changed(self._key)

    async def _not_found(self, entry: Entry, search: Search) -> Purchase:
        if search.candidates or not self._session.settings.buy_again_when_unknown:
            raise unknown_submission(entry.receipt, search.reason, search.candidates)
        self._session.log.warning(
            "The lost purchase did not show up: buying again, as VEOGEN_BUY_AGAIN_WHEN_UNKNOWN says"
        )
        return await self._buy(await self._reserved(entry))
