"""The sweep: what dead runs left is finished, live work is left alone, and what cannot be finished is named."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_veogen import GenerationRequest
from prefect_veogen.errors import VeogenError
from prefect_veogen.ledger import State
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.buyers import bought_and_stored
from tests.support.receipts import left_behind
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.upkeep import (
    CAP,
    CENTS,
    bought,
    buy_everything,
    capped,
    committed,
    lost,
    picture,
    receipt,
    states,
    sweep,
    until,
)

pytestmark = pytest.mark.usefixtures("doubt_never_ends")
ROOT = Path(__file__).parents[2]

DYING = """
import asyncio
from tests.support.upkeep import buy_everything
asyncio.run(buy_everything(["bought", "on its way", "asked to wait"]))
"""


def was_asked_to_wait(sandbox: Sandbox) -> bool:
    return any(record.status == 429 for record in sandbox.requests)


def dying() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DYING], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


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
    # Long enough for both to be seen at once, and for a sweep, on a busy machine.
    sandbox.fault("slow-answer", prompt="on its way", seconds=6.0)
    sandbox.fault("429", prompt="asked to wait", retry_after=6)
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
