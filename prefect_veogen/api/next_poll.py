"""Which request comes next: the poll that resolves most, of the lists first, of single generations where they fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_veogen.api.client import MAX_PER_PAGE
from prefect_veogen.api.pending import NOT_LISTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_veogen.api.pending import Pending, PendingGenerations
    from prefect_veogen.models import Kind


@dataclass(frozen=True, slots=True)
class Poll:
    """One request: a page of a list, or a single generation by its id."""

    kind: Kind | None = None
    page: int = 1
    single: str | None = None


class PollChooser:
    """Chooses polls, and leaves out the pages that failed until their backoff has passed."""

    def __init__(self, pending: PendingGenerations, clock: Callable[[], float]) -> None:
        self._pending = pending
        self._clock = clock
        self._backoff: dict[Poll, tuple[int, float]] = {}
        self._failed_in_a_row: set[Poll] = set()
        self._was_single = False

    def choose(self, due: list[Pending], now: float) -> Poll:
        """Return the poll that is expected to show most of those that are due, weighted by how long each has waited."""
        gain: dict[Poll, float] = {}
        for pending in due:
            for poll in self.polls_for(pending):
                gain[poll] = gain.get(poll, 0.0) + 0.001 + now - pending.polled_at
        # However many can only be polled singly, those that a list may show don't wait for all of them.
        pages = [poll for poll in gain if poll.single is None]
        chosen = max(pages if pages and self._was_single else gain, key=lambda poll: gain[poll])
        self._was_single = chosen.single is not None
        return chosen

    def polls_for(self, pending: Pending) -> list[Poll]:
        """Return the polls that may show this generation now."""
        pages = []
        if not pending.single_polls_left:
            pages = [page for page in self._pages_for(pending) if not self._backs_off(page)]
        return pages or [Poll(single=pending.generation.id)]

    def note_success(self, poll: Poll) -> None:
        """Use the page again, and those that failed along with it as soon as their backoff has passed."""
        self._failed_in_a_row.clear()
        self._backoff.pop(poll, None)

    def note_failed_page(self, page: Poll, pause: float) -> None:
        """Leave the page out: longer after each failure, and until some poll succeeds."""
        times_failed = self._backoff.get(page, (0, 0.0))[0] + 1
        self._backoff[page] = (times_failed, self._pending.retry_at(page.kind, times_failed, pause))
        self._failed_in_a_row.add(page)

    def note_outage(self) -> None:
        """Forget the failures of pages: the service responds to no request, so the lists are not to blame."""
        self._backoff.clear()
        self._failed_in_a_row.clear()

    def _backs_off(self, page: Poll) -> bool:
        # However long the pauses are: once the lists have failed one after the other, single polls are made.
        return page in self._failed_in_a_row or self._clock() < self._backoff.get(page, (0, 0.0))[1]

    def _pages_for(self, pending: Pending) -> list[Poll]:
        pages = []
        for kind in pending.lists:
            page = self._pending.position(pending, kind) // MAX_PER_PAGE + 1
            # Without a kind the service shows nothing beyond the first page.
            if page == 1 or (kind is not None and page < NOT_LISTED // MAX_PER_PAGE):
                pages.append(Poll(kind, page))
        return pages
