"""flows/generate_media.py: one request of any model, each field as it was given."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flows.generate_media import generate_media
from prefect_veogen import Asset
from prefect_veogen.errors import BudgetExceeded, ChangeTheRequest
from prefect_veogen.sandbox import Sandbox

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
PROMPT = "a lighthouse at dusk"


async def test_a_prompt_is_enough_and_what_is_not_set_is_not_sent(sandbox: Sandbox, store_url: str) -> None:
    asset = await generate_media(PROMPT)
    assert (asset.content_type, asset.price_usd) == ("image/png", Decimal("0.02"))
    (made,) = [request for request in sandbox.requests if request.method == "POST"]
    assert made.path.endswith("/generations")
    assert sandbox.generations[0].parameters == {}
    assert await generate_media(PROMPT) == asset
    assert len(sandbox.bill) == 1


async def test_all_fields_arrive_and_an_asset_is_an_input(sandbox: Sandbox) -> None:
    image = await generate_media(PROMPT, aspect_ratio="16:9")
    look: dict[str, Any] = {"resolution": "1080p", "mode": "frame", "aspect_ratio": "9:16"}
    clip = await generate_media("the beam turns", model="veo-3.1-fast", image_urls=[image], **look)
    picture, made = sandbox.generations
    assert clip.content_type == "video/mp4"
    assert made.parameters == {
        "aspect_ratio": "9:16",
        "image_urls": [picture.output_url],
        "mode": "frame",
        "resolution": "1080p",
    }


async def test_another_take_is_another_purchase_with_the_labels_it_was_given(sandbox: Sandbox, tmp_path: Path) -> None:
    await generate_media(PROMPT, take=1)
    await generate_media(PROMPT, take="2", labels={"project": "spring"})
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "store" / "receipts").rglob("*.json")]
    assert {str(receipt["take"]): receipt.get("labels", {}) for receipt in receipts} == {
        "1": {},
        "2": {"project": "spring"},
    }


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"model": "nope"}, ChangeTheRequest, "nope"),
        ({"prompt": " "}, ChangeTheRequest, "prompt: must not be empty"),
        ({"aspect_ratio": "7:3"}, ChangeTheRequest, "aspect_ratio: gpt-4o-image does not offer this"),
        ({"image_urls": ["not a link"]}, ChangeTheRequest, "image_urls: item 0"),
        ({"budget_usd": 0.01}, BudgetExceeded, "0.01"),
    ],
)
async def test_what_cannot_be_had_is_refused_before_anything_is_bought(
    wrong: dict[str, Any], error: type[Exception], said: str, sandbox: Sandbox
) -> None:
    with pytest.raises(error, match=said):
        await generate_media(**{"prompt": PROMPT} | wrong)
    assert sandbox.bill.purchases == ()


async def test_if_it_fails_the_softened_prompt_is_made_and_then_other_models(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.fault("failed", times=2)
    options: dict[str, Any] = {"softened_prompt": "a lighthouse", "fallback_models": ["gpt-image-2"]}
    asset = await generate_media(PROMPT, **options)
    tried = [(one.model, one.prompt) for one in sandbox.generations]
    assert tried == [("gpt-4o-image", PROMPT), ("gpt-4o-image", "a lighthouse"), ("gpt-image-2", "a lighthouse")]
    assert (asset.model, len(sandbox.bill)) == ("gpt-image-2", 1)
    (sidecar,) = [json.loads(path.read_text()) for path in (tmp_path / "store" / "assets").rglob("*.json")]
    assert (sidecar["request"]["model"], sidecar["request"]["prompt"]) == ("gpt-image-2", "a lighthouse")
    assert await generate_media(PROMPT, **options) == asset
    assert len(sandbox.generations) == 3


async def test_a_model_that_cannot_stand_in_is_refused_before_anything_is_bought(sandbox: Sandbox) -> None:
    with pytest.raises(ChangeTheRequest, match="aspect_ratio: gpt-4o-image does not offer this"):
        await generate_media(PROMPT, model="gpt-image-2", aspect_ratio="21:9", fallback_models=["gpt-4o-image"])
    assert sandbox.generations == ()


def test_the_caller_of_its_deployment_may_give_the_asset_of_another_run_as_it_was_returned(sandbox: Sandbox) -> None:
    asset = Asset(uri="file:///a.png", sha256="0" * 64, size=1, content_type="image/png", generation_id="g")
    given = {"prompt": PROMPT, "image_urls": [json.loads(asset.model_dump_json()), "https://example.com/b.png"]}
    assert generate_media.validate_parameters(given)["image_urls"] == [asset, "https://example.com/b.png"]


def test_as_a_script_without_a_prompt_it_says_how_it_is_used() -> None:
    command = [sys.executable, str(ROOT / "flows" / "generate_media.py")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1, "usage: python flows/generate_media.py PROMPT")
