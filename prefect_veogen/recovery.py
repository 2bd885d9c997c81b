"""Purchases whose answer was lost: found in the service's list, or left to a person, but never guessed.

Also the one place where a receipt learns which generation it paid for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from prefect_veogen.client import MAX_PER_PAGE
from prefect_veogen.errors import UnknownSubmission, VeogenError
from prefect_veogen.ledger import Entry, Receipt, State
from prefect_veogen.models import Generation, GenerationRequest, Kind, Status, in_usd
from prefect_veogen.store import Changed
from prefect_veogen.transport import without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.session import Session

# The service's clock may be behind ours by so much and its generations still be recognised as newer than the receipt.
_CLOCK_TOLERANCE = timedelta(minutes=2)
_FAMILY_AGE = timedelta(hours=1)


async def write_down(session: Session, entry: Entry, generation: Generation, event: str) -> Entry | None:
    """Return the receipt with the generation it paid for, claimed and settled; `None` if another receipt has it."""
    if not await session.ledger.claim(entry.receipt, generation.id):
        return None
    if generation.type is None:  # the newer shape of the answer doesn't say
        generation = generation.model_copy(update={"type": await _kind_of(session, entry.receipt)})
    entry = await _bought(session, entry, generation, event)
    receipt = entry.receipt
    if receipt.price_usd is not None:
        _warn_if_dearer(session, receipt)
        await session.budgets.settle(receipt.budgets, receipt.reservation, receipt.price_usd)
    return entry


async def _bought(session: Session, entry: Entry, generation: Generation, event: str) -> Entry:
    while True:
        state, changes = State.BOUGHT, {"generation": recorded(entry.receipt, generation), "holder": None}
        if entry.receipt.generation is not None:
            # Somebody took us for dead and bought again, as he was told to: keep his, and don't forget ours.
            session.log.warning("Generation %s was bought as well for %s", generation.id, entry.receipt.key)
            state, event, changes = entry.receipt.state, "also bought", {}
        try:
            return await session.ledger.move(entry, state, event, generation.id, **changes)
        except Changed:
            # Somebody took us for dead; but we know what was bought, and that has to get into the receipt.
            current = await session.ledger.read(entry.receipt.key)
            if current is None:
                raise
            if is_about(current.receipt, generation):
                return current
            entry = current


async def find_lost(session: Session, entry: Entry) -> Entry:
    """Return an UNKNOWN receipt as BOUGHT, after one look at the service's list.

    Raises:
        UnknownSubmission: it isn't there, or can't be told from others; nothing changed.
    """
    search = await look_for(session, entry.receipt)
    found = None if search.found is None else await write_down(session, entry, search.found, "adopted")
    if found is None:
        raise unknown_submission(entry.receipt, search.reason, search.candidates)
    return found


@dataclass(frozen=True, slots=True)
class Search:
    """What looking for a lost purchase brought."""

    found: Generation | None = None
    candidates: tuple[str, ...] = ()
    wait: bool = False

    @property
    def reason(self) -> str:
        """Why nothing was found, for a person."""
        if self.candidates:
            return f"{len(self.candidates)} generations could be it, and none can be told from the others"
        return "the service does not list it"


async def look_for(session: Session, receipt: Receipt) -> Search:
    """Look through the service's generations for the one that a receipt paid for.

    Only a generation which no receipt has claimed, and which no other unsettled receipt could mean, is taken.
    """
    since = (receipt.sent_at or receipt.history[0].at) - session.client.service_behind - _CLOCK_TOLERANCE
    earlier = _known_ids(receipt)
    listed = [item for item in await _listed_since(session, receipt, since) if item.id not in earlier]
    matching = [item for item in listed if looks_like(receipt, item)]
    # The rivals before the claims: whoever is no rival any more by now has made his claim before.
    rivals = []
    if matching:
        rivals = [
            entry.receipt
            for entry in await session.ledger.family(receipt, since - _FAMILY_AGE)
            if entry.receipt.state in (State.SENDING, State.UNKNOWN)
        ]
    free = []
    for generation in matching:
        claimant = await session.ledger.claimant(receipt.api, generation.id)
        if claimant == receipt.key:
            return Search(found=generation)
        if claimant is None:
            free.append(generation)
    if not free:
        # A service that stores inputs at links of its own echoes those: that is no proof of absence.
        doubtful = [item.id for item in listed if receipt.links.keys() >= {*differences(receipt, item)}]
        return Search(
            candidates=tuple([name for name in doubtful if not await session.ledger.claimant(receipt.api, name)])
        )
    if any(rival.state is State.SENDING and not is_abandoned(rival) for rival in rivals):
        return Search(candidates=tuple(generation.id for generation in free), wait=True)
    return _chosen(receipt, free, rivals)


def _known_ids(receipt: Receipt) -> set[str]:
    """Return what earlier attempts had bought: claimed by the same receipt for ever, but never what is lost now."""
    told = [event.detail for event in receipt.history if event.event in ("bought", "adopted", "also bought")]
    return {detail.partition(",")[0] for detail in told if detail}


def _chosen(receipt: Receipt, free: Sequence[Generation], rivals: Sequence[Receipt]) -> Search:
    strangers = [rival for rival in rivals if rival.content != receipt.content]
    twins = len(rivals) - len(strangers)
    mine = [generation for generation in free if not any(looks_like(stranger, generation) for stranger in strangers)]
    # Twins ask for the same thing, so that any of theirs will do; but what is left over was bought by somebody else.
    if mine and len(mine) <= 1 + twins:
        return Search(
            found=min(mine, key=lambda generation: (generation.created_at or datetime.now(UTC), generation.id))
        )
    return Search(candidates=tuple(generation.id for generation in free))


async def _listed_since(session: Session, receipt: Receipt, since: datetime) -> list[Generation]:
    """Return the generations created since a time, of the receipt's kind, through as many pages as needed."""
    kind = await _kind_of(session, receipt)
    # The list of all kinds is documented to be newest first (/api-reference/generations/list), but has one page only.
    found = {generation.id: generation for generation in (await session.client.list_generations()).items}
    for listed_kind in [kind] if kind is not None else list(Kind):
        page = 1
        while True:
            answer = await session.client.list_generations(listed_kind, page=page)
            is_new = any(generation.id not in found for generation in answer.items)
            found.update((generation.id, generation) for generation in answer.items)
            # Nor is it documented that a page says whether there are more.
            may_go_on = answer.has_more or len(answer.items) >= MAX_PER_PAGE
            if not may_go_on or _is_past(answer.items, since) or (page > 1 and not is_new):
                break
            page += 1
    return [
        generation for generation in found.values() if generation.created_at is None or generation.created_at >= since
    ]


def _is_past(page: Sequence[Generation], since: datetime) -> bool:
    """Tell whether all pages behind are older: only if this one is seen to be newest first, which nobody promises."""
    times = [generation.created_at for generation in page if generation.created_at is not None]
    is_newest_first = len(times) == len(page) and times == sorted(times, reverse=True) and len(set(times)) > 1
    return is_newest_first and times[-1] < since


async def _kind_of(session: Session, receipt: Receipt) -> Kind | None:
    try:
        return (await session.catalogue.model(receipt.request["model"])).type
    except VeogenError:
        return None


def looks_like(receipt: Receipt, generation: Generation) -> bool:
    """Tell whether a receipt could have paid for a generation: model, prompt and every option the service echoes."""
    return not differences(receipt, generation)


def differences(receipt: Receipt, generation: Generation) -> list[str]:
    """Return the fields in which a generation is not what a receipt asked for; options need not be echoed."""
    request = receipt.request
    found = [] if generation.model == request["model"] else ["model"]
    if (generation.prompt or "").strip() != request["prompt"].strip():
        found.append("prompt")
    for name in request.keys() - {"model", "prompt"}:
        echoed = generation.parameters.get(name)
        if echoed not in (None, []) and _contradicts(echoed, request[name], receipt.links.get(name)):
            found.append(name)
    return sorted(found)


def _contradicts(echoed: Any, asked: Any, links: tuple[str, ...] | None) -> bool:
    if links is None:
        return _plainly(echoed) != _plainly(asked)
    # One of the documentation's snippets shows the links as objects: what can't be read tells nothing.
    is_told = isinstance(echoed, list) and all(isinstance(url, str) for url in echoed)
    return is_told and tuple(map(without_secrets, echoed)) != links


def _plainly(value: Any) -> str:
    """Return an option as it reads however a service writes it: 8, 8.0 and "8" are the same, and so are true and 1."""
    text = str(value).strip()
    text = {"true": "1", "false": "0"}.get(text.lower(), text)
    try:
        return f"{Decimal(text).normalize():f}"
    except InvalidOperation:
        return text


def attach(receipt: Receipt) -> Generation:
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
            shown[name] = [{kind: without_secrets(text) for kind, text in item.items()} for item in value]
    return shown


def shown_links(body: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the links of a request as sent, without their queries."""
    return {name: tuple(map(without_secrets, value)) for name, value in body.items() if isinstance(value, list)}


def is_abandoned(receipt: Receipt) -> bool:
    """Tell whether a receipt may be taken over from whoever was at work on it."""
    if receipt.holder is None or receipt.holder.is_dead():
        return True
    # Nothing can have been sent yet: the note that goes before the money is refused to whoever comes too late.
    return receipt.state is State.RESERVED and receipt.holder.is_late()


def is_about(receipt: Receipt, generation: Generation) -> bool:
    """Tell whether a receipt paid for a generation."""
    return receipt.generation is not None and receipt.generation.id == generation.id


def recorded(receipt: Receipt, generation: Generation) -> Generation:
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


def _warn_if_dearer(session: Session, receipt: Receipt) -> None:
    price = receipt.price_usd
    if price is not None and receipt.quote_usd is not None and price > receipt.quote_usd:
        session.log.warning(
            "%s cost %s, more than the %s that its model object promised",
            receipt.key,
            in_usd(price),
            in_usd(receipt.quote_usd),
        )


def unknown_submission(receipt: Receipt, reason: str, candidates: Sequence[str] = ()) -> UnknownSubmission:
    """Return the error that tells a person what to do about a lost purchase."""
    adopt = f"If one of the service's generations is it: `prefect-veogen receipts adopt {receipt.key} GENERATION_ID`"
    return UnknownSubmission(
        f"A purchase of {receipt.request['model']} was sent at {receipt.sent_at:%Y-%m-%d %H:%M:%S} UTC, its answer was "
        f"lost, and {reason}",
        next_step=f"Look at the account's generations. {adopt}. If it was never made: `prefect-veogen receipts release "
        f"{receipt.key}`, then run it again. Until then nothing is bought for this request.",
        receipt=receipt.key,
        candidates=candidates,
    )
