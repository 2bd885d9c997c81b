"""flows/approve_then_animate.py by hand: it waits in place, a person decides by the form, and only that is bought."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.flow_engine import run_flow_async
from prefect.states import Pending

from flows.approve_then_animate import approve_then_animate
from prefect_veogen import Approved, GenerationRequest
from prefect_veogen.errors import BudgetExceeded, ChangeTheRequest, ConfigurationError
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.approval import PictureRounds
from tests.support.servers import Reply, Request, relayed, serving

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
PROMPTS = ("a lighthouse at dusk", "the beam turns")
PICTURE, CLIP = "gpt-4o-image", "veo-3.1-fast"
NO_TIMES = (0, -5, 1e12, float("inf"), float("nan"))
Decide = Callable[[FlowRun], Awaitable[None]]


async def waiting_run(after: str | None = None) -> FlowRun:
    """Return the run that waits for a decision, one that it hadn't asked for before."""
    this_flow = FlowFilter(name=FlowFilterName(any_=["approve-then-animate"]))
    async with get_client() as client:
        for _ in range(600):
            for run in await client.read_flow_runs(flow_filter=this_flow):
                if run.state is not None and run.state.is_paused() and key_of(run) != after:
                    keyset = run.state.state_details.run_input_keyset or {}
                    with_form = await client.filter_flow_run_input(run.id, keyset["schema"], 1, set())
                    if with_form:
                        return run
            await asyncio.sleep(0.1)
    raise AssertionError("no run waits for a decision")


def key_of(run: FlowRun) -> str | None:
    return run.state.state_details.pause_key if run.state else None


async def form_of(run: FlowRun) -> tuple[dict[str, Any], str]:
    """Return the form's schema, and the text above it."""
    assert run.state is not None
    keyset = run.state.state_details.run_input_keyset or {}
    async with get_client() as client:
        schema = json.loads(await client.read_flow_run_input(run.id, keyset["schema"]))
        return schema, json.loads(await client.read_flow_run_input(run.id, keyset["description"]))


async def resume(run_id: UUID, **decision: Any) -> SetStateStatus:
    async with get_client() as client:
        return (await client.resume_flow_run(run_id, run_input=decision)).status


async def decided(*decisions: dict[str, Any], **options: Any) -> tuple[Approved, list[str]]:
    """Return what the flow returns when a person decides so, and what was said above each form."""
    running = asyncio.create_task(approve_then_animate(*PROMPTS, **options))
    said, last = [], None
    for decision in decisions:
        run = await waiting_run(after=last)
        said.append((await form_of(run))[1])
        last = key_of(run)
        assert await resume(run.id, **decision) == SetStateStatus.ACCEPT
    return await running, said


def bought(sandbox: Sandbox) -> list[str]:
    return [purchase.model for purchase in sandbox.bill]


def takes(store: Path, prompt: str) -> list[str]:
    receipts = [json.loads(path.read_text()) for path in (store / "receipts").rglob("*.json")]
    return sorted(str(receipt["take"]) for receipt in receipts if receipt["request"]["prompt"] == prompt)


async def test_only_the_approved_pictures_are_animated(sandbox: Sandbox, store_url: str) -> None:
    made, (said,) = await decided({"decision": "animate", "approved": [3, 1]})
    assert bought(sandbox) == [PICTURE] * 4 + [CLIP] * 2
    assert (len(made.images), made.approved) == (4, (1, 3))
    served = {made.output_url for made in sandbox.generations[:4]}
    animated = [made.parameters["image_urls"] for made in sandbox.generations[4:]]
    assert len({url for (url,) in animated} & served) == 2
    by_id = {made.id: made for made in sandbox.generations}
    for video, number in zip(made.videos, made.approved, strict=True):
        picture = by_id[made.images[number - 1].generation_id]
        assert by_id[video.generation_id].parameters["image_urls"] == [picture.output_url]
    assert "**animate**: $1.20 for all, $0.30 for each approved picture" in said
    assert "**again**: $0.08 for 4 other pictures" in said


async def test_the_server_refuses_nonsense_and_the_run_goes_on_waiting(sandbox: Sandbox) -> None:
    running = asyncio.create_task(approve_then_animate(*PROMPTS, variants=2))
    run = await waiting_run()
    for nonsense in (
        {},
        {"decision": "maybe"},
        {"decision": "animate"},
        {"decision": "animate", "approved": []},
        {"decision": "animate", "approved": [0]},
        {"decision": "animate", "approved": [3]},
        {"decision": "animate", "approved": [1, 1]},
        {"decision": "animate", "approved": ["1"]},
        {"decision": "again", "new_prompt": "x" * 2001},
        {"decision": "stop", "other": 1},
    ):
        assert await resume(run.id, **nonsense) == SetStateStatus.REJECT, nonsense
    assert bought(sandbox) == [PICTURE] * 2
    schema, _ = await form_of(run)
    assert list(schema["properties"]) == ["decision", "approved", "new_prompt"]
    assert all(field["description"] for field in schema["properties"].values())
    assert await resume(run.id, decision="stop") == SetStateStatus.ACCEPT
    assert len((await running).images) == 2


async def test_stop_spends_nothing_more_and_ends_well(sandbox: Sandbox) -> None:
    made, _ = await decided({"decision": "stop", "approved": [1]}, variants=2)
    assert (len(made.images), made.videos, made.approved) == (2, (), ())
    assert bought(sandbox) == [PICTURE] * 2


async def test_nobody_decides_and_the_run_ends_well_with_the_pictures(sandbox: Sandbox) -> None:
    state = await approve_then_animate(*PROMPTS, variants=2, approval_timeout_seconds=1, return_state=True)
    assert state.is_completed()
    made = await state.aresult()
    assert (len(made.images), made.videos) == (2, ())
    assert bought(sandbox) == [PICTURE] * 2


async def test_a_question_that_nobody_answered_is_asked_anew_when_the_run_is_started_again(sandbox: Sandbox) -> None:
    options: dict[str, Any] = {"variants": 2, "approval_timeout_seconds": 1}
    state = await approve_then_animate(*PROMPTS, **options, return_state=True)
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Pending(), force=True)  # as `prefect flow-run retry` does
        run = await client.read_flow_run(run_id)
        assert run.empirical_policy.pause_keys == {"approval-1-1"}
        made: Any = await run_flow_async(approve_then_animate, flow_run=run, parameters=run.parameters)
        run = await client.read_flow_run(run_id)
    assert run.empirical_policy.pause_keys == {"approval-1-1", "approval-1-2"}
    assert (len(made.images), made.videos) == (2, ())
    assert bought(sandbox) == [PICTURE] * 2


async def test_again_takes_the_next_numbers_and_a_new_prompt_is_a_new_set(sandbox: Sandbox, tmp_path: Path) -> None:
    other = "a harbour at dawn"
    made, _ = await decided(
        {"decision": "again"}, {"decision": "again", "new_prompt": other}, {"decision": "stop"}, variants=2
    )
    assert takes(tmp_path / "store", PROMPTS[0]) == ["1", "2", "3", "4"]
    assert takes(tmp_path / "store", other) == ["1", "2"]
    assert [made.prompt for made in sandbox.generations[4:]] == [other] * 2
    assert {image.generation_id for image in made.images} == {made.id for made in sandbox.generations[4:]}


async def test_run_again_nothing_is_bought_twice(sandbox: Sandbox) -> None:
    first, _ = await decided({"decision": "animate", "approved": [2]}, variants=2)
    again, (said,) = await decided({"decision": "animate", "approved": [2]}, variants=2)
    assert again == first
    assert bought(sandbox) == [PICTURE] * 2 + [CLIP]
    assert "**animate**: $0.30 for all" in said, "one of the two is bought already"


async def test_what_the_budget_does_not_allow_is_asked_again_and_buys_nothing(sandbox: Sandbox) -> None:
    made, (first, said) = await decided(
        {"decision": "animate", "approved": [1, 2]},
        {"decision": "animate", "approved": [2]},
        variants=2,
        budget_usd=0.4,
    )
    assert all(text.count("Round 1: 2 pictures to judge") for text in (first, said))
    assert "That would cost $0.60 more" in said
    assert "Nothing was bought" in said
    assert made.approved == (2,)
    assert bought(sandbox) == [PICTURE] * 2 + [CLIP]
    assert sandbox.bill.total_usd == Decimal("0.34")


async def test_a_price_that_rises_while_a_run_by_hand_waits_is_asked_again(sandbox: Sandbox) -> None:
    running = asyncio.create_task(approve_then_animate(*PROMPTS, variants=1, budget_usd=0.4))
    first = await waiting_run()
    sandbox.set_price(CLIP, "0.90")
    await resume(first.id, decision="animate", approved=[1])
    second = await waiting_run(after=key_of(first))
    _, said = await form_of(second)
    assert "That would cost $0.90 more" in said
    await resume(second.id, decision="stop")
    await running
    assert bought(sandbox) == [PICTURE]


async def test_pictures_of_a_new_prompt_are_bought_at_the_price_that_was_shown_for_them(sandbox: Sandbox) -> None:
    await decided({"decision": "again"}, {"decision": "stop"}, variants=2)
    _, (said, _) = await decided({"decision": "again", "new_prompt": "a harbour"}, {"decision": "stop"}, variants=2)
    assert "**again**: $0.00 for 2 other pictures, $0.04 with a new prompt" in said
    assert bought(sandbox) == [PICTURE] * 6


async def test_others_that_the_service_would_refuse_are_asked_again_and_fail_no_run(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdrawn: set[str] = set()

    def respond(request: Request) -> Reply:
        if request.path.rpartition("/")[2] in withdrawn:
            return Reply(404, {}, b'{"message": "Not found"}')
        return relayed(sandbox.base_url, request)

    with serving(respond) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        running = asyncio.create_task(approve_then_animate(*PROMPTS, variants=1))
        first = await waiting_run()
        withdrawn.add(PICTURE)
        await resume(first.id, decision="again")
        second = await waiting_run(after=key_of(first))
        _, said = await form_of(second)
        assert "404" in said.splitlines()[0]
        assert "**again**: would be refused" in said
        await resume(second.id, decision="stop")
        assert len((await running).images) == 1


async def test_an_artifact_shows_the_pictures_with_their_numbers(sandbox: Sandbox) -> None:
    running = asyncio.create_task(approve_then_animate(*PROMPTS, variants=2))
    run = await waiting_run()
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    async with get_client() as client:
        sheets = [one for one in await client.read_artifacts(artifact_filter=of_run) if one.key == "approval"]
    await resume(run.id, decision="stop")
    made = await running
    (sheet,) = sheets
    text = str(sheet.data)
    assert [text.index(f"## {number}\n") for number in (1, 2)] == sorted(
        text.index(f"## {number}\n") for number in (1, 2)
    )
    assert text.count("data:image/jpeg") == 2
    assert all(image.uri in text for image in made.images)
    assert all(f"[open at the service](<{image.source_url}>)" in text for image in made.images), "in full size"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"variants": 0}, ConfigurationError, "from 1 to 24"),
        ({"variants": 25}, ConfigurationError, "from 1 to 24"),
        ({"video_model": "nope"}, ChangeTheRequest, "nope"),
        ({"resolution": "16k"}, ChangeTheRequest, "resolution"),
        ({"budget_usd": 0}, BudgetExceeded, "0.00"),
        ({"budget_usd": 0.07}, BudgetExceeded, r"cost \$0.08 more"),
        *(({"approval_timeout_seconds": wrong}, ConfigurationError, "can't be waited for") for wrong in NO_TIMES),
    ],
)
async def test_what_cannot_be_had_is_refused_before_anything_is_bought(
    wrong: dict[str, Any], error: type[Exception], said: str, sandbox: Sandbox
) -> None:
    with pytest.raises(error, match=said):
        await approve_then_animate(*PROMPTS, **wrong)
    assert sandbox.bill.purchases == ()


def test_takes_of_a_text_are_numbered_and_rounds_are_the_same_for_whoever_begins_again() -> None:
    rounds = PictureRounds(GenerationRequest(model=PICTURE, prompt="x", take="2026-11-24"), 2)
    assert [request.take for request in rounds.next_round()] == ["2026-11-24", "2026-11-24.2"]
    assert [request.take for request in rounds.next_round("y")] == ["2026-11-24", "2026-11-24.2"]
    assert [request.take for request in rounds.next_round("x")] == ["2026-11-24.3", "2026-11-24.4"]
    assert [request.take for request in rounds.next_round(" ")] == ["2026-11-24.5", "2026-11-24.6"]


def test_as_a_script_with_other_than_two_prompts_it_says_how_it_is_used() -> None:
    command = [sys.executable, str(ROOT / "flows" / "approve_then_animate.py"), "one"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (
        1,
        "usage: python flows/approve_then_animate.py IMAGE_PROMPT MOTION_PROMPT",
    )
