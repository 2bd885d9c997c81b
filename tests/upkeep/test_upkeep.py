"""Looking after the ledger: what dead runs left is finished, live work is left alone, and the books add up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import State as FlowState
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled

from flows.sweep import sweep as sweep_flow
from prefect_veogen import GenerationRequest, submit_generation, wait_for_generation
from prefect_veogen.api.outcome import Accepted
from prefect_veogen.errors import ConfigurationError, GenerationFailed, UnknownSubmission, VeogenError
from prefect_veogen.ledger import Receipt, State
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import plain_name
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import Session, open_session
from prefect_veogen.tasks.maintenance import report_unfinished
from prefect_veogen.upkeep.statement import Reconciliation
from prefect_veogen.upkeep.sweep import Swept
from tests.support.buyers import bought_and_stored
from tests.support.receipts import left_behind
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.upkeep import adopt, all_receipts, reconcile, release, sweep

ROOT = Path(__file__).parents[2]
CAP = Cap("autumn", Decimal(1))
CENTS = Decimal("0.02")
LONG_AGO = timedelta(hours=2)

DYING = """
import asyncio
from tests.upkeep.test_upkeep import buy_everything
asyncio.run(buy_everything(["bought", "on its way", "asked to wait"]))
"""


def picture(prompt: str = "a lighthouse", **fields: Any) -> GenerationRequest:
    return GenerationRequest(model="gpt-4o-image", prompt=prompt, **fields)


def capped() -> Session:
    return open_session(caps=(CAP,))


async def bought(request: GenerationRequest) -> str:
    """Buy without waiting, as a run that is killed then does, and return the receipt's key."""
    session = capped()
    await on_io(buy(session, request))
    return request.receipt_key(session.client.base_url)


async def buy_everything(prompts: list[str]) -> None:
    async def all_at_once() -> None:
        buying = []
        for prompt in prompts:
            buying.append(asyncio.create_task(buy(capped(), picture(prompt))))
            await asyncio.sleep(0.1)  # in this order
        await asyncio.gather(*buying)

    await on_io(all_at_once())


def was_asked_to_wait(sandbox: Sandbox) -> bool:
    return any(record.status == 429 for record in sandbox.requests)


def dying() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DYING], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


async def lost(sandbox: Sandbox, prompt: str = "lost", *, charged: bool) -> str:
    """Lose the response to a purchase, leave the receipt unknown, and return its key."""
    sandbox.fault("lost-answer-after-charge" if charged else "lost-answer-before-charge", prompt=prompt)
    if charged:
        sandbox.fault("hidden-from-list", times=None, prompt=prompt)
    session = capped()
    with pytest.raises(UnknownSubmission):
        await on_io(buy(session, picture(prompt)))
    sandbox.clear_faults()
    return picture(prompt).receipt_key(session.client.base_url)


async def receipt(key: str) -> Receipt:
    entry = await on_io(open_session().ledger.read(key))
    assert entry is not None
    return entry.receipt


async def states() -> dict[str, State]:
    return {item.request.prompt: item.state for item in (await all_receipts(open_session())).readable}


async def committed() -> Decimal:
    return (await on_io(open_session().budgets.account(CAP.budget))).committed_usd


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    give_up_at = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < give_up_at, "it never came about"
        await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def _impatient(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")


# ---------------------------------------------------------------- sweep


@pytest.mark.slow
@pytest.mark.kill
async def test_a_sweep_finishes_what_a_killed_process_left(sandbox: Sandbox, store_url: str) -> None:
    sandbox.fault("slow-answer", prompt="on its way", seconds=300.0)
    sandbox.fault("429", prompt="asked to wait", retry_after=300)
    process = dying()
    try:
        wanted = {"bought": State.BOUGHT, "on its way": State.SENDING, "asked to wait": State.RESERVED}

        async def has_come_so_far() -> bool:
            assert process.poll() is None
            return was_asked_to_wait(sandbox) and await states() == wanted and len(sandbox.bill) == 2

        await until(has_come_so_far)
    finally:
        process.kill()
        process.wait()
    assert await committed() == 3 * CENTS
    swept = await sweep(open_session())
    assert {item.before: item.after for item in swept} == {
        State.BOUGHT: State.STORED,
        State.SENDING: State.STORED,
        State.RESERVED: State.RELEASED,
    }
    assert (len(sandbox.bill), await committed()) == (2, 2 * CENTS)
    assert await sweep(open_session()) == []


async def test_a_sweep_that_may_not_list_uploads_finishes_the_rest(
    sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(request: Request) -> Reply:
        denied = b"<Error><Code>AccessDenied</Code><Message>No</Message></Error>"
        return (
            Reply(403, body=denied)
            if request.method == "GET" and "?uploads" in request.path
            else relayed(s3_server, request)
        )

    with serving(forbidden) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        session = open_session()
        await on_io(buy(session, GenerationRequest(model="gpt-4o-image", prompt="left behind")))
        sandbox.advance(600)
        assert [(swept.before, swept.after) for swept in await sweep(session)] == [(State.BOUGHT, State.STORED)]


async def test_a_sweep_leaves_live_purchases_alone(sandbox: Sandbox) -> None:
    sandbox.fault("slow-answer", prompt="on its way", seconds=2.0)
    sandbox.fault("429", prompt="asked to wait", retry_after=2)
    buying = asyncio.create_task(buy_everything(["on its way", "asked to wait"]))

    async def is_under_way() -> bool:
        wanted = {"on its way": State.SENDING, "asked to wait": State.RESERVED}
        return was_asked_to_wait(sandbox) and await states() == wanted

    await until(is_under_way)
    assert await sweep(open_session()) == []
    await buying
    assert set((await states()).values()) == {State.BOUGHT}
    assert (len(sandbox.bill), await committed()) == (2, 2 * CENTS)


async def test_a_sweep_beside_a_flow_at_work_buys_and_loses_nothing(sandbox: Sandbox) -> None:
    requests = [picture(f"number {number}") for number in range(20)]
    working = asyncio.gather(*(on_io(bought_and_stored(request)) for request in requests))
    while not working.done():
        await sweep(open_session())
    assert len({asset.uri for asset in await working}) == len(sandbox.bill) == 20
    assert set((await states()).values()) == {State.STORED}


async def test_a_stored_asset_that_is_gone_is_fetched_again(sandbox: Sandbox, store_url: str) -> None:
    asset = await on_io(bought_and_stored(picture()))
    store = open_session().store
    key = store.key(asset.uri)
    assert key is not None
    await on_io(store.put(key, b"overwritten", "image/png"))
    (swept,) = await sweep(open_session())
    assert (swept.before, swept.after, swept.note) == (State.STORED, State.STORED, f"stored {asset.uri}")
    assert (await on_io(store.sha256(key)), len(sandbox.bill)) == (asset.sha256, 1)


async def test_what_still_runs_is_left_for_the_next_sweep(sandbox: Sandbox) -> None:
    sandbox.speed = 0
    key = await bought(picture())
    (swept,) = await sweep(open_session())
    assert (swept.key, swept.after) == (key, State.BOUGHT)
    assert "still running" in swept.note
    sandbox.advance(20)
    assert [item.after for item in await sweep(open_session())] == [State.STORED]


async def test_what_failed_is_reported_with_the_services_words_and_refunded(sandbox: Sandbox) -> None:
    sandbox.fault("failed", reason="the moon was in the way")
    await bought(picture())
    assert await committed() == CENTS
    (swept,) = await sweep(open_session())
    assert swept.after is State.FAILED
    assert "not charged: the moon was in the way" in swept.note
    assert (await committed(), len(sandbox.bill)) == (0, 0)


async def test_a_lost_purchase_is_found_and_fetched(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=True)
    (swept,) = await sweep(open_session())
    assert (swept.key, swept.before, swept.after) == (key, State.IN_DOUBT, State.STORED)
    assert (len(sandbox.bill), await committed()) == (1, CENTS)


async def test_a_purchase_that_is_not_found_keeps_its_reservation_until_manual_review(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=False)
    (swept,) = await sweep(open_session())
    assert swept.after is State.IN_DOUBT
    assert f"receipts adopt {key}" in swept.note
    assert f"receipts release {key}" in swept.note
    assert await committed() == CENTS


async def test_money_set_aside_by_who_died_while_giving_it_back_is_given_back(sandbox: Sandbox) -> None:
    session = capped()
    sandbox.fault("402")
    with pytest.raises(VeogenError):
        await bought(picture())
    name = (await receipt(picture().receipt_key(session.client.base_url))).reservation
    await on_io(session.budgets.reserve([CAP], name, CENTS, "the dead"))
    assert await sweep(open_session()) == []
    assert await committed() == 0


async def test_a_damaged_receipt_is_reported_and_holds_up_no_other(sandbox: Sandbox) -> None:
    damaged, whole = await bought(picture("damaged")), await bought(picture("whole"))
    await on_io(open_session().store.put(f"receipts/{damaged}.json", b"{", "application/json"))
    swept = {item.key: item for item in await sweep(open_session())}
    assert swept[whole].after is State.STORED
    assert "can't be read" in swept[damaged].note
    assert swept[damaged].after is State.IN_DOUBT


async def test_what_a_lost_attempt_had_set_aside_counts_for_a_day(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await lost(sandbox, charged=False)
    await bought(picture("ours"))
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "0.1")
    await on_io(buy(capped(), picture("lost")))
    sandbox.advance(60)
    await sweep(open_session())
    assert await committed() == 3 * CENTS
    (attempt,) = (await receipt(key)).lost
    two_days_ago = attempt.model_copy(update={"given_up_at": datetime.now(UTC) - timedelta(days=2)})
    await on_io(left_behind(open_session(), key, lost=(two_days_ago,)))
    await sweep(open_session())
    assert await committed() == 2 * CENTS


async def test_a_damaged_receipt_hides_no_other_from_the_books(sandbox: Sandbox) -> None:
    damaged, whole = await bought(picture("damaged")), await bought(picture("whole"))
    await on_io(open_session().store.put(f"receipts/{damaged}.json", b"{", "application/json"))
    known = await all_receipts(open_session())
    assert [item.key for item in known.readable] == [whole]
    assert damaged in known.damaged[0].message
    found = await reconcile(open_session(), datetime.now(UTC) - timedelta(days=1))
    assert (found.receipts, found.only_in_ledger, found.adds_up) == (1, (), False)
    assert damaged in found.damaged[0]


async def test_another_services_purchases_are_named_and_left_alone(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown, paid = await lost(sandbox, charged=False), await bought(picture())
    with Sandbox(speed=100, tiny_media=True) as other:
        monkeypatch.setenv("VEOGEN_BASE_URL", other.base_url)
        await on_io(buy(open_session(store="elsewhere"), picture("lost")))  # looks like the lost one
        swept = {item.key: item for item in await sweep(open_session())}
    assert {key: item.after for key, item in swept.items()} == {unknown: State.IN_DOUBT, paid: State.BOUGHT}
    assert all(sandbox.base_url in item.note for item in swept.values())


@pytest.mark.parametrize(("age", "left"), [(timedelta(hours=25), False), (timedelta(hours=23), True)])
async def test_unfinished_writes_are_removed_after_a_day(age: timedelta, left: bool, tmp_path: Path) -> None:
    unfinished = tmp_path / "store/.unfinished/abandoned"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half a clip")
    written = (datetime.now(UTC) - age).timestamp()
    os.utime(unfinished, (written, written))
    await sweep(open_session())
    assert unfinished.exists() == left


async def test_a_service_that_is_down_is_reported_and_loses_nothing(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=True)
    sandbox.fault("look-500", times=None)
    (swept,) = await sweep(open_session())
    assert (swept.key, swept.before, swept.after) == (key, State.IN_DOUBT, State.IN_DOUBT)


# ---------------------------------------------------------------- reconcile


async def compared(since: datetime | None = None) -> Reconciliation:
    return await reconcile(open_session(), since or datetime.now(UTC) - LONG_AGO)


async def bought_elsewhere(sandbox: Sandbox, prompt: str = "by hand") -> None:
    await on_io(bought_and_stored_at("elsewhere", picture(prompt)))


async def bought_and_stored_at(store: str, request: GenerationRequest) -> None:
    await buy(open_session(store=store), request)


async def test_purchases_of_many_pages_add_up(sandbox: Sandbox) -> None:
    session = open_session()
    await asyncio.gather(*(on_io(buy(session, picture(f"number {number}"))) for number in range(230)))
    sandbox.advance(60)
    found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (230, 230, True)
    assert found.ledger_usd == found.statement_usd == 230 * CENTS


async def test_purchases_of_different_prices_add_up_each_with_its_own(sandbox: Sandbox) -> None:
    for resolution in ("1K", "2K", "4K"):
        await on_io(bought_and_stored(GenerationRequest(model="gpt-image-2", prompt="x", resolution=resolution)))
    await bought_elsewhere(sandbox)
    sandbox.advance(60)
    found = await compared()
    assert (found.receipts, found.charges, found.only_in_ledger) == (3, 4, ())
    assert [(charge.model_key, charge.amount_usd) for charge in found.only_in_statement] == [("gpt4o_image", CENTS)]


async def test_a_receipt_without_a_charge_is_named(sandbox: Sandbox) -> None:
    await on_io(bought_and_stored(picture("forgotten")))
    sandbox.reset()
    await on_io(bought_and_stored(picture("charged", aspect_ratio="1:1")))
    found = await compared()
    assert (found.adds_up, found.only_in_statement) == (False, ())
    assert (found.ledger_usd, found.statement_usd, len(found.only_in_ledger)) == (2 * CENTS, CENTS, 1)


async def test_what_still_runs_need_not_be_on_the_statement(sandbox: Sandbox) -> None:
    sandbox.speed = 0
    await bought(picture())
    found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (1, 0, True)


async def test_what_failed_or_was_never_bought_is_in_neither(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    with pytest.raises(GenerationFailed):
        await on_io(bought_and_stored(picture()))
    sandbox.fault("402")
    with pytest.raises(VeogenError):
        await bought(picture("refused"))
    found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (0, 0, True)


async def test_what_came_before_the_period_is_no_difference(sandbox: Sandbox) -> None:
    for number in range(3):
        await on_io(bought_and_stored(picture(f"before {number}")))
    since = datetime.now(UTC)
    for number in range(2):
        await on_io(bought_and_stored(picture(f"after {number}")))
    sandbox.advance(60)
    found = await compared(since)
    assert (found.receipts, found.charges, found.adds_up) == (2, 2, True)


async def test_a_stranger_is_found_in_a_period_that_has_a_past(sandbox: Sandbox) -> None:
    for number in range(3):
        await on_io(bought_and_stored(picture(f"before {number}")))
    since = datetime.now(UTC)
    await on_io(bought_and_stored(picture("after")))
    await bought_elsewhere(sandbox)
    sandbox.advance(60)
    found = await compared(since)
    assert (found.receipts, found.charges, len(found.only_in_statement), found.only_in_ledger) == (1, 2, 1, ())


async def test_another_services_receipts_are_not_compared(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    await on_io(bought_and_stored(picture()))
    with Sandbox() as other:
        monkeypatch.setenv("VEOGEN_BASE_URL", other.base_url)
        found = await compared()
    assert (found.receipts, found.charges, found.adds_up) == (0, 0, True)


# ---------------------------------------------------------------- a person's decisions


async def test_an_adopted_generation_is_used_and_not_bought_again(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=True)
    (generation,) = sandbox.generations
    made = await adopt(open_session(), key, generation.id)
    assert (made.state, made.generation and made.generation.id) == (State.BOUGHT, generation.id)
    asset = await on_io(bought_and_stored(picture("lost")))
    assert (asset.generation_id, asset.price_usd, len(sandbox.bill)) == (generation.id, CENTS, 1)
    account = await on_io(open_session().budgets.account(CAP.budget))
    assert (account.spent_usd, account.reserved) == (CENTS, {})


async def test_a_released_purchase_gives_its_money_back_and_is_bought_by_the_next_run(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=False)
    assert (await release(open_session(), key)).state is State.RELEASED
    assert await committed() == 0
    await on_io(bought_and_stored(picture("lost")))
    assert len(sandbox.bill) == 1
    assert [line.detail for line in (await receipt(key)).history if line.event == "released"] == [
        "by a person's decision"
    ]


async def decide(what: str, key: str, generation_id: str) -> Receipt:
    session = open_session()
    return await (adopt(session, key, generation_id) if what == "adopt" else release(session, key))


@pytest.mark.parametrize("what", ["adopt", "release"])
async def test_only_an_unknown_receipt_waits_for_a_decision(what: str, sandbox: Sandbox) -> None:
    key = await bought(picture())
    with pytest.raises(ConfigurationError, match="is bought; only one in doubt"):
        await decide(what, key, sandbox.generations[0].id)
    with pytest.raises(ConfigurationError, match="no receipt v1-gone"):
        await decide(what, "v1-gone", sandbox.generations[0].id)
    assert (await receipt(key)).state is State.BOUGHT


@pytest.mark.parametrize("what", ["adopt", "release"])
@pytest.mark.parametrize("reaches", ["v1-", "-", "-take"])
async def test_a_decision_takes_the_beginning_of_a_key_up_to_its_take(
    reaches: str, what: str, sandbox: Sandbox
) -> None:
    key = await lost(sandbox, charged=True)
    end = {"v1-": 10, "-": key.index("-take") + 1, "-take": len(key) - 1}[reaches]
    if reaches == "-take":
        with pytest.raises(ConfigurationError, match=rf"no receipt {key[:end]}, .* {key} begins like it") as caught:
            await decide(what, key[:end], sandbox.generations[0].id)
        assert "give its whole key" in caught.value.next_step
        assert (await receipt(key)).state is State.IN_DOUBT
    else:
        assert (await decide(what, key[:end], sandbox.generations[0].id)).key == key


@pytest.mark.parametrize("what", ["adopt", "release"])
async def test_a_decision_is_for_one_receipt(what: str, sandbox: Sandbox) -> None:
    await bought(picture())
    key = await lost(sandbox, charged=True)
    with pytest.raises(ConfigurationError, match="2 receipts begin with v1-") as caught:
        await decide(what, "v1-", sandbox.generations[1].id)
    assert "`prefect-veogen receipts` lists them" in caught.value.next_step
    with pytest.raises(ConfigurationError, match="There is no receipt"):
        await decide(what, "", sandbox.generations[1].id)
    assert (await receipt(key)).state is State.IN_DOUBT


@pytest.mark.parametrize("force", [False, True])
async def test_a_generation_of_another_receipt_is_not_adopted_nor_force_advised(force: bool, sandbox: Sandbox) -> None:
    owner, key = await bought(picture()), await lost(sandbox, charged=False)
    with pytest.raises(ConfigurationError, match=f"belongs to the receipt {owner}") as caught:
        await adopt(open_session(), key, sandbox.generations[0].id, force=force)
    assert f"`prefect-veogen receipts show {owner}`" in caught.value.next_step
    assert "force" not in str(caught.value)
    assert (await receipt(key)).state is State.IN_DOUBT


async def test_a_generation_of_other_content_is_adopted_only_by_force_and_stays_free_until_then(
    sandbox: Sandbox,
) -> None:
    key = await lost(sandbox, charged=False)
    submission = await open_session().client.create_generation({"model": "gpt-4o-image", "prompt": "something else"})
    assert isinstance(submission, Accepted)
    with pytest.raises(ConfigurationError, match=r"prompt differ(?s:.*)--force"):
        await adopt(open_session(), key, submission.generation.id)
    assert (await receipt(key)).state is State.IN_DOUBT
    assert await open_session().ledger.claimant(sandbox.base_url, submission.generation.id) is None
    assert (await adopt(open_session(), key, submission.generation.id, force=True)).state is State.BOUGHT


async def test_a_generation_the_service_does_not_know_is_not_adopted(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=False)
    with pytest.raises(ConfigurationError, match=r"knows no generation gone/\.\./gone(?s:.*)Check the id") as caught:
        await adopt(open_session(), key, "gone/../gone")
    assert "VEOGEN_BASE_URL" not in str(caught.value)
    assert (await receipt(key)).state is State.IN_DOUBT


async def test_a_generation_asked_for_at_another_service_names_the_one_that_has_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await lost(sandbox, charged=True)
    with Sandbox() as other:
        monkeypatch.setenv("VEOGEN_BASE_URL", other.base_url)
        monkeypatch.setenv("VEOGEN_API_TOKEN", other.token)
        with pytest.raises(ConfigurationError, match=f"purchase was made at {sandbox.base_url}: set VEOGEN_BASE_URL"):
            await adopt(open_session(), key, sandbox.generations[0].id)


@pytest.mark.parametrize("rounds", range(3))
async def test_of_two_decisions_at_once_one_counts(rounds: int, sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=True)
    generation = sandbox.generations[0].id
    made = await asyncio.gather(
        adopt(open_session(), key, generation), release(open_session(), key), return_exceptions=True
    )
    (decided,) = [item for item in made if isinstance(item, Receipt)]
    (refused,) = [item for item in made if isinstance(item, BaseException)]
    assert isinstance(refused, ConfigurationError)
    assert (await receipt(key)).state is decided.state


# ---------------------------------------------------------------- in Prefect


async def logged(flow_run_id: UUID, part: str) -> list[str]:
    """Return the lines of a run's log that hold a text, as soon as the server has any."""
    found: list[str] = []

    async def there_are_some() -> bool:
        await APILogHandler.aflush()
        async with get_client() as client:
            lines = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
        found[:] = [line.message for line in lines if part in line.message]
        return bool(found)

    await until(there_are_some)
    return found


@asynccontextmanager
async def stopped(ends: Callable[[], Awaitable[None]], **options: Any) -> AsyncIterator[FlowState[Any]]:
    """Run a flow which buys a generation that never ends, and then ends as it is asked to."""

    @flow(on_failure=[report_unfinished], on_crashed=[report_unfinished], **options)
    async def buyer() -> None:
        generation = await submit_generation(picture("stuck"))
        await asyncio.gather(wait_for_generation(generation), ends())

    state: FlowState[Any] = await buyer(return_state=True)
    yield state


async def fail() -> None:
    raise ValueError("something else went wrong")


async def never() -> None:
    await asyncio.sleep(60)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "ends", "options"), [("TimedOut", never, {"timeout_seconds": 5}), ("Failed", fail, {})]
)
async def test_a_flow_that_stops_reports_what_runs_on(
    name: str, ends: Callable[[], Awaitable[None]], options: dict[str, Any], sandbox: Sandbox, prefect_server: None
) -> None:
    sandbox.fault("stuck", times=None)
    async with stopped(ends, **options) as state:
        assert state.name == name
        assert state.state_details.flow_run_id is not None
        (line,) = await logged(state.state_details.flow_run_id, f"{name}: ")
    assert line.startswith(f"{name}: {sandbox.generations[0].id} of gpt-4o-image goes on")
    assert "it costs $0.02" in line
    assert "adopts it and pays nothing" in line


@pytest.mark.slow
@pytest.mark.server
async def test_a_cancelled_flow_reports_its_own_purchases_alone(sandbox: Sandbox, prefect_server: None) -> None:
    damaged, _ = await bought(picture("damaged")), await bought(picture("somebody else's"))
    await on_io(open_session().store.put(f"receipts/{damaged}.json", b"{", "application/json"))

    @flow
    async def buyer() -> None:
        await submit_generation(picture("its own"))

    state = await buyer(return_state=True)
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    async with get_client() as client:
        await report_unfinished(buyer, await client.read_flow_run(flow_run_id), Cancelled())
    assert len(await logged(flow_run_id, "goes on at the service")) == 1


@pytest.mark.slow
@pytest.mark.server
async def test_a_store_that_cannot_be_asked_does_not_break_the_hook(
    sandbox: Sandbox, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow
    async def nothing() -> None: ...

    state = await nothing(return_state=True)
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    monkeypatch.setenv("VEOGEN_STORE", "ftp://nowhere")
    async with get_client() as client:
        await report_unfinished(nothing, await client.read_flow_run(flow_run_id), Cancelled())
    assert await logged(flow_run_id, "report what this run left running")


@pytest.mark.slow
@pytest.mark.server
async def test_the_sweep_flow_finishes_compares_and_shows_it(sandbox: Sandbox, prefect_server: None) -> None:
    key = await bought(picture())
    sandbox.advance(60)
    state: FlowState[Sequence[Swept]] = await sweep_flow(return_state=True)
    (swept,) = await state.aresult()
    assert (swept.key, swept.after) == (key, State.STORED)
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    (line,) = await logged(flow_run_id, "they add up")
    assert line == "1 receipts of $0.02, 1 charges of $0.02: they add up"
    async with get_client() as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        made = {item.key: item for item in await client.read_artifacts(artifact_filter=mine) if item.key}
    assert set(made) == {"veogen-sweep", "veogen-reconciliation", plain_name(f"gpt-4o-image {picture().prompt}")}
    assert key in str(made["veogen-sweep"].data)
    assert not any(sandbox.token in str(artifact) for artifact in made.values())
