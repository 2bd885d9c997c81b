"""Takes of scheduled flows: one purchase per slot of the schedule, however often that slot is run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async
from prefect.states import Scheduled

from flows.image_then_animate import image_then_animate
from prefect_veogen import Animated
from prefect_veogen.errors import ConfigurationError, InvalidManifest
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.tasks.campaign import read_manifest

DAILY = "{scheduled:%Y-%m-%d}"
# Past, or the runs would wait for it. Evening there, the next day by UTC.
EVENING = datetime(2024, 11, 23, 22, 30, tzinfo=timezone(timedelta(hours=-5)))
PROMPTS = ("a lighthouse at dusk", "the beam turns")


@flow
async def slotted(take: int | str) -> int | str:
    return take_of_slot(take)


@flow
async def takes(rows: list[dict[str, Any]], take: int | str) -> list[int | str]:
    return [row.request.take for row in await read_manifest(rows, take)]


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
        ("poster {scheduled:%d} of {scheduled:%B}", "poster 24 of November"),
        ("plain", "plain"),
        (7, 7),
    ],
)
async def test_a_take_is_filled_from_the_slot_in_utc(take: int | str, filled: int | str, prefect_server: None) -> None:
    assert await run_of_slot(slotted, EVENING, take=take) == filled


@pytest.mark.parametrize(
    "take",
    [
        *("{", "}", "{}", "{0}", "{today}", "{scheduled}", "{scheduled", "{scheduled:%Y", "{{scheduled:%Y}}"),
        *("{scheduled.year}", "{scheduled.nope}", "{scheduled[0]}", "{scheduled!r:.4}", "{scheduled:{scheduled:%Y}}"),
        *("{scheduled:}", "{scheduled:%%}", "{scheduled:daily}", "{scheduled:%Z}", "{scheduled:\ud800%Y}"),
    ],
)
def test_braces_that_hold_something_else_or_never_change_are_refused(take: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be filled in") as caught:
        take_of_slot(take)
    assert DAILY in str(caught.value)


def test_outside_of_a_flow_run_there_is_no_slot() -> None:
    with pytest.raises(ConfigurationError, match="needs a flow run with a scheduled start"):
        take_of_slot(DAILY)
    assert take_of_slot("2024-11-24") == "2024-11-24"


@pytest.mark.server
async def test_a_run_by_hand_has_the_slot_of_its_start(prefect_server: None) -> None:
    before = datetime.now(UTC).date().isoformat()
    assert await slotted(DAILY) in (before, datetime.now(UTC).date().isoformat())


@pytest.mark.server
async def test_rows_takes_are_filled_like_the_campaigns(prefect_server: None) -> None:
    rows = [{"id": take, "model": "gpt-4o-image", "prompt": "x", "take": take} for take in (DAILY, "plain", "")]
    rows[2]["id"] = "without its own"
    assert await run_of_slot(takes, EVENING, rows=rows, take="{scheduled:%H}") == ["2024-11-24", "plain", "03"]
    with pytest.raises(InvalidManifest, match=r"row 1 .* take: .* needs a flow run"):
        await read_manifest(rows)


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
