"""Searching the service's list for the generation of a purchase in doubt. Nothing here buys, and nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from prefect_veogen.api.pages import read_pages
from prefect_veogen.ledger.transitions import State
from prefect_veogen.models import Generation, Kind
from prefect_veogen.purchase.matching import differences, looks_like

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.ledger.receipt import Receipt
    from prefect_veogen.session import Session

# The service's clock may be behind ours by so much and its generations still be recognised as newer than the receipt.
CLOCK_TOLERANCE = timedelta(minutes=2)
# A candidate may be older than the sending by so much: clocks and queues, generously.
CANDIDATE_AGE = timedelta(hours=1)
_SHARED_SPAN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Search:
    """What searching for a purchase in doubt brought."""

    found: Generation | None = None
    candidates: tuple[str, ...] = ()
    wait: bool = False
    """Whether other purchases are unsettled whose generations these may be, so that time may distinguish them."""

    @property
    def reason(self) -> str:
        """Why nothing was found, for a person."""
        if self.candidates:
            return f"{len(self.candidates)} generations could be it, and nothing distinguishes them"
        return "the service does not list it"


async def search(session: Session, receipt: Receipt) -> Search:
    """Search the service's generations for the one that a receipt in doubt paid for. Free.

    Only a generation which no receipt has claimed, and which no other unsettled receipt could mean, is taken.
    """
    since = sent_at_service(session, receipt) - CLOCK_TOLERANCE
    kind = await session.catalogue.find_kind(receipt.request.model)
    shared_since = shared_start(since)
    listed = await session.shared_reads.get(
        ("search", session.store, kind, shared_since), lambda: _list_since(session, kind, shared_since)
    )
    return await judge(session, receipt, [item for item in listed if is_since(item, since)], since)


async def find_rivals(session: Session, receipt: Receipt, since: datetime) -> list[Receipt]:
    """Return the other unsettled receipts whose generations look the same from outside."""
    family = await session.ledger.read_family(receipt, since - CANDIDATE_AGE)
    return [entry.receipt for entry in family if entry.receipt.state in (State.SENDING, State.IN_DOUBT)]


async def judge(session: Session, receipt: Receipt, listed: Sequence[Generation], since: datetime) -> Search:
    """Return which of the listed generations a receipt paid for, if that is unmistakable."""
    listed = [item for item in listed if item.id not in receipt.known_ids]
    matching = [item for item in listed if looks_like(receipt, item)]
    # The rivals before the claims: one that is settled by then has made its claim before.
    rivals = await find_rivals(session, receipt, since) if matching else []
    free = []
    for generation in matching:
        claimant = await session.ledger.find_claimant(receipt.api, generation.id)
        if claimant == receipt.key:
            return Search(found=generation)
        if claimant is None:
            free.append(generation)
    if not free:
        # A service that stores inputs at links of its own echoes those: that is no proof of absence.
        doubtful = [item.id for item in listed if receipt.links.keys() >= {*differences(receipt, item)}]
        return Search(
            candidates=tuple([name for name in doubtful if not await session.ledger.find_claimant(receipt.api, name)])
        )
    if any(rival.state is State.SENDING and not rival.is_abandoned for rival in rivals):
        return Search(candidates=tuple(generation.id for generation in free), wait=True)
    return _choose(receipt, free, rivals)


def _choose(receipt: Receipt, free: Sequence[Generation], rivals: Sequence[Receipt]) -> Search:
    strangers = [rival for rival in rivals if rival.content != receipt.content]
    twins = len(rivals) - len(strangers)
    mine = [generation for generation in free if not any(looks_like(stranger, generation) for stranger in strangers)]
    # Twins ask for the same thing, so that any of theirs will do; but what is left over was bought by another caller.
    if mine and len(mine) <= 1 + twins:
        return Search(
            found=min(mine, key=lambda generation: (generation.created_at or datetime.now(UTC), generation.id))
        )
    return Search(candidates=tuple(generation.id for generation in free))


async def _list_since(session: Session, kind: Kind | None, since: datetime) -> list[Generation]:
    """Return the generations of a kind created since a time, through as many pages as needed."""
    # The list of all kinds is documented to be newest first (/api-reference/generations/list), but has one page only.
    found = {item.id: item for item in (await session.client.list_generations()).items}
    for listed_kind in [kind] if kind is not None else list(Kind):
        listed = await read_pages(
            partial(session.client.list_generations, listed_kind),
            lambda item: item.id,
            is_past=lambda items: _is_past(items, since),
        )
        found.update((item.id, item) for item in listed)
    return [item for item in found.values() if is_since(item, since)]


def _is_past(page: Sequence[Generation], since: datetime) -> bool:
    """Tell whether all pages behind are older: only if this one is seen to be newest first, which is not documented."""
    times = [item.created_at for item in page if item.created_at is not None]
    is_newest_first = len(times) == len(page) and times == sorted(times, reverse=True) and len(set(times)) > 1
    return is_newest_first and times[-1] < since


def sent_at_service(session: Session, receipt: Receipt) -> datetime:
    """Return when a receipt was sent, by the earlier of both clocks: the service's may only widen a search."""
    offset = session.client.clock_offset or timedelta(0)
    if receipt.clock_offset_seconds is not None:
        offset = max(offset, timedelta(seconds=receipt.clock_offset_seconds))
    return (receipt.sent_at or receipt.history[0].at) - max(offset, timedelta(0))


def is_since(generation: Generation, since: datetime) -> bool:
    """Tell whether a generation may have been made since a time."""
    return generation.created_at is None or generation.created_at >= since


def shared_start(moment: datetime) -> datetime:
    """Return a moment a little earlier which many purchases have in common, so that one listing serves them all."""
    return moment - (moment - datetime.min.replace(tzinfo=UTC)) % _SHARED_SPAN
