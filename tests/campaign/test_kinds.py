"""What a model makes is known before anything is bought: no clip is made where a picture is needed, or the reverse."""

from __future__ import annotations

from typing import Any

import pytest

from flows.approve_then_animate import approve_then_animate
from flows.campaign import campaign
from flows.image_then_animate import image_then_animate
from flows.storyboard import storyboard
from prefect_veogen import GenerationRequest
from prefect_veogen.campaign.kinds import Kinds
from prefect_veogen.errors import ChangeTheRequest, InvalidManifest
from prefect_veogen.models import Kind
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.tasks.requests import check_requests, placeholder_of

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

PICTURE, CLIP = "gpt-4o-image", "veo-3.1-fast"
ROW = {"id": "a", "model": PICTURE, "prompt": "a lighthouse", "motion_prompt": "it turns"}
NO_PICTURE = f"model: {CLIP} makes clips, where pictures are needed; give a model that makes pictures"
NO_CLIP = "model: gpt-image-2 makes pictures, where clips are needed; give a model that makes clips"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"model": CLIP}, f"row 1 (a): {NO_PICTURE}"), ({"motion_model": "gpt-image-2"}, f"row 1 (a): motion_{NO_CLIP}")],
)
async def test_a_row_with_a_motion_needs_a_picture_and_then_a_clip(
    wrong: dict[str, Any], said: str, sandbox: Sandbox
) -> None:
    with pytest.raises(InvalidManifest) as refused:
        await campaign([ROW | wrong, ROW | {"id": "b"}])
    assert refused.value.problems == (said,)
    assert len(sandbox.bill) == 0


async def test_a_row_without_a_motion_may_make_either(sandbox: Sandbox) -> None:
    rows = [{"id": model, "model": model, "prompt": "a lighthouse"} for model in (PICTURE, CLIP)]
    assert {item.status.value for item in (await campaign(rows)).items} == {"ok"}


async def test_a_chain_needs_clips_of_the_shots_behind_the_first_and_no_picture(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    shots = [ROW | {"motion_model": "gpt-image-2"}, ROW | {"id": "b", "motion_model": "gpt-image-2", "model": CLIP}]
    with pytest.raises(InvalidManifest) as refused:
        await storyboard(shots, chain="last_frame")
    assert sorted(refused.value.problems) == [f"row 1 (a): motion_{NO_CLIP}", f"row 2 (b): motion_{NO_CLIP}"]
    assert len(sandbox.bill) == 0


@pytest.mark.parametrize("flow", [image_then_animate, approve_then_animate])
@pytest.mark.parametrize(
    ("wrong", "said"), [({"image_model": CLIP}, NO_PICTURE), ({"video_model": "gpt-image-2"}, NO_CLIP)]
)
async def test_a_flow_that_animates_pictures_needs_a_picture_and_then_a_clip(
    flow: Any, wrong: dict[str, Any], said: str, sandbox: Sandbox
) -> None:
    with pytest.raises(ChangeTheRequest) as refused:
        await flow("a lighthouse", "it turns", **wrong)
    assert said in str(refused.value)
    assert len(sandbox.bill) == 0


async def test_what_is_made_of_a_placeholder_may_be_a_picture_unless_it_is_to_be_a_clip(sandbox: Sandbox) -> None:
    picture = GenerationRequest(model=PICTURE, prompt="a lighthouse")
    other = GenerationRequest(model=PICTURE, prompt="at night", image_urls=[placeholder_of(picture)])
    await check_requests(picture, other)
    with pytest.raises(ChangeTheRequest, match="makes pictures, where clips are needed"):
        await check_requests(picture, other, animates=True)


async def test_a_model_of_which_nothing_is_known_is_not_refused_for_what_it_makes(sandbox: Sandbox) -> None:
    assert await on_io(Kinds(open_session()).find_problem("nope", Kind.VIDEO)) is None
