"""Pending generations: who waits for each, when its next poll is due, and where in the lists it is expected."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect_veogen.models import Generation, Kind
from prefect_veogen.process.concurrency import backoff_seconds

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping

    from prefect_veogen.errors import VeogenError

_MAX_DURATIONS = 50
_MAX_PURCHASES = 1000
# Of the shortest known duration of a model: a poll much earlier than that is a wasted request.
_EARLIEST_SHARE = 0.8
# With more than this pending of one kind, polling all of them takes several requests.
_MANY = 60
# A list may go on showing a status that is out of date. Hardly any generation takes longer than this many polls
# (/api-reference/generations/get: images 15 s, videos 120 s); then it is polled by its id, again after twice the time.
_POLLS_TRUSTED = 50
# A poll that keeps failing is repeated after twice as many intervals each time, up to this many.
_MAX_BACKOFF_POLLS = 32
NOT_LISTED = 10**9
"""The position of a generation in a list that does not show it."""


@dataclass(eq=False)
class Pending:
    """One generation that callers wait for; times are those of the poller's clock, in seconds."""

    generation: Generation
    bought_at: float | None
    due_at: float
    polled_at: float
    recheck_at: float
    trust_seconds: float
    position: dict[Kind | None, int] = field(default_factory=dict)
    position_as_of: dict[Kind | None, int] = field(default_factory=dict)
    single_polls_left: int = 0
    times_missing: int = 0
    times_failed: int = 0
    times_not_found: int = 0
    polls_without_output: int = 0
    confirmed_statuses: set[str | None] = field(default_factory=set)
    waiters: list[tuple[asyncio.Future[Generation], Callable[[Generation], None]]] = field(default_factory=list)

    @property
    def lists(self) -> tuple[Kind | None, ...]:
        """The lists that may show it: that of all kinds, and that of its kind."""
        return (None,) if self.generation.type is None else (None, self.generation.type)

    def require_single_poll(self) -> None:
        """Have it polled by its id at least once more, whatever the lists show."""
        self.single_polls_left = max(self.single_polls_left, 1)

    def report_change(self) -> None:
        """Call every waiter's callback with the generation as it is now."""
        for _, on_change in self.waiters:
            on_change(self.generation)

    def resolve(self) -> None:
        """Give every waiter the generation."""
        for waiter, _ in self.waiters:
            if not waiter.done():
                waiter.set_result(self.generation)

    def fail(self, error: VeogenError) -> None:
        """Give every waiter the error."""
        for waiter, _ in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


class PendingGenerations:
    """All pending generations of one account, with what is known of purchases and durations."""

    def __init__(self, poll_seconds: Mapping[Kind | None, float], clock: Callable[[], float]) -> None:
        self.poll_seconds = poll_seconds
        self._clock = clock
        self._by_id: dict[str, Pending] = {}
        self._bought_at: dict[str, float] = {}
        self._bought: Counter[Kind | None] = Counter()
        self._durations: dict[str | None, deque[float]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Pending]:
        return iter(list(self._by_id.values()))

    def get(self, generation_id: str) -> Pending | None:
        """Return the record of a generation, `None` if no caller waits for it."""
        return self._by_id.get(generation_id)

    def note_purchase(self, generation: Generation) -> None:
        """Record a purchase: the generation is on top of the lists now, and every other one is further down."""
        self._bought_at[generation.id] = self._clock()
        if len(self._bought_at) > _MAX_PURCHASES:  # no caller in this process waits for the oldest
            del self._bought_at[next(iter(self._bought_at))]
        self._bought[None] += 1
        if generation.type is not None:
            self._bought[generation.type] += 1

    def add(self, generation: Generation) -> Pending:
        """Add a generation and schedule its first poll."""
        now = self._clock()
        bought_at = self._bought_at.pop(generation.id, None)
        due_at = now
        if bought_at is not None:
            due_at = self._next_tick(max(now, bought_at + self._earliest_seconds(generation)), generation.type)
        trust_seconds = self._longest_usual_seconds(generation)
        pending = Pending(
            generation,
            bought_at,
            due_at,
            polled_at=bought_at or now,
            recheck_at=now + trust_seconds,
            trust_seconds=trust_seconds,
        )
        for kind in pending.lists:
            self.set_position(pending, kind, 0)
        self._by_id[generation.id] = pending
        return pending

    def remove(self, pending: Pending) -> None:
        """Remove a record, but not another one that was added for the same generation since."""
        if self._by_id.get(pending.generation.id) is pending:
            del self._by_id[pending.generation.id]

    # ------------------------------------------------------------ when a poll is due

    def due(self, now: float) -> list[Pending]:
        """Return those whose poll is due."""
        return [pending for pending in self if pending.due_at <= now]

    def next_due_at(self) -> float:
        """Return when the next poll is due; there must be a pending generation."""
        return min(pending.due_at for pending in self)

    def schedule_next(self, pending: Pending) -> None:
        """Schedule the poll after a successful one."""
        kind = pending.generation.type
        pending.due_at = self._next_tick(self._clock() + self.poll_seconds[kind] / 2, kind)

    def retry_at(self, kind: Kind | None, times_failed: int, pause: float) -> float:
        """Return when a poll is repeated that has failed that many times, after a pause of all polls."""
        poll = self.poll_seconds[kind]
        return self._clock() + pause + backoff_seconds(times_failed + 1, first=poll, longest=poll * _MAX_BACKOFF_POLLS)

    def note_completion(self, pending: Pending) -> None:
        """Record how long a generation of its model took, if its purchase is known."""
        if pending.bought_at is not None:
            durations = self._durations.setdefault(pending.generation.model, deque(maxlen=_MAX_DURATIONS))
            durations.append(self._clock() - pending.bought_at)

    def _earliest_seconds(self, generation: Generation) -> float:
        durations = self._durations.get(generation.model)
        poll = self.poll_seconds[generation.type]
        return max(poll, min(durations) * _EARLIEST_SHARE) if durations else poll

    def _longest_usual_seconds(self, generation: Generation) -> float:
        durations = self._durations.get(generation.model)
        return max(self.poll_seconds[generation.type] * _POLLS_TRUSTED, 2 * max(durations) if durations else 0.0)

    def _next_tick(self, moment: float, kind: Kind | None) -> float:
        """Return the next time for polling this kind: the same for all of them, so that one request serves them."""
        poll = self.poll_seconds[kind]
        if sum(pending.generation.type is kind for pending in self) > _MANY:
            # The slower interval of the documentation (/api-reference/generations/get: videos every 5 to 10 seconds).
            poll *= 2
        return math.ceil(moment / poll) * poll

    # ------------------------------------------------------------ where the lists show it

    def position(self, pending: Pending, kind: Kind | None) -> int:
        """Return how many generations are newer in a list, as far as is known."""
        if kind not in pending.position:
            return 0
        return pending.position[kind] + self._bought[kind] - pending.position_as_of[kind]

    def set_position(self, pending: Pending, kind: Kind | None, position: int) -> None:
        """Record how many generations are newer in a list by now."""
        pending.position[kind] = position
        pending.position_as_of[kind] = self._bought[kind]
