"""Buying at most once: the one place from which money is spent.

Whatever happens to this process, the receipt says what may safely be done next; see `ledger` for its states. The order
of the steps is the whole safety: everything that can fail for free comes first, then the receipt, then the money set
aside, then the note that the purchase is on its way, and at once the purchase.
"""

from __future__ import annotations

import asyncio
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
    PersonNeeded,
    RateLimited,
    TryAgainLater,
    UnexpectedAnswer,
    UnknownSubmission,
    VeogenError,
)
from prefect_veogen.ledger import Entry, Receipt, State
from prefect_veogen.links import offered_links
from prefect_veogen.liveness import holding
from prefect_veogen.models import Generation, GenerationRequest, Kind, Quote, Status
from prefect_veogen.protocol import Accepted, Busy, Refused, Unknown, failure_of
from prefect_veogen.store import AlreadyThere, Changed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from prefect_veogen.liveness import Holder
    from prefect_veogen.session import Session

# Longer than a purchase can take to be answered; only other machines ever have to wait for it.
_LEASE_MARGIN_SECONDS = 30.0
_BUSY_SECONDS = 900.0
_RIVAL_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
_LOOK_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0)
_BLIND_SECONDS = 60.0
# The service's clock may be behind ours by so much and its generations still be recognised as newer than the receipt.
_CLOCK_TOLERANCE = timedelta(minutes=2)
_FAMILY_AGE = timedelta(hours=1)


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
        if entry is None or entry.receipt.state is not State.BOUGHT or not _is_about(entry.receipt, generation):
            break
        receipt = entry.receipt
        try:
            await session.ledger.move(
                entry, State.FAILED, "failed", generation.error, generation=_recorded(receipt, generation)
            )
        except Changed:
            continue
        # Only the one who moved the receipt gives the money back, so that it is given back once.
        await session.budgets.release(receipt.budgets, receipt.reservation, receipt.price_usd)
        break
    return error


def _is_about(receipt: Receipt, generation: Generation) -> bool:
    return receipt.generation is not None and receipt.generation.id == generation.id


def _recorded(receipt: Receipt, generation: Generation) -> Generation:
    """Return the generation as a receipt may hold it: with its price, without links, which may be signed."""
    price = generation.price_usd
    if price is None and receipt.generation is not None:
        price = receipt.generation.price_usd
    return generation.model_copy(
        update={
            "output": None,
            "parameters": {},
            "price_usd": price,
            "receipt": receipt.key,
            "model": generation.model or receipt.request["model"],
        }
    )


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
        attempt = 0
        while True:
            entry = await self._ledger.read(self._key)
            try:
                if entry is None:
                    return await self._buy(await self._reserved(None))
                match entry.receipt.state:
                    case State.BOUGHT | State.STORED:
                        return Purchase(generation_in(entry.receipt), reused=True)
                    case State.RESERVED | State.SENDING if not _abandoned(entry.receipt):
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
            left_over = entry.receipt if entry is not None and entry.receipt.state is State.RESERVED else None
            entry = await self._written_ahead(entry)
            if left_over is not None:
                stale = set(left_over.budgets) - set(entry.receipt.budgets)
                await self._session.budgets.release(stale, left_over.reservation)
            await self._set_aside(entry)
        except BaseException:
            self._session.client.limiter.give_back()
            raise
        return entry

    async def _prepare(self) -> None:
        if self._quote is None:
            model = await self._session.catalogue.model(self._request.model)
            check(self._request, model)
            self._quote = quote(self._request, model)
            if self._quote.usd is None and self._session.caps:
                raise BudgetExceeded(f"The service names no price for {model.slug}, so it can't be kept under a cap")
        self._body = {**self._request.set_fields(), **await offered_links(self._session, self._request)}

    async def _written_ahead(self, entry: Entry | None) -> Entry:
        assert self._quote is not None
        changes: dict[str, Any] = {
            "holder": self._holder.renewed(self._lease_seconds),
            "quote_usd": self._quote.usd,
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
            await self._session.budgets.reserve(
                self._session.caps, entry.receipt.reservation, self._quote.usd, by
            )
        except VeogenError as error:
            await self._ledger.move(entry, State.RELEASED, "released", error.message, holder=None)
            raise

    # ------------------------------------------------------------ the money

    async def _buy(self, entry: Entry) -> Purchase:
        give_up_at = time.monotonic() + _BUSY_SECONDS
        while True:
            entry = await self._ledger.move(
                entry,
                State.SENDING,
                "sending",
                holder=self._holder.renewed(self._lease_seconds),
                sent_at=datetime.now(UTC),
                links=_shown_links(self._body),
            )
            try:
                submission = await self._session.client.create_generation(self._body)
            except (NotSent, ConfigurationError) as error:
                await self._release(entry, error.message)
                raise
            except BaseException:
                # Stopped in the middle: nobody heard the answer, so the next caller is to look for the purchase.
                await asyncio.shield(self._ledger.move(entry, State.UNKNOWN, "unknown", "the buyer was stopped"))
                raise
            match submission:
                case Accepted(generation):
                    return await self._bought(entry, generation, "bought")
                case Refused(error):
                    await self._release(entry, error.message)
                    raise error
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

    async def _release(self, entry: Entry, reason: str) -> None:
        receipt = entry.receipt
        await self._ledger.move(entry, State.RELEASED, "released", reason, holder=None)
        await self._session.budgets.release(receipt.budgets, receipt.reservation)

    async def _bought(self, entry: Entry, generation: Generation, event: str) -> Purchase:
        if not await self._ledger.claim(entry.receipt, generation.id):
            # A twin purchase whose answer was lost has adopted ours; its own one is still to be found.
            reason = f"generation {generation.id} was adopted for another take"
            return await self._find(await self._ledger.move(entry, State.UNKNOWN, "unknown", reason))
        if generation.type is None:  # the newer shape of the answer doesn't say
            generation = generation.model_copy(update={"type": await _kind_of(self._session, entry.receipt)})
        entry = await self._written_down(entry, generation, event)
        receipt = entry.receipt
        if event == "bought":
            self._session.watcher.bought(generation)
        if receipt.price_usd is not None:
            _warn_if_dearer(self._session, receipt)
            await self._session.budgets.settle(receipt.budgets, receipt.reservation, receipt.price_usd)
        return Purchase(generation_in(receipt), reused=event != "bought")

    async def _written_down(self, entry: Entry, generation: Generation, event: str) -> Entry:
        while True:
            try:
                return await self._ledger.move(
                    entry,
                    State.BOUGHT,
                    event,
                    generation.id,
                    generation=_recorded(entry.receipt, generation),
                    holder=None,
                )
            except Changed:
                # Someone took us for dead; but we know what was bought, and that has to get into the receipt.
                current = await self._ledger.read(self._key)
                if current is None:
                    raise
                if _is_about(current.receipt, generation):
                    return current
                entry = current

    # ------------------------------------------------------------ after a lost answer

    async def _find(self, entry: Entry) -> Purchase:
        """Return the lost purchase once the service lists it; the receipt stays UNKNOWN if it never does."""
        sent_at = entry.receipt.sent_at or entry.receipt.history[-1].at
        grace_over = sent_at + timedelta(seconds=self._session.settings.unknown_grace_seconds)
        blind_until = max(grace_over, datetime.now(UTC)) + timedelta(seconds=_BLIND_SECONDS)
        attempt = 0
        while True:
            began = datetime.now(UTC)
            try:
                search = await look_for(self._session, entry.receipt)
            except (TryAgainLater, UnexpectedAnswer) as error:
                if began > blind_until:
                    raise _unknown(entry.receipt, f"the service could not be asked: {error.message}") from None
            else:
                if search.found is not None:
                    return await self._bought(entry, search.found, "adopted")
                if began >= grace_over and not search.wait:
                    return await self._not_found(entry, search)
            await asyncio.sleep(_LOOK_SECONDS[min(attempt, len(_LOOK_SECONDS) - 1)])
            attempt += 1
            current = await self._ledger.read(self._key)
            if current is None or current.version != entry.version:
                raise Changed(self._key)

    async def _not_found(self, entry: Entry, search: Search) -> Purchase:
        if search.candidates:
            reason = f"{len(search.candidates)} generations could be it, and none can be told from the others"
            raise _unknown(entry.receipt, reason, search.candidates)
        if not self._session.settings.buy_again_when_unknown:
            raise _unknown(entry.receipt, "the service does not list it")
        self._session.log.warning("The lost purchase did not show up: buying again, as VEOGEN_BUY_AGAIN_WHEN_UNKNOWN says")
        return await self._buy(await self._reserved(entry))


@dataclass(frozen=True, slots=True)
class Search:
    """What looking for a lost purchase brought."""

    found: Generation | None = None
    candidates: tuple[str, ...] = ()
    wait: bool = False


async def look_for(session: Session, receipt: Receipt) -> Search:
    """Look through the service's generations for the one that a receipt paid for.

    Only a generation which no receipt has claimed, and which no other unsettled receipt could mean, is taken.
    """
    since = (receipt.sent_at or receipt.history[0].at) - _CLOCK_TOLERANCE
    listed = await _listed_since(session, receipt, since)
    matching = [generation for generation in listed if looks_like(receipt, generation)]
    free = []
    for generation in matching:
        claimant = await session.ledger.claimant(receipt.api, generation.id)
        if claimant == receipt.key:
            return Search(found=generation)
        if claimant is None:
            free.append(generation)
    if not free:
        return Search()
    rivals = [
        entry.receipt
        for entry in await session.ledger.family(receipt, since - _FAMILY_AGE)
        if entry.receipt.state in (State.SENDING, State.UNKNOWN)
    ]
    if any(rival.state is State.SENDING and not _abandoned(rival) for rival in rivals):
        return Search(candidates=tuple(generation.id for generation in free), wait=True)
    return _chosen(receipt, free, rivals)


def _chosen(receipt: Receipt, free: Sequence[Generation], rivals: Sequence[Receipt]) -> Search:
    strangers = [rival for rival in rivals if rival.content != receipt.content]
    twins = len(rivals) - len(strangers)
    mine = [
        generation for generation in free if not any(looks_like(stranger, generation) for stranger in strangers)
    ]
    # Twins ask for the same thing, so that any of theirs will do; but what is left over was bought by somebody else.
    if mine and len(mine) <= 1 + twins:
        return Search(found=min(mine, key=lambda generation: (generation.created_at or datetime.now(UTC), generation.id)))
    return Search(candidates=tuple(generation.id for generation in free))


async def _listed_since(session: Session, receipt: Receipt, since: datetime) -> list[Generation]:
    """Return the generations created since a time, of the kind the receipt asked for, through as many pages as needed."""
    kind = await _kind_of(session, receipt)
    found: dict[str, Generation] = {}
    for listed_kind in [kind] if kind is not None else list(Kind):
        page = 1
        while True:
            answer = await session.client.list_generations(listed_kind, page=page)
            new = [generation for generation in answer.items if generation.id not in found]
            found.update((generation.id, generation) for generation in new)
            # The order within a kind is not documented: only a page without anything recent ends the search early.
            recent = any(generation.created_at is None or generation.created_at >= since for generation in new)
            if not answer.has_more or not recent:
                break
            page += 1
    return [generation for generation in found.values() if generation.created_at is None or generation.created_at >= since]


async def _kind_of(session: Session, receipt: Receipt) -> Kind | None:
    try:
        return (await session.catalogue.model(receipt.request["model"])).type
    except VeogenError:
        return None


def looks_like(receipt: Receipt, generation: Generation) -> bool:
    """Tell whether a generation could be what a receipt paid for: model, prompt, and every option the service echoes."""
    request = receipt.request
    if generation.model != request["model"] or (generation.prompt or "").strip() != request["prompt"].strip():
        return False
    for name, asked in request.items():
        echoed = generation.parameters.get(name)
        if name in ("model", "prompt") or echoed in (None, []):
            continue
        if name in receipt.links:
            if [_without_query(str(url)) for url in echoed] != list(receipt.links[name]):
                return False
        elif str(echoed) != str(asked):
            return False
    return True


def generation_in(receipt: Receipt) -> Generation:
    """Return the generation a receipt paid for; completed if its asset is in the store."""
    generation = receipt.generation
    assert generation is not None
    done = {"status": Status.COMPLETED} if receipt.state is State.STORED else {}
    return generation.model_copy(update={"receipt": receipt.key, "price_usd": receipt.price_usd, **done})


def readable(request: GenerationRequest) -> dict[str, Any]:
    """Return the request as a receipt shows it: assets by digest, links without their query, which may be a secret."""
    shown = request.canonical()
    for name, value in shown.items():
        if isinstance(value, list):
            shown[name] = [{kind: _without_query(text) for kind, text in item.items()} for item in value]
    return shown


def _shown_links(body: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(map(_without_query, value)) for name, value in body.items() if isinstance(value, list)}


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def _abandoned(receipt: Receipt) -> bool:
    return receipt.holder is None or receipt.holder.is_dead()


def _warn_if_dearer(session: Session, receipt: Receipt) -> None:
    price: Decimal | None = receipt.price_usd
    if price is not None and receipt.quote_usd is not None and price > receipt.quote_usd:
        session.log.warning(
            "%s cost $%s, more than the $%s that its model object promised", receipt.key, price, receipt.quote_usd
        )


def _unknown(receipt: Receipt, reason: str, candidates: Sequence[str] = ()) -> PersonNeeded:
    adopt = f"If one of the service's generations is it: `prefect-veogen receipts adopt {receipt.key} GENERATION_ID`"
    return UnknownSubmission(
        f"A purchase of {receipt.request['model']} was sent at {receipt.sent_at:%Y-%m-%d %H:%M:%S} UTC, its answer was "
        f"lost, and {reason}",
        next_step=f"Look at the account's generations. {adopt}. If it was never made: `prefect-veogen receipts release "
        f"{receipt.key}`, then run it again. Until then nothing is bought for this request.",
        receipt=receipt.key,
        candidates=candidates,
    )
