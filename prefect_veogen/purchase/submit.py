"""Buying at most once: the one place from which money is spent.

Whatever happens to this process, the receipt says what may safely be done next; see `receipt` for its states. The order
of the steps is the whole safety: everything that can fail for free comes first, then the receipt, then the money
reserved, then the write-ahead note that the purchase is on its way, and at once the purchase.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect_veogen.api.outcome import Accepted, Busy, Refused, Unknown, failure_of
from prefect_veogen.api.pricing import quote, validate
from prefect_veogen.errors import (
    STORE_TROUBLE,
    BudgetExceeded,
    ConfigurationError,
    GenerationFailed,
    NotSent,
    RateLimited,
    TryAgainLater,
    VeogenError,
)
from prefect_veogen.ledger import Entry, EventName, Intent, State
from prefect_veogen.ledger.lease import own_lease
from prefect_veogen.ledger.receipt import attach
from prefect_veogen.models import Generation, GenerationRequest, Labels, Quote, in_usd, without_secrets
from prefect_veogen.process.concurrency import backoff_seconds, run_uninterrupted
from prefect_veogen.process.tracing import span
from prefect_veogen.purchase.in_doubt import (
    Doubt,
    needs_reading,
    note_doubt,
    prove_absent,
    read_repeatedly,
    still_in_doubt,
    write_down,
)
from prefect_veogen.purchase.inputs import identify_inputs, offer_links
from prefect_veogen.purchase.note import Note
from prefect_veogen.purchase.notices import note_bought, note_failed, note_refused, warn_of
from prefect_veogen.purchase.search import Search, search
from prefect_veogen.store import AlreadyExists, VersionConflict

if TYPE_CHECKING:
    from prefect_veogen.api.outcome import Submission
    from prefect_veogen.ledger.lease import Owner
    from prefect_veogen.ledger.receipt import Receipt
    from prefect_veogen.session import Session

# Longer than the response to a purchase can take; only other machines ever have to wait for it.
_LEASE_MARGIN_SECONDS = 30.0
_BUSY_SECONDS = 900.0
_rival_poll_seconds = partial(backoff_seconds, first=0.05, longest=1.0)
_pause_seconds = partial(backoff_seconds, longest=5.0)
_SEARCH_POLLS = 10
"""For how many poll intervals a purchase whose response was just lost is searched for before that is reported."""
_WAITED_FOR = timedelta(seconds=30)
"""What is left of a doubt at most for a call to wait for its end."""
_BLIND_SECONDS = 60.0
_STORE_AWAY_SECONDS = 60.0
_LAST_WORDS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Purchase:
    """A generation, whether it had been bought before, and with which labels it was bought."""

    generation: Generation
    reused: bool
    labels: Labels = field(default_factory=dict)


async def buy(session: Session, request: GenerationRequest) -> Purchase:
    """Return the generation of a request, bought now unless the ledger knows it already.

    Safe to call again, at once, from anywhere: equal requests with equal takes are one purchase.
    """
    await session.store.check()
    request = await identify_inputs(session, request)
    lease = session.settings.request_timeout_seconds + _LEASE_MARGIN_SECONDS
    prompt = request.prompt if session.settings.trace_prompts else None
    facts = {"model": request.model, "take": str(request.take), "prompt": prompt}
    with span("purchase", **facts) as traced, own_lease(lease, session.flow_run_id) as owner:
        try:
            purchase = await _Buyer(session, request, owner, lease).buy()
        except BudgetExceeded as refusal:
            note_refused(session, refusal, request)
            raise
        bought = purchase.generation
        traced.note(generation_id=bought.id, price_usd=bought.price_usd, receipt=bought.receipt, reused=purchase.reused)
        return purchase


async def mark_failed(session: Session, generation: Generation) -> GenerationFailed:
    """Return the error of a failed generation, after writing into its receipt that nothing was charged."""
    entry = await session.ledger.find(session.client.base_url, generation)
    receipt = None if entry is None else await session.ledger.fail(entry, generation)
    note_failed(session, generation, receipt)
    return failure_of(generation)


class _Buyer:
    """One call's attempt to come to a generation."""

    def __init__(self, session: Session, request: GenerationRequest, owner: Owner, lease_seconds: float) -> None:
        self._session = session
        self._ledger = session.ledger
        self._request = request
        self._key = request.receipt_key(session.client.base_url)
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._quote: Quote | None = None
        self._body: dict[str, Any] = {}

    async def buy(self) -> Purchase:
        try:
            return await self._acquire()
        except BaseException:
            await asyncio.shield(self._release_reserved())
            raise

    async def _release_reserved(self) -> None:
        """Release what is only reserved: others would wait for it for as long as this process lives."""
        with contextlib.suppress(VersionConflict, VeogenError):
            entry = await self._ledger.read(self._key)
            if entry is None or entry.receipt.state is not State.RESERVED or entry.receipt.owner is None:
                return
            if entry.receipt.owner.id == self._owner.id:
                await self._ledger.release(entry, "the buyer was stopped before sending")

    async def _acquire(self) -> Purchase:
        attempt, seen = 0, set[State | None]()
        while True:
            entry = await self._ledger.read(self._key)
            seen.add(entry.receipt.state if entry else None)
            try:
                if entry is None:
                    return await self._buy(await self._reserve(None))
                match entry.receipt.state:
                    case State.BOUGHT | State.STORED:
                        return Purchase(attach(entry.receipt), reused=True, labels=entry.receipt.labels)
                    case State.RESERVED | State.SENDING if not entry.receipt.is_abandoned:
                        attempt += 1
                        await self._wait_for_rival(attempt)
                    case State.SENDING:
                        return await self._resolve(await note_doubt(self._session, entry, "the buyer died"))
                    case State.IN_DOUBT:
                        return await self._resolve(entry)
                    case State.FAILED if seen != {State.FAILED}:  # meanwhile, as another worker's: all get the failure
                        raise failure_of(attach(entry.receipt))
                    case State.RESERVED | State.RELEASED | State.FAILED:
                        return await self._buy(await self._reserve(entry))
            except (AlreadyExists, VersionConflict):
                continue  # another worker was first: see what it did

    async def _wait_for_rival(self, attempt: int) -> None:
        if attempt == 1:
            self._session.log.info("Another worker is buying this just now: waiting for its outcome")
        await asyncio.sleep(_rival_poll_seconds(attempt))

    # ------------------------------------------------------------ before the money

    async def _reserve(self, entry: Entry | None) -> Entry:
        """Return the receipt as ours, everything checked that can be checked for free, and the rate limit acquired."""
        await self._prepare()
        await self._session.client.acquire_for_purchase()
        assert self._quote is not None
        intent = Intent(
            request=self._request,
            api=self._session.client.base_url,
            owner=self._owner.renewed(self._lease_seconds),
            quote_usd=self._quote.usd,
            caps=self._session.caps,
            flow_run_id=self._session.flow_run_id,
            labels=self._session.labels,
            campaign=self._session.campaign,
        )
        try:
            reserved = await run_uninterrupted(self._ledger.reserve(entry, intent))
        except BaseException:
            self._session.client.limiter.return_unused()
            raise
        warn_of(self._session, reserved.crossed)
        return reserved

    async def _prepare(self) -> None:
        if self._quote is None:
            model = await self._session.catalogue.get_model(self._request.model)
            validate(self._request, model)
            self._quote = quote(self._request, model)
            if self._quote.usd is None and self._session.caps:
                raise BudgetExceeded.without_a_price(model.slug)
        self._body = {**self._request.set_fields(), **await offer_links(self._session, self._request)}

    # ------------------------------------------------------------ the money

    async def _buy(self, entry: Entry) -> Purchase:
        give_up_at = time.monotonic() + _BUSY_SECONDS
        while True:
            if needs_reading(entry.receipt) and (reopened := await self._reopen_if_listed(entry)) is not None:
                return await self._resolve(reopened)
            entry, submission = await self._submit(entry)
            match submission:
                case Accepted(generation):
                    return await self._record_purchase(entry, generation, EventName.BOUGHT)
                case Refused(refusal):
                    await self._ledger.release(entry, refusal.message)
                    raise refusal
                case Unknown(reason):
                    self._session.log.warning("The response to a purchase was lost (%s): searching for it", reason)
                    return await self._resolve(await note_doubt(self._session, entry, reason))
                case Busy(seconds):
                    entry = await self._wait(entry, seconds, give_up_at)

    async def _submit(self, entry: Entry) -> tuple[Entry, Submission]:
        """Send the purchase, once; return the receipt, which says so, and what came of it."""
        note = Note(entry, self._send)
        try:
            submission = await self._session.client.create_generation(self._body, note.write)
        except (NotSent, ConfigurationError) as error:
            await self._ledger.release(note.entry, error.message)
            raise
        except BaseException:
            if note.is_written:
                # Cancelled in between: the response is lost, so the next caller has to reconcile.
                await asyncio.shield(note_doubt(self._session, note.entry, "the buyer was stopped"))
            raise
        return note.entry, submission

    async def _wait(self, entry: Entry, seconds: float, give_up_at: float) -> Entry:
        """Return the receipt, reserved again, when the purchase may be sent once more after a 429."""
        if time.monotonic() > give_up_at:
            await self._ledger.release(entry, "too many requests")
            raise RateLimited(f"The service kept answering 429 for {_BUSY_SECONDS:g} s", retry_after_seconds=seconds)
        owner = self._owner.renewed(self._lease_seconds + seconds)
        entry = await self._ledger.wait(entry, owner, seconds)
        await self._session.client.acquire_for_purchase()
        return entry

    async def _send(self, entry: Entry) -> Entry:
        """Return the receipt with the note that the purchase is on its way."""
        lists = {name: value for name, value in self._body.items() if isinstance(value, list)}
        links = {name: tuple(map(without_secrets, value)) for name, value in lists.items()}
        owner, offset = self._owner.renewed(self._lease_seconds), self._session.client.clock_offset
        noting = asyncio.ensure_future(self._ledger.send(entry, owner, offset, links))
        try:
            return await asyncio.shield(noting)
        except asyncio.CancelledError:
            # Stopped before anything was sent: with the note left behind, that would have to be reconciled.
            with contextlib.suppress(VersionConflict, VeogenError):
                await asyncio.shield(self._ledger.release(await noting, "the buyer was stopped before sending"))
            raise

    async def _record_purchase(self, entry: Entry, generation: Generation, event: EventName) -> Purchase:
        noting = asyncio.ensure_future(self._write_down(entry, generation, event))
        try:
            written = await asyncio.shield(noting)
        except asyncio.CancelledError:
            # Stopped with the id in hand, which no other process knows: a moment to write it down.
            await asyncio.wait([noting], timeout=_LAST_WORDS_SECONDS)
            raise
        if written is None:
            # A twin purchase in doubt has adopted ours; its own one is still to be found.
            reason = f"generation {generation.id} was adopted for another take"
            if entry.receipt.state is State.IN_DOUBT:
                raise VersionConflict(self._key)
            return await self._resolve(await note_doubt(self._session, entry, reason))
        bought = attach(written.receipt)
        note_bought(self._session, written.receipt)
        if event is EventName.BOUGHT:
            self._session.poller.note_purchase(bought)
        return Purchase(bought, reused=event is not EventName.BOUGHT, labels=written.receipt.labels)

    async def _write_down(self, entry: Entry, generation: Generation, event: EventName) -> Entry | None:
        """Return the receipt with what was paid for; a store that is away for a moment must not lose that."""
        give_up_at, attempt = time.monotonic() + _STORE_AWAY_SECONDS, 0
        while True:
            try:
                return await write_down(self._session, entry, generation, event)
            except STORE_TROUBLE as error:
                paid = f"Generation {generation.id} is bought for {in_usd(generation.price_usd)}, but can't be noted"
                if time.monotonic() > give_up_at:
                    raise type(error)(
                        f"{paid}: {error.message}",
                        next_step="Run it again when the store is back: the purchase is then found in the account's "
                        "generations, and not made again.",
                    ) from None
                self._session.log.warning("%s yet: %s", paid, error.message)
            attempt += 1
            await asyncio.sleep(_pause_seconds(attempt))

    # ------------------------------------------------------------ in doubt

    async def _resolve(self, entry: Entry) -> Purchase:
        """Return the purchase in doubt once the service lists it, or a new one once its absence is proven.

        Raises:
            UnknownSubmission: neither yet; the receipt stays in doubt, and the error says until when.
        """
        doubt = Doubt.of(self._session, entry.receipt)
        search_until = self._search_until(entry.receipt)
        blind_until = max(search_until, datetime.now(UTC)) + timedelta(seconds=_BLIND_SECONDS)
        attempt = 0
        while True:
            began = datetime.now(UTC)
            try:
                outcome = await search(self._session, entry.receipt)
            except TryAgainLater as error:
                if began > blind_until:
                    reason = f"the service could not be asked: {error.message}"
                    raise still_in_doubt(self._session, entry.receipt, reason) from None
            else:
                if outcome.found is not None:
                    return await self._record_purchase(entry, outcome.found, EventName.ADOPTED)
                if not outcome.wait and (is_over := self._is_over(doubt, search_until)) is not None:
                    return await self._act_on_search(entry, doubt, outcome, is_over=is_over)
            attempt += 1
            await asyncio.sleep(_pause_seconds(attempt))
            await self._ledger.check_current(entry)

    def _is_over(self, doubt: Doubt, search_until: datetime) -> bool | None:
        """Tell whether the doubt is over; `None` while searching on is worth it."""
        left = None if doubt.ends_at is None else doubt.left(self._session)
        if left is not None and left <= timedelta(0):
            return True
        # What ends so soon is waited for: then this very call can end it.
        if left is not None and left <= _WAITED_FOR:
            return None
        return False if datetime.now(UTC) >= search_until else None

    async def _act_on_search(self, entry: Entry, doubt: Doubt, outcome: Search, *, is_over: bool) -> Purchase:
        if outcome.candidates or not is_over:
            raise still_in_doubt(
                self._session, entry.receipt, outcome.reason, outcome.candidates, may_settle=outcome.wait
            )
        entry, outcome = await prove_absent(self._session, entry, doubt)
        if outcome.found is not None:
            return await self._record_purchase(entry, outcome.found, EventName.ADOPTED)
        self._session.log.warning(
            "The purchase of %s is proven absent after %s: buying it again", entry.receipt.key, doubt.delay
        )
        return await self._buy(await self._reserve(entry))

    async def _reopen_if_listed(self, entry: Entry) -> Entry | None:
        """Read the list once more before buying again; return the receipt in doubt again if that speaks against it.

        Raises:
            UnknownSubmission: the reading shows candidates, or proves nothing; the receipt is in doubt again.
        """
        doubted = entry.receipt.as_in_doubt(entry.receipt.lost[-1])
        try:
            outcome, _ = await read_repeatedly(self._session, doubted)
        except VeogenError as error:
            await self._ledger.reopen(entry, error.message)
            raise
        if outcome.found is None and not outcome.candidates:
            return None
        return await self._ledger.reopen(entry, "a generation that could be it is listed by now")

    def _search_until(self, receipt: Receipt) -> datetime:
        """Return until when a purchase is searched for before the doubt is reported, from the loss on."""
        last = receipt.history[-1]
        polls = _SEARCH_POLLS if last.event is EventName.IN_DOUBT else 0
        return last.at + timedelta(seconds=polls * self._session.settings.image_poll_seconds)
