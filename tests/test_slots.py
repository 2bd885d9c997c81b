"""Takes of scheduled flows: one purchase per slot of the schedule, however often that slot is run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async
from prefect.states import Scheduled

from flows.image_then_animate import Animated, image_then_animate
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.slots import take_of_slot

DAILY = "{scheduled:%Y-%m-%d}"
# Past, or the runs would wait for it. Evening there, the next day by UTC.
EVENING = datetime(2024, 11, 23, 22, 30, tzinfo=timezone(timedelta(hours=-5)))
PROMPTS = ("a lighthouse at dusk", "the beam turns")


@flow
async def slotted(take: int | str) -> int | str:
    return take_of_slot(take)


async def run_of_slot(flow: Any, scheduled: datetime, **parameters: Any) -> Any:
    """Run a flow as a worker does: by a flow run which the server had scheduled."""
    async with get_client() as client:
        flow_run = await client.create_flow_run(flow, parameters=parameters, state=Scheduled(scheduled_time=scheduled))
    return await run_flow_async(flow, flow_run=flow_run, parameters=parameters, return_type="result")


@pytest.mark.server
@pytest.mark.parametrize(
    ("take", "filled"),
    [
        (DAILY, "2024-11-24"),
        ("{scheduled:%G-W%V}", "2024-W47"),
        ("{scheduled:%Y-%m-%dT%H}", "2024-11-24T03"),
        ("poster {scheduled:%d} of {{all}}", "poster 24 of {all}"),
        ("plain", "plain"),
        (7, 7),
    ],
)
async def test_a_take_is_filled_from_the_slot_in_utc(take: int | str, filled: int | str, prefect_server: None) -> None:
    assert await run_of_slot(slotted, EVENING, take=take) == filled


@pytest.mark.server
@pytest.mark.parametrize(
    "take",
    ["{", "{}", "{0}", "{today}", "{scheduled", "{scheduled.nope}", "{scheduled[0]}", "{scheduled!x}", "{scheduled:%Y"],
)
async def test_braces_that_hold_something_else_are_refused(take: str, prefect_server: None) -> None:
    with pytest.raises(ConfigurationError, match="can't be filled in") as caught:
        await run_of_slot(slotted, EVENING, take=take)
    assert DAILY in str(caught.value)


def test_outside_of_a_flow_run_there_is_no_slot() -> None:
    with pytest.raises(ConfigurationError, match="needs a flow run with a scheduled start"):
        take_of_slot(DAILY)
    assert take_of_slot("2024-11-24") == "2024-11-24"


@pytest.mark.server
async def test_a_run_by_hand_has_the_slot_of_its_start(prefect_server: None) -> None:
    before = datetime.now(UTC).date().isoformat()
    assert await slotted(DAILY) in (before, datetime.now(UTC).date().isoformat())


@pytest.mark.slow
@pytest.mark.server
async def test_all_runs_of_a_slot_buy_once_and_another_slot_buys_again(sandbox: Sandbox, prefect_server: None) -> None:
    async def made(slot: datetime) -> Animated:
        animated: Animated = await run_of_slot(
            image_then_animate, slot, image_prompt=PROMPTS[0], motion_prompt=PROMPTS[1], take=DAILY
        )
        return animated

    first, caught_up = await made(EVENING), await made(EVENING)
    assert (first, len(sandbox.bill)) == (caught_up, 2)
    by_hand = await image_then_animate(*PROMPTS, take="2024-11-24")
    assert (by_hand, len(sandbox.bill)) == (first, 2)
    await made(EVENING - timedelta(days=1))
    assert len(sandbox.bill) == 4
