"""Complete readings of the service's list, which prove that a purchase in doubt was never made.

The assumptions: within `VEOGEN_IN_DOUBT_SECONDS` the service has dropped, or accepted and listed, what was sent to it
(pending generations included), and a list which shows other purchases of this ledger shows all of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from prefect_veogen.api.client import MAX_PER_PAGE
from prefect_veogen.ledger.receipt import Reading, Receipt
from prefect_veogen.models import Generation, Kind
from prefect_veogen.purchase.matching import could_be
from prefect_veogen.purchase.search import (
    CANDIDATE_AGE,
    CLOCK_TOLERANCE,
    Search,
    find_rivals,
    is_since,
    judge,
    sent_at_service,
    shared_start,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.api.responses import Page
    from prefect_veogen.session import Session


_OTHER_LISTS = "the service has to list in another way"


class VoidReading(Exception):
    """A reading of the service's list that proves nothing; the text says why.

    `ended_by` is what another reading needs before it can prove anything, where time alone does not bring it about.
    """

    def __init__(self, reason: str, *, ended_by: str | None = None) -> None:
        super().__init__(reason)
        self.ended_by = ended_by


@dataclass(frozen=True, slots=True)
class _Listing:
    """Everything of a kind that the service lists since a time, and a purchase of this ledger's recognised in it."""

    generations: tuple[Generation, ...]
    reading: Reading


async def read_list(session: Session, receipt: Receipt) -> tuple[Search, Reading]:
    """Return what one complete reading of the service's list says about a purchase in doubt. Free.

    A search without candidates means that the reading shows nothing that could be the purchase: see `could_be`.

    Raises:
        VoidReading: the reading proves nothing.
        VeogenError: the service could not be asked.
    """
    kind = await session.catalogue.find_kind(receipt.request.model)
    if kind is None:
        raise VoidReading(
            "whether its model makes images or videos is not known, so that no list can be read",
            ended_by=f"the catalogue has to have {receipt.request.model} again",
        )
    private = bool(receipt.request.private)
    since = sent_at_service(session, receipt) - CANDIDATE_AGE
    shared_since = shared_start(since)
    listing = await session.shared_reads.get(
        ("reading", session.store, kind, private, shared_since),
        lambda: _read_pages(session, kind, shared_since, private=private),
    )
    listed = [item for item in listing.generations if is_since(item, since)]
    recent = sent_at_service(session, receipt) - CLOCK_TOLERANCE
    outcome = await judge(session, receipt, [item for item in listed if is_since(item, recent)], recent)
    if outcome.found is None:
        candidates = await _find_candidates(session, receipt, listed)
        outcome = Search(candidates=candidates, wait=bool(candidates and await find_rivals(session, receipt, recent)))
    return outcome, listing.reading


async def _find_candidates(session: Session, receipt: Receipt, listed: Sequence[Generation]) -> tuple[str, ...]:
    possible = [item.id for item in listed if could_be(receipt, item) and item.id not in receipt.known_ids]
    claimants = {name: await session.ledger.find_claimant(receipt.api, name) for name in possible}
    return tuple(name for name in possible if claimants[name] in (None, receipt.key))


async def _read_pages(session: Session, kind: Kind, since: datetime, *, private: bool) -> _Listing:
    """Read a kind's list from its top to `since` or to its end, and on until a purchase of ours is recognised."""
    found: dict[str, Generation] = {}
    recognised: str | None = None
    began_at: datetime | None = None
    oldest: datetime | None = None
    last_page = 0
    for page in itertools.count(1):
        listed = await session.client.list_generations(kind, page=page, uncached=True)
        if listed.at is None:
            raise VoidReading("the service does not say when it responded", ended_by=_OTHER_LISTS)
        began_at = began_at or listed.at
        last_page = max(last_page, listed.last_page or 0)
        _check_page(listed, page, last_page)
        new = [item for item in listed.items if item.id not in found]
        oldest = _oldest(new, oldest)
        found.update((item.id, item) for item in new)
        recognised = recognised or await _find_one_of_ours(session, new, private=private)
        if _is_last(listed, page, is_new=bool(new)) or (recognised and oldest is not None and oldest < since):
            break
    if recognised is None:
        which = f"{'private ' if private else ''}{kind.value}"
        raise VoidReading(
            f"the list shows no {which} that this store has bought: its silence proves nothing",
            ended_by=f"another {which} has to be bought with this store",
        )
    assert began_at is not None
    assert listed.at is not None
    reading = Reading(began_at=began_at, ended_at=listed.at, generations=len(found), recognised=recognised)
    return _Listing(tuple(found.values()), reading)


def _check_page(listed: Page[Generation], page: int, last_page: int) -> None:
    """Refuse a page that may hide a generation."""
    if listed.skipped:
        raise VoidReading(f"page {page} of the list holds records that can't be read")
    if not listed.items and 1 < page <= last_page:
        raise VoidReading(f"page {page} of the list is missing")


def _oldest(new: Sequence[Generation], before: datetime | None) -> datetime | None:
    """Return when the last item was made, if the list is newest first up to there.

    `new` leaves out what was on an earlier page already: new generations push others down to the next one.
    """
    times = [item.created_at for item in new if item.created_at is not None]
    if len(times) < len(new):
        raise VoidReading("the list does not say when its generations were made", ended_by=_OTHER_LISTS)
    ordered = times if before is None else [before, *times]
    if ordered != sorted(ordered, reverse=True):
        raise VoidReading("the list is not newest first", ended_by=_OTHER_LISTS)
    return ordered[-1] if ordered else None


def _is_last(listed: Page[Generation], page: int, *, is_new: bool) -> bool:
    if listed.last_page is not None:
        return page >= listed.last_page
    if len(listed.items) < MAX_PER_PAGE:
        return True
    if not is_new:
        raise VoidReading("the pages of the list repeat themselves", ended_by=_OTHER_LISTS)
    return False


async def _find_one_of_ours(session: Session, listed: Sequence[Generation], *, private: bool) -> str | None:
    """Return a listed generation that this ledger bought, recognised by the comparison that candidates are found by."""
    for item in listed:
        key = await session.ledger.find_claimant(session.client.base_url, item.id)
        entry = None if key is None else await session.ledger.read(key)
        if entry is None or item.id not in entry.receipt.known_ids or not could_be(entry.receipt, item):
            continue
        if not private or entry.receipt.request.private:
            return item.id
    return None
