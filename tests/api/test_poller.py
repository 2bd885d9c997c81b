"""One poller serves all waits with few requests, and a failed poll never fails a generation."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from pydantic import SecretStr

from prefect_veogen import Generation
from prefect_veogen.api.client import VeogenClient
from prefect_veogen.api.outcome import Accepted
from prefect_veogen.api.poller import Poller
from prefect_veogen.errors import AuthenticationError, OutputMissing, PersonNeeded, StillRunning
from prefect_veogen.models import Kind, Status
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from tests.support.servers import Reply, Request, relayed, serving

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
VIDEO = {"model": "veo-3.1-fast", "prompt": "waves"}
LONG = 5000.0
POLL = 0.05
SLOW_POLL = 0.3
"""For what a busy machine must have done within some polls."""


class Account:
    """A poller on a sandbox whose clock only moves by `advance`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.client = VeogenClient(SecretStr(sandbox.token), sandbox.base_url, requests_per_minute=60_000)
        self.poller = Poller(self.client, POLL, POLL)
        self.changes: list[str | None] = []

    async def buy(self, body: dict[str, Any], *, known: bool = True) -> Generation:
        """Buy; if `known`, note it with the poller, as a purchase of this process does."""
        submission = await self.client.create_generation(body)
        assert isinstance(submission, Accepted)
        generation = submission.generation.model_copy(update={"receipt": "v1-key"})
        if known:
            await on_io(self._note(generation))
        return generation

    async def _note(self, generation: Generation) -> None:
        self.poller.note_purchase(generation)

    async def wait(self, generation: Generation, timeout_seconds: float | None = 20) -> Generation:
        return await on_io(self._wait(generation, timeout_seconds))

    async def _wait(self, generation: Generation, timeout_seconds: float | None) -> Generation:
        return await self.poller.wait_until_over(
            generation, timeout_seconds, lambda reported: self.changes.append(reported.status_text)
        )

    def polls(self) -> Counter[str]:
        """Count the polls of lists by their query, and of single generations."""
        requests = [request for request in self.sandbox.requests if request.method == "GET"]
        return Counter(request.query if request.path.endswith("/generations") else "single" for request in requests)

    async def after_polls(self, number: int) -> None:
        """Return when that many more polls were made."""
        wanted = self.polls().total() + number
        assert await soon(lambda: self.polls().total() >= wanted)

    async def idle(self) -> bool:
        """Return whether the poller soon has nothing pending and runs nothing."""
        return await soon(
            lambda: not self.poller._pending and (self.poller._runner is None or self.poller._runner.done())
        )


async def soon(happened: Callable[[], bool]) -> bool:
    """Return whether something becomes true within some seconds."""
    for _ in range(500):
        if happened():
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.fixture
def account() -> Iterator[Account]:
    with Sandbox(speed=0, tiny_media=True, requests_per_minute=None) as sandbox:
        yield Account(sandbox)


async def finished(account: Account, *generations: Generation) -> list[Generation]:
    """Wait for all, and let them finish after the first poll."""
    waits = [asyncio.create_task(account.wait(generation)) for generation in generations]
    await account.after_polls(1)
    account.sandbox.advance(LONG)
    return await asyncio.gather(*waits)


# ---------------------------------------------------------------- few requests


async def test_hundreds_of_waits_in_many_threads_and_loops_cost_a_few_requests(account: Account) -> None:
    account.poller = Poller(account.client, SLOW_POLL, SLOW_POLL)
    made = await asyncio.gather(*(account.buy(IMAGE if number % 2 else VIDEO) for number in range(240)))
    results: list[Generation] = []

    async def wait_for(some: list[Generation]) -> None:
        results.extend(await asyncio.gather(*(account.wait(generation) for generation in some)))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(wait_for(made[n::6]))) for n in range(6)]
    for thread in threads:
        thread.start()
    assert await soon(lambda: len(account.poller._pending) == 240)
    account.sandbox.advance(LONG)
    before = account.polls().total()
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    assert {generation.status for generation in results} == {Status.COMPLETED}
    assert {generation.id for generation in results} == {generation.id for generation in made}
    assert account.polls().total() - before <= 10
    assert account.polls()["single"] == 0


async def test_one_wait_makes_one_request_per_poll_interval(account: Account) -> None:
    wait = asyncio.create_task(account.wait(await account.buy(VIDEO)))
    started = time.monotonic()
    await account.after_polls(6)
    assert time.monotonic() - started > 4 * POLL
    account.sandbox.advance(LONG)
    assert (await wait).status is Status.COMPLETED


async def test_no_poll_is_made_before_any_generation_of_the_model_was_ever_done(account: Account) -> None:
    first = asyncio.create_task(account.wait(await account.buy(VIDEO)))
    await asyncio.sleep(2.0)
    account.sandbox.advance(LONG)
    await first
    polls = account.polls().total()
    second = asyncio.create_task(account.wait(await account.buy(VIDEO)))
    await asyncio.sleep(0.3)
    assert account.polls().total() == polls
    account.sandbox.advance(LONG)
    assert (await second).status is Status.COMPLETED


async def test_generations_behind_more_than_a_page_of_newer_ones_are_found_in_the_list(account: Account) -> None:
    old = [await account.buy(VIDEO) for _ in range(5)]
    await asyncio.gather(*(account.buy(VIDEO, known=False) for _ in range(230)))
    done = await finished(account, *old)
    assert {(generation.id, generation.status) for generation in done} == {(it.id, Status.COMPLETED) for it in old}
    assert account.polls()["per_page=100&type=video&page=3"] >= 1
    assert account.polls()["single"] == 0


async def test_the_page_is_known_beforehand_where_this_process_bought_the_newer_ones(account: Account) -> None:
    account.poller = Poller(account.client, SLOW_POLL, SLOW_POLL)
    old = await account.buy(VIDEO)
    waiting = asyncio.create_task(account.wait(old))
    await account.after_polls(1)
    await asyncio.gather(*(account.buy(VIDEO) for _ in range(120)))
    account.sandbox.advance(LONG)
    assert (await waiting).status is Status.COMPLETED
    assert account.polls()["single"] == 0
    assert account.polls()["per_page=100&type=video&page=2"] >= 1


async def test_a_generation_known_by_its_id_alone_is_found(account: Account) -> None:
    bought = await account.buy(VIDEO, known=False)
    [done] = await finished(account, Generation(id=bought.id))
    assert (done.status, done.model, done.type) == (Status.COMPLETED, "veo-3.1-fast", Kind.VIDEO)
    assert done.output is not None


# ---------------------------------------------------------------- what a wait ends with


async def test_what_is_known_of_a_purchase_is_not_lost_on_the_way(account: Account) -> None:
    bought = await account.buy({**VIDEO, "resolution": "4k"})
    [done] = await finished(account, bought)
    assert (done.price_usd, done.receipt) == (Decimal("0.9"), "v1-key")
    assert done.output is not None
    assert done.output.url.startswith(account.sandbox.media_url)


async def test_a_failed_generation_is_returned_with_the_services_reason(account: Account) -> None:
    account.sandbox.fault("failed", reason="GPU on fire")
    [done] = await finished(account, await account.buy(IMAGE))
    assert (done.status, done.error, done.output) == (Status.FAILED, "GPU on fire", None)


async def test_every_change_of_status_is_reported_once() -> None:
    with Sandbox(speed=100, tiny_media=True, image_seconds=60.0) as sandbox:
        account = Account(sandbox)
        await account.wait(await account.buy(IMAGE))
    assert account.changes in (["processing", "completed"], ["completed"])


async def test_a_timeout_reports_what_still_runs_and_was_paid(account: Account) -> None:
    bought = await account.buy(VIDEO)
    started = time.monotonic()
    with pytest.raises(StillRunning, match=r"still pending after 0\.3 s, paid \$0\.3") as caught:
        await account.wait(bought, 0.3)
    assert 0.3 <= time.monotonic() - started < 30
    assert caught.value.generation_id == bought.id
    assert await account.idle()


async def test_a_wait_that_timed_out_can_be_repeated(account: Account) -> None:
    account.sandbox.fault("stuck")
    bought = await account.buy(VIDEO)
    for _ in range(2):
        with pytest.raises(StillRunning):
            await account.wait(bought, 0.2)
    assert len(account.sandbox.bill) == 1


async def test_completed_without_an_output_is_polled_again(account: Account) -> None:
    account.sandbox.fault("completed-without-output", times=3)
    [done] = await finished(account, await account.buy(IMAGE))
    assert done.output is not None


async def test_an_output_that_never_appears_is_an_error(account: Account) -> None:
    account.sandbox.fault("completed-without-output", times=None)
    bought = await account.buy(IMAGE)
    with pytest.raises(OutputMissing) as caught:
        await finished(account, bought)
    assert caught.value.generation_id == bought.id
    assert await account.idle()


# ---------------------------------------------------------------- lists that can't be trusted


async def test_a_generation_that_the_list_hides_is_polled_by_its_id(account: Account) -> None:
    account.sandbox.fault("hidden-from-list", times=None, prompt="waves")
    hidden, shown = await account.buy(VIDEO), await account.buy(IMAGE)
    done = await finished(account, hidden, shown)
    assert {generation.status for generation in done} == {Status.COMPLETED}
    assert account.polls()["single"] >= 1


async def test_an_undocumented_status_ends_nothing(account: Account) -> None:
    account.sandbox.fault("unknown-status", times=8)
    [done] = await finished(account, await account.buy(VIDEO))
    assert done.status is Status.COMPLETED
    assert "awaiting_review" in account.changes


async def test_an_undocumented_status_of_many_is_confirmed_once_and_not_polled_one_by_one(account: Account) -> None:
    account.sandbox.fault("unknown-status", times=None, status="queued")
    made = await asyncio.gather(*(account.buy(IMAGE) for _ in range(15)))
    waits = await asyncio.gather(*(account.wait(generation, 2) for generation in made), return_exceptions=True)
    assert {str(end).split(" ")[4] for end in waits} == {"queued"}
    assert account.polls()["single"] == 15
    assert account.polls().total() >= 20


def responding(generations: dict[str, dict[str, Any]], listed: dict[str, str]) -> Callable[[Request], Reply]:
    """Return an API whose list shows other statuses than the generations themselves."""

    def respond(request: Request) -> Reply:
        if "?" in request.path:
            data: Any = [{**generations[name], "status": status} for name, status in listed.items()]
        else:
            data = generations[request.path.rpartition("/")[2]]
        return Reply(body=json.dumps({"data": data}).encode())

    return respond


@pytest.mark.parametrize("said", ["cancelled", "queued", "", "COMPLETED"])
async def test_a_list_that_contradicts_the_generation_itself_is_not_trusted(said: str) -> None:
    done = {"id": "g", "status": "completed", "type": "video", "output": {"url": "https://media.example/g.mp4"}}
    with serving(responding({"g": done}, {"g": said})) as origin:
        client = VeogenClient(SecretStr("t"), f"{origin}/api/v1", requests_per_minute=60_000)
        poller = Poller(client, POLL, POLL)
        ended = await on_io(poller.wait_until_over(Generation(id="g"), 5, lambda _: None))
    assert (ended.status, ended.output is not None) == (Status.COMPLETED, True)


async def test_a_list_that_stays_out_of_date_is_not_trusted_for_ever() -> None:
    done = {"id": "g", "status": "completed", "type": "video", "output": {"url": "https://media.example/g.mp4"}}
    with serving(responding({"g": done}, {"g": "processing"})) as origin:
        client = VeogenClient(SecretStr("t"), f"{origin}/api/v1", requests_per_minute=60_000)
        ended = await on_io(Poller(client, 0.01, 0.01).wait_until_over(Generation(id="g"), 5, lambda _: None))
    assert ended.status is Status.COMPLETED


async def test_one_hidden_generation_does_not_cost_a_walk_through_a_long_history() -> None:
    requests: list[str] = []

    def respond(request: Request) -> Reply:
        requests.append(request.path)
        if "?" not in request.path:
            over = sum("?" not in path for path in requests) > 4
            data: Any = {"id": "g", "type": "video", "status": "completed" if over else "processing"}
            return Reply(body=json.dumps({"data": {**data, "output": {"url": "https://media.example/g.mp4"}}}).encode())
        page = int(dict(parse_qsl(urlsplit(request.path).query)).get("page", 1))
        others = [{"id": f"{page}-{number}", "status": "completed", "type": "video"} for number in range(100)]
        meta = {"current_page": page, "last_page": 50, "per_page": 100, "total": 5000}
        return Reply(body=json.dumps({"data": others, "meta": meta}).encode())

    with serving(respond) as origin:
        client = VeogenClient(SecretStr("t"), f"{origin}/api/v1", requests_per_minute=60_000)
        generation = Generation(id="g", type=Kind.VIDEO)
        ended = await on_io(Poller(client, POLL, POLL).wait_until_over(generation, 20, lambda _: None))
    assert ended.status is Status.COMPLETED
    assert sum("?" in path for path in requests) <= 12


# ---------------------------------------------------------------- polls that fail


@pytest.mark.parametrize(
    "fault", ["look-500", "look-dropped", "look-garbled", "look-html", "look-401", "look-404", "list-500", "look-429"]
)
async def test_a_failed_poll_fails_no_generation(fault: str, account: Account) -> None:
    parameters: dict[str, Any] = {"retry_after": 0} if fault == "look-429" else {}
    account.sandbox.fault(fault, **parameters)
    made = [await account.buy(IMAGE), await account.buy(VIDEO)]
    done = await finished(account, *made)
    assert [generation.status for generation in done] == [Status.COMPLETED] * 2


async def test_while_the_list_fails_the_generations_are_polled_by_their_ids(account: Account) -> None:
    account.sandbox.fault("list-500", times=None)
    done = await finished(account, await account.buy(VIDEO), await account.buy(VIDEO))
    assert [generation.status for generation in done] == [Status.COMPLETED] * 2
    assert account.polls()["single"] >= 2


async def test_a_list_that_failed_is_used_again(account: Account) -> None:
    account.sandbox.fault("list-500", times=2)
    wait = asyncio.create_task(account.wait(await account.buy(VIDEO)))
    assert await soon(lambda: account.polls()["single"] >= 1)
    await account.after_polls(5)
    singles = account.polls()["single"]
    await account.after_polls(8)
    assert account.polls()["single"] <= singles + 1  # a status unchanged for so long may be checked once
    account.sandbox.advance(LONG)
    assert (await wait).status is Status.COMPLETED


async def test_a_failing_list_is_polled_rarely_and_causes_no_storm_of_single_polls(account: Account) -> None:
    account.poller = Poller(account.client, 0.2, 0.2)
    account.sandbox.fault("list-500", times=None)
    made = await asyncio.gather(*(account.buy(VIDEO) for _ in range(20)))
    waits = [asyncio.create_task(account.wait(generation)) for generation in made]
    assert await soon(lambda: account.polls()["single"] >= 20)
    before, began = account.polls(), time.monotonic()
    await asyncio.sleep(3)
    after, seconds = account.polls(), time.monotonic() - began
    # One poll of each per interval would be 100 a second.
    assert after["single"] - before["single"] <= 27 * seconds
    assert (after - before).total() - (after - before)["single"] <= 4
    account.sandbox.advance(LONG)
    assert {generation.status for generation in await asyncio.gather(*waits)} == {Status.COMPLETED}


@pytest.mark.parametrize("times", [1, 4])
async def test_a_token_refused_for_a_moment_may_be_the_services_mistake(account: Account, times: int) -> None:
    account.sandbox.fault("look-401", times=times)
    (done,) = await finished(account, await account.buy(VIDEO))
    assert done.status is Status.COMPLETED


async def test_a_token_refused_again_and_again_ends_all_waits(account: Account) -> None:
    account.sandbox.fault("look-401", times=5)
    made = [await account.buy(VIDEO), await account.buy(IMAGE)]
    ends = await asyncio.gather(*(account.wait(generation) for generation in made), return_exceptions=True)
    assert [type(end) for end in ends] == [AuthenticationError] * 2
    assert account.polls().total() == 5
    assert await account.idle()
    account.sandbox.advance(LONG)
    assert (await account.wait(made[0])).status is Status.COMPLETED


async def test_an_id_in_another_spelling_than_the_services_is_found(account: Account) -> None:
    bought = await account.buy(VIDEO)
    otherwise = bought.model_copy(update={"id": bought.id.upper()})

    def relay(request: Request) -> Reply:
        lower = replace(request, path=request.path.replace(otherwise.id, bought.id))
        return relayed(account.sandbox.base_url, lower)

    with serving(relay) as origin:
        account.client.base_url = f"{origin}/api/v1"
        (done,) = await finished(account, otherwise)
    assert (done.status, done.id) == (Status.COMPLETED, otherwise.id)
    assert await account.idle()


async def test_each_wait_gets_its_own_receipt_and_price_back(account: Account) -> None:
    bought = await account.buy(VIDEO)
    without_receipt = Generation(id=bought.id)
    reported, mine = await finished(account, without_receipt, bought)
    assert (reported.receipt, mine.receipt) == (None, "v1-key")
    assert mine.price_usd == bought.price_usd is not None


async def test_unknown_ids_do_not_delay_other_waits(account: Account) -> None:
    account.poller = Poller(account.client, SLOW_POLL, SLOW_POLL)
    unknown = [asyncio.create_task(account.wait(Generation(id=f"no-such-id-{n}"))) for n in range(20)]
    await account.after_polls(10)
    [done] = await finished(account, await account.buy(IMAGE))
    assert done.status is Status.COMPLETED
    assert not any(wait.done() for wait in unknown), "they are asked for again, for some ten times as long"
    for wait in unknown:
        wait.cancel()


async def test_an_unknown_id_needs_manual_review_in_the_end(account: Account) -> None:
    started = time.monotonic()
    with pytest.raises(PersonNeeded, match=r"generation no-such-id does not exist(?s:.*)VEOGEN_BASE_URL") as caught:
        await account.wait(Generation(id="no-such-id"))
    assert (caught.value.generation_id, caught.value.http_status) == ("no-such-id", 404)
    assert time.monotonic() - started > 20 * POLL
    assert account.polls()["single"] == 5
    assert await account.idle()


async def test_an_id_that_is_unknown_for_a_moment_is_waited_for(account: Account) -> None:
    account.sandbox.fault("hidden-from-list", times=None)
    account.sandbox.fault("look-404", times=3)
    [done] = await finished(account, await account.buy(VIDEO))
    assert done.status is Status.COMPLETED
    assert account.polls()["single"] >= 4


# ---------------------------------------------------------------- waiters


async def test_without_a_waiter_no_request_is_made(account: Account) -> None:
    await account.buy(VIDEO)
    await asyncio.sleep(5 * POLL)
    assert account.polls().total() == 0
    [_] = await finished(account, await account.buy(VIDEO))
    assert await account.idle()
    polls = account.polls()
    await asyncio.sleep(5 * POLL)
    assert account.polls() == polls


async def test_what_was_bought_and_is_never_waited_for_is_forgotten(account: Account) -> None:
    for number in range(3000):
        account.poller.note_purchase(Generation(id=f"generation-{number}", type=Kind.IMAGE))
    assert len(account.poller._pending._bought_at) <= 1000
    assert "generation-2999" in account.poller._pending._bought_at


async def test_a_cancelled_wait_leaves_nothing_behind(account: Account) -> None:
    waits = [asyncio.create_task(account.wait(await account.buy(VIDEO))) for _ in range(5)]
    await account.after_polls(1)
    for wait in waits:
        wait.cancel()
    assert await account.idle()
    polls = account.polls()
    await asyncio.sleep(5 * POLL)
    assert account.polls() == polls


async def test_a_cancelled_wait_does_not_keep_the_poller_until_its_next_poll(account: Account) -> None:
    account.poller = Poller(account.client, 3600, 3600)
    wait = asyncio.create_task(account.wait(await account.buy(VIDEO)))
    await asyncio.sleep(0.1)
    wait.cancel()
    assert await account.idle()


async def test_all_waiters_for_the_same_generation_get_it(account: Account) -> None:
    bought = await account.buy(VIDEO)
    impatient = asyncio.create_task(account.wait(bought, 0.2))
    leaving = asyncio.create_task(account.wait(bought))
    await account.after_polls(2)
    leaving.cancel()
    done = await finished(account, bought, bought, bought)
    assert {generation.status for generation in done} == {Status.COMPLETED}
    await asyncio.wait([impatient])
    assert account.polls()["single"] == 0


async def test_a_wait_that_begins_as_another_ends_is_resolved_too(account: Account) -> None:
    # The end of the first wait must not remove the second one's record.
    bought = await account.buy(VIDEO)
    later: list[asyncio.Task[Generation]] = []

    async def story() -> list[Generation]:
        def begin_again(reported: Generation) -> None:
            if reported.status is Status.COMPLETED and not later:
                again = account.poller.wait_until_over(bought, 5, lambda _: None)
                later.append(asyncio.get_running_loop().create_task(again))

        first = await account.poller.wait_until_over(bought, 5, begin_again)
        return [first, await later[0]]

    account.sandbox.advance(LONG)
    done = await on_io(story())
    assert [generation.status for generation in done] == [Status.COMPLETED] * 2
    assert await account.idle()


async def test_a_poll_for_a_cancelled_waiter_serves_the_next_one(account: Account) -> None:
    account.sandbox.fault("hidden-from-list", times=2)
    slow = account.sandbox.fault("look-slow", seconds=0.5, after=2)
    bought = await account.buy(VIDEO)
    first = asyncio.create_task(account.wait(bought))
    assert await soon(lambda: slow.applied == 1)
    first.cancel()
    second = asyncio.create_task(account.wait(bought))
    await account.after_polls(6)
    account.sandbox.advance(LONG)
    assert (await second).status is Status.COMPLETED
    assert account.polls()["single"] == 1


async def test_polls_go_on_while_purchases_queue_for_the_rate_limiter() -> None:
    with Sandbox(speed=60, requests_per_minute=120, tiny_media=True, image_seconds=10.0) as sandbox:
        account = Account(sandbox)
        account.client = VeogenClient(SecretStr(sandbox.token), sandbox.base_url, requests_per_minute=120 * 60)
        account.poller = Poller(account.client, POLL, POLL)
        first = await account.buy(IMAGE)

        async def buy_more() -> None:
            await account.client.acquire_for_purchase()
            await account.buy(IMAGE)

        queue = [asyncio.create_task(buy_more()) for _ in range(240)]
        assert (await account.wait(first, 10)).status is Status.COMPLETED
        assert not all(task.done() for task in queue)
        for task in queue:
            task.cancel()
        await asyncio.gather(*queue, return_exceptions=True)
