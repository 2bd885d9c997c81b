"""One poller per account serves all waits of this process, with as few requests as possible.

One list request shows up to 100 generations, so each poll is the request that resolves most: the page on which the most
overdue generations are expected. Single generations are polled where the lists don't show them, or fail. A failed poll
never fails a generation. Without a waiter, nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from prefect_veogen.api.client import MAX_PER_PAGE
from prefect_veogen.api.next_poll import PollChooser
from prefect_veogen.api.pending import NOT_LISTED, PendingGenerations
from prefect_veogen.errors import (
    AuthenticationError,
    OutputMissing,
    PersonNeeded,
    StillRunning,
    TryAgainLater,
    VeogenError,
)
from prefect_veogen.models import Generation, Kind, Status, in_usd
from prefect_veogen.process.concurrency import backoff_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_veogen.api.client import VeogenClient
    from prefect_veogen.api.next_poll import Poll
    from prefect_veogen.api.pending import Pending

_log = logging.getLogger("prefect_veogen")

DEFAULT_TIMEOUT_SECONDS = {Kind.IMAGE: 600.0, Kind.VIDEO: 1800.0, None: 1800.0}
_SERVICE_IN_TROUBLE = (TryAgainLater, AuthenticationError)
# Some eight seconds: a gateway in trouble refuses valid tokens for a moment, a revoked token is refused for ever.
_MAX_REFUSALS = 5
_MAX_NOT_FOUNDS = 5
_MAX_POLLS_FOR_AN_OUTPUT = 8
# While the lists fail, this many generations are polled by their ids per interval, however many are pending.
_SINGLES_PER_INTERVAL = 4
_MAX_SINGLES_IN_A_ROW = 16
# For one generation that these pages don't show, polling it by its id takes fewer requests than further pages.
_MAX_PAGES_FOR_ONE = 2


class Poller:
    """Polls for all waits of one account; belongs to the I/O loop."""

    def __init__(
        self,
        client: VeogenClient,
        image_poll_seconds: float,
        video_poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        poll_seconds = {Kind.IMAGE: image_poll_seconds, Kind.VIDEO: video_poll_seconds, None: image_poll_seconds}
        self._pending = PendingGenerations(poll_seconds, clock)
        self._chooser = PollChooser(self._pending, clock)
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._failures = 0
        self._refusals = 0

    def note_purchase(self, generation: Generation) -> None:
        """Record a purchase made just now: the generation is on top of the lists, and not finished yet."""
        self._pending.note_purchase(generation)

    async def wait_until_over(
        self, generation: Generation, timeout_seconds: float | None, on_change: Callable[[Generation], None]
    ) -> Generation:
        """Return the generation once it is completed (with an output) or failed.

        Raises:
            StillRunning: it was not over in time; it goes on, and waiting again costs nothing.
            OutputMissing: it is completed, but the service still states no output after several polls.
            PersonNeeded: the service knows no such generation, after several polls.
            AuthenticationError: the token is refused, again and again.
        """
        if timeout_seconds is None:
            timeout_seconds = DEFAULT_TIMEOUT_SECONDS[generation.type]
        pending = self._pending.get(generation.id) or self._pending.add(generation)
        waiter: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        entry = (waiter, on_change)
        pending.waiters.append(entry)
        self._wake.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(timeout_seconds):
                result = await waiter
        except TimeoutError:
            raise _still_running(pending.generation, generation, timeout_seconds) from None
        finally:
            pending.waiters.remove(entry)
            if not pending.waiters:
                self._pending.remove(pending)
                self._wake.set()
        # Other waiters for the same generation may know less of it, or have another receipt.
        own = {"receipt": generation.receipt, "price_usd": generation.price_usd or result.price_usd}
        return result.model_copy(update=own)

    # ------------------------------------------------------------ the loop

    async def _run(self) -> None:
        while self._pending:
            now = self._clock()
            due = self._pending.due(now)
            if not due:
                await self._sleep(self._pending.next_due_at() - now)
                continue
            poll = self._chooser.choose(due, now)
            try:
                await self._make(poll)
            except VeogenError as error:
                await self._handle_failure(poll, error)
            except Exception as error:  # whatever it is: fail the waiters instead of letting them hang
                self._fail_all(
                    VeogenError(f"Waiting broke down: {error!r}", next_step="Run it again, and report this.")
                )
                raise
            else:
                self._handle_success(poll)

    async def _sleep(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _make(self, poll: Poll) -> None:
        if poll.single is not None:
            self._update_from_single(poll.single, await self._client.get_generation(poll.single))
        else:
            await self._poll_page(poll)

    def _handle_success(self, poll: Poll) -> None:
        if self._failures:
            _log.info("The service responds again")
        self._failures = self._refusals = 0
        self._chooser.note_success(poll)

    async def _handle_failure(self, poll: Poll, error: VeogenError) -> None:
        if isinstance(error, AuthenticationError):
            self._refusals += 1
            if self._refusals >= _MAX_REFUSALS:
                self._fail_all(error)
                return
        if not self._failures:
            _log.warning("A poll of running generations failed and will be repeated: %s", error.message)
        in_trouble = isinstance(error, _SERVICE_IN_TROUBLE)
        pause = backoff_seconds(self._failures + 1) if in_trouble else 0.0
        if poll.single is None:
            self._chooser.note_failed_page(poll, pause)
        elif (pending := self._pending.get(poll.single)) is not None:
            self._handle_failed_single(pending, error, pause)
        if in_trouble:
            self._failures += 1
            await asyncio.sleep(pause)

    def _handle_failed_single(self, pending: Pending, error: VeogenError, pause: float) -> None:
        if pause and self._failures:
            # The service responds to no request at all: neither the lists nor this generation are to blame.
            self._chooser.note_outage()
        else:
            pending.times_failed += 1
        pending.polled_at = self._clock()
        pending.due_at = self._pending.retry_at(pending.generation.type, pending.times_failed, pause)
        if error.http_status == HTTPStatus.NOT_FOUND:
            pending.times_not_found += 1
            self._count_single(pending)
            if pending.times_not_found >= _MAX_NOT_FOUNDS:
                self._fail(pending, _not_found(pending.generation, error))

    # ------------------------------------------------------------ what a poll reports

    async def _poll_page(self, poll: Poll) -> None:
        expected = [pending for pending in self._pending if poll in self._chooser.polls_for(pending)]
        page = await self._client.list_generations(poll.kind, page=poll.page)
        listed = {generation.id: index for index, generation in enumerate(page.items)}
        for generation in page.items:
            pending = self._pending.get(generation.id)
            if pending is not None:
                position = (poll.page - 1) * MAX_PER_PAGE + listed[generation.id]
                self._pending.set_position(pending, poll.kind, position)
                pending.times_missing = 0
                self._update_from_list(pending, generation)
        missing = [pending for pending in expected if pending.generation.id not in listed]
        next_page_pays = page.has_more and (len(missing) > 1 or poll.page < _MAX_PAGES_FOR_ONE)
        for pending in missing:
            self._handle_missing(pending, poll, next_page_pays=next_page_pays)

    def _update_from_list(self, pending: Pending, reported: Generation) -> None:
        needs_single, due_at, polled_at = pending.single_polls_left, pending.due_at, pending.polled_at
        self._update(pending, reported)
        if needs_single:
            # The list does not postpone the poll of the generation itself, however often it is read.
            pending.due_at, pending.polled_at = due_at, polled_at

    def _handle_missing(self, pending: Pending, poll: Poll, *, next_page_pays: bool) -> None:
        if poll.kind is None and pending.generation.type is not None:
            self._pending.set_position(pending, None, NOT_LISTED)
        elif poll.kind is not None and next_page_pays:
            self._pending.set_position(pending, poll.kind, poll.page * MAX_PER_PAGE)
        else:
            # Poll it by its id for a while, then give the lists another chance.
            pending.single_polls_left = min(2**pending.times_missing, _MAX_SINGLES_IN_A_ROW)
            pending.times_missing += 1

    def _update_from_single(self, generation_id: str, reported: Generation) -> None:
        pending = self._pending.get(generation_id)
        if pending is None:
            return
        instead_of_a_list = not pending.single_polls_left
        self._count_single(pending)
        pending.confirmed_statuses.add(reported.status_text)
        self._update(pending, reported)
        if instead_of_a_list:
            # Hundreds of single polls would use up the whole rate limit.
            interval = self._pending.poll_seconds[pending.generation.type]
            slowed = len(self._pending) / _SINGLES_PER_INTERVAL * interval
            pending.due_at = max(pending.due_at, self._clock() + slowed)

    def _count_single(self, pending: Pending) -> None:
        if pending.single_polls_left:
            pending.single_polls_left -= 1
            if not pending.single_polls_left:
                for kind in pending.lists:
                    self._pending.set_position(pending, kind, 0)

    def _update(self, pending: Pending, reported: Generation) -> None:
        before, now = pending.generation, self._clock()
        # A service may spell an id differently; the record keeps the spelling its waiters use.
        known = {"id": before.id, "receipt": before.receipt, "price_usd": before.price_usd or reported.price_usd}
        known |= {"type": reported.type or before.type, "model": reported.model or before.model}
        pending.generation = reported.model_copy(update=known)
        pending.polled_at = now
        pending.times_failed = pending.times_not_found = 0
        self._pending.schedule_next(pending)
        if reported.status != before.status:
            pending.report_change()
        if reported.status is Status.FAILED or (reported.status is Status.COMPLETED and reported.output is not None):
            self._resolve(pending)
        elif reported.status is Status.COMPLETED:
            self._await_output(pending)
        elif reported.status is Status.UNRECOGNISED and reported.status_text not in pending.confirmed_statuses:
            # A list that contradicts the documentation: check once whether the generation itself does.
            pending.require_single_poll()
        elif now >= pending.recheck_at:
            pending.trust_seconds *= 2
            pending.recheck_at = now + pending.trust_seconds
            pending.require_single_poll()

    def _await_output(self, pending: Pending) -> None:
        pending.polls_without_output += 1
        pending.require_single_poll()
        if pending.polls_without_output > _MAX_POLLS_FOR_AN_OUTPUT:
            generation_id = pending.generation.id
            message = f"Generation {generation_id} is completed, but the service states no output for it"
            self._fail(pending, OutputMissing(message, generation_id=generation_id))

    # ------------------------------------------------------------ the end of a wait

    def _resolve(self, pending: Pending) -> None:
        self._pending.note_completion(pending)
        self._pending.remove(pending)
        pending.resolve()

    def _fail(self, pending: Pending, error: VeogenError) -> None:
        self._pending.remove(pending)
        pending.fail(error)

    def _fail_all(self, error: VeogenError) -> None:
        for pending in self._pending:
            self._fail(pending, error)


def _still_running(last: Generation, asked: Generation, timeout_seconds: float) -> StillRunning:
    status = last.status_text or last.status.value
    price = f", paid {in_usd(asked.price_usd)}" if asked.price_usd is not None else ""
    return StillRunning(
        f"Generation {asked.id} is still {status} after {timeout_seconds:g} s{price}", generation_id=asked.id
    )


def _not_found(generation: Generation, error: VeogenError) -> PersonNeeded:
    return PersonNeeded(
        f"The service repeatedly reports that generation {generation.id} does not exist",
        next_step="Check the id, and whether VEOGEN_API_TOKEN and VEOGEN_BASE_URL (or the block's) are those it was "
        "bought with; then run it again: it buys nothing.",
        generation_id=generation.id,
        http_status=error.http_status,
        service_text=error.service_text,
    )
