"""A storyboard: every finished shot is kept, only what is missing is bought, the film is its clips in their order."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL

from flows.storyboard import storyboard
from prefect_veogen import Asset, GenerationRequest, Storyboard, generate
from prefect_veogen.download.clips import read_last_frame
from prefect_veogen.errors import BudgetExceeded, ConfigurationError, InvalidManifest
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.store import open_store
from prefect_veogen.tasks.storyboard import read_shots

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "flows" / "storyboard.py")
PICTURE, CLIP = "gpt-4o-image", "veo-3.1-fast"
SHOTS: list[dict[str, Any]] = [
    {"id": name, "prompt": f"picture of {name}", "motion_prompt": f"motion of {name}"} for name in "abcd"
]
HERO = "https://example.com/hero.png"
SIGNED = "https://brand.s3.amazonaws.com/hero.png?X-Amz-Credential=key&X-Amz-Signature={}"
PATIENCE_SECONDS = 120.0


@pytest.fixture
def in_bucket(bucket: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket as the store, from which frames can be offered to the service."""
    url = f"s3://{bucket}/media"
    monkeypatch.setenv("VEOGEN_STORE", url)
    return url


def bought(sandbox: Sandbox) -> list[str]:
    return [purchase.model for purchase in sandbox.bill]


def ended(made: Storyboard) -> dict[str, str]:
    return {item.id: item.status.value for item in made.items}


async def bytes_of(asset: Asset) -> bytes:
    folder, _, name = asset.uri.rpartition("/")
    document = await open_store(folder).read(name)
    assert document is not None
    return document.body


async def pictures_in(asset: Asset) -> int:
    """Return how many pictures a clip has, having decoded all of it."""
    with av.open(io.BytesIO(await bytes_of(asset)), "r") as clip:
        return sum(1 for _ in clip.decode(video=0))


# ---------------------------------------------------------------- each from its own keyframe


async def test_each_shot_is_a_picture_and_a_clip_of_it_and_the_film_has_all_clips_in_order(
    sandbox: Sandbox, store_url: str
) -> None:
    made = await storyboard(SHOTS, join=True)
    assert ended(made) == dict.fromkeys("abcd", "ok")
    assert bought(sandbox) == [PICTURE] * 4 + [CLIP] * 4
    assert {one.prompt for one in sandbox.generations[:4]} == {shot["prompt"] for shot in SHOTS}
    assert {one.parameters["aspect_ratio"] for one in sandbox.generations} == {"16:9"}
    by_id = {one.id: one for one in sandbox.generations}
    for item, shot in zip(made.items, SHOTS, strict=True):
        picture, clip = item.assets
        assert by_id[clip.generation_id].prompt == shot["motion_prompt"]
        assert by_id[clip.generation_id].parameters["image_urls"] == [by_id[picture.generation_id].output_url]
    assert made.film is not None
    clips = [item.assets[-1] for item in made.items]
    assert await pictures_in(made.film) == sum([await pictures_in(clip) for clip in clips])
    sidecar = json.loads(await bytes_of(made.film.model_copy(update={"uri": f"{made.film.uri}.json"})))
    assert [clip["sha256"] for clip in sidecar["joined_from"]] == [clip.sha256 for clip in clips]


async def test_of_four_shots_of_which_one_fails_three_are_kept_and_only_the_fourth_is_bought_again(
    sandbox: Sandbox, store_url: str
) -> None:
    sandbox.fault("failed", prompt="motion of c")
    first = await storyboard(SHOTS, join=True)
    assert ended(first) == {"a": "ok", "b": "ok", "c": "failed", "d": "ok"}
    assert first.film is None
    assert (bought(sandbox), sandbox.bill.total_usd) == ([PICTURE] * 4 + [CLIP] * 3, Decimal("0.98"))
    again = await storyboard(SHOTS, join=True)
    assert ended(again) == dict.fromkeys("abcd", "ok")
    assert bought(sandbox)[7:] == [CLIP]
    assert sandbox.generations[-1].prompt == "motion of c"
    assert [item.assets for item in again.items if item.id != "c"] == [
        item.assets for item in first.items if item.id != "c"
    ]
    assert [item.reused for item in again.items] == [True, True, False, True]
    assert again.film is not None
    assert await storyboard(SHOTS, join=True) == again
    assert len(sandbox.bill) == 8


async def test_a_keyframe_that_fails_stops_no_other_shot(sandbox: Sandbox) -> None:
    sandbox.fault("failed", prompt="picture of b")
    assert ended(await storyboard(SHOTS)) == {"a": "ok", "b": "failed", "c": "ok", "d": "ok"}
    assert bought(sandbox) == [PICTURE] * 3 + [CLIP] * 3
    assert ended(await storyboard(SHOTS)) == dict.fromkeys("abcd", "ok")
    assert bought(sandbox)[6:] == [PICTURE, CLIP]


async def test_reference_images_are_those_of_every_shot_before_its_own(sandbox: Sandbox) -> None:
    own = "https://example.com/own.png"
    shots = [SHOTS[0], SHOTS[1] | {"image_urls": [own]}, SHOTS[2] | {"image_urls": ["row:a"]}]
    await storyboard(shots, reference_images=[HERO])
    pictures = {one.prompt: one for one in sandbox.generations if one.kind == "image"}
    inputs = [pictures[shot["prompt"]].parameters["image_urls"] for shot in shots]
    assert inputs == [[HERO], [HERO, own], [HERO, pictures["picture of a"].output_url]]


@pytest.mark.parametrize("given", ["asset", "./hero.png", "path", "signed"])
async def test_run_from_its_own_results_with_the_same_reference_images_it_buys_nothing_again(
    given: str, sandbox: Sandbox, in_bucket: str, tmp_path: Path
) -> None:
    hero = await generate(GenerationRequest(model=PICTURE, prompt="the hero"))
    (tmp_path / "hero.png").write_bytes(await bytes_of(hero))
    forms: dict[str, Any] = {"asset": hero, "path": Path("hero.png"), "signed": SIGNED.format(1)}
    first = await storyboard(SHOTS[:2], reference_images=[forms.get(given, given)], name="again")
    assert (ended(first), len(sandbox.bill)) == ({"a": "ok", "b": "ok"}, 5)
    forms["signed"] = SIGNED.format(2)
    again = await storyboard(first.report.results_uri, reference_images=[forms.get(given, given)], name="again")
    assert ([item.assets for item in again.items], len(sandbox.bill)) == ([item.assets for item in first.items], 5)


async def test_a_shot_that_failed_is_made_from_its_results_with_the_link_as_it_is_signed_now(sandbox: Sandbox) -> None:
    sandbox.fault("failed", prompt="picture of a")
    first = await storyboard(SHOTS[:1], reference_images=[SIGNED.format(1)], name="again")
    await storyboard(Path(urlsplit(first.report.results_uri).path), reference_images=[SIGNED.format(2)], name="again")
    inputs = [one.parameters["image_urls"] for one in sandbox.generations if one.kind == "image"]
    assert inputs == [[SIGNED.format(1)], [SIGNED.format(2)]]


async def test_a_shot_may_say_itself_what_the_options_say_for_the_others(sandbox: Sandbox) -> None:
    shots = [SHOTS[0], SHOTS[1] | {"model": "gpt-image-2", "motion_resolution": "720p", "aspect_ratio": "9:16"}]
    await storyboard(shots, resolution="1080p")
    by_prompt = {one.prompt: one for one in sandbox.generations}
    assert by_prompt["picture of b"].model == "gpt-image-2"
    looks = [by_prompt[f"motion of {name}"].parameters for name in "ab"]
    assert [(look["resolution"], look["aspect_ratio"]) for look in looks] == [("1080p", "16:9"), ("720p", "9:16")]


async def test_a_file_is_a_manifest_and_so_are_the_results_of_a_run_whose_shots_all_are_in_the_film(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "shots.csv").write_text(
        "id,prompt,motion_prompt,scene\na,a harbour,waves,1\nb,a lighthouse,it turns,2\n"
    )
    first = await storyboard("shots.csv", join=True, name="one", carry="*", labels={"project": "spring"})
    assert [item.carried["scene"] for item in first.items] == ["1", "2"]
    assert [item.labels for item in first.items] == [{"project": "spring"}] * 2
    results = tmp_path / "store" / "campaigns" / "one" / "results.jsonl"
    again = await storyboard(results, join=True)
    assert (ended(again), again.film, len(sandbox.bill)) == ({"a": "ok", "b": "ok"}, first.film, 4)
    with pytest.raises(BudgetExceeded, match=r"would cost \$0\.64 more"):
        await storyboard(results, store=tmp_path / "other", budget_usd=0.63)


async def test_the_price_of_the_rest_is_known_before_the_first_purchase_and_after_each_stage(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fault("failed", prompt="motion of c")
    with caplog.at_level(logging.INFO):
        await storyboard(SHOTS, name="priced")
    said = [line for line in caplog.messages if "to pay" in line.lower()]
    assert said == [
        "4 shots, $1.28 to pay",
        "The keyframes are made. Left to pay: $1.20 for 4 of 8 purchases",
        "The clips are made. Left to pay: $0.30 for 1 of 8 purchases",
    ]
    async with get_client() as client:
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["storyboard-priced"]))
        )
    assert sorted(str(artifact.data).partition("\n")[0] for artifact in artifacts) == sorted(said[1:])
    last = next(str(artifact.data) for artifact in artifacts if "0.30" in str(artifact.data))
    assert "| c | failed | $0.02 |" in last
    assert "| d | ok | $0.32 |" in last


# ---------------------------------------------------------------- each from the last frame of the one before


async def test_in_a_chain_each_clip_begins_with_the_last_frame_of_the_one_before_and_one_picture_is_bought(
    sandbox: Sandbox, in_bucket: str, tmp_path: Path
) -> None:
    made = await storyboard(SHOTS, chain="last_frame", join=True)
    assert ended(made) == dict.fromkeys("abcd", "ok")
    assert bought(sandbox) == [PICTURE] + [CLIP] * 4
    clips = [item.assets[-1] for item in made.items]
    assert [len(item.assets) for item in made.items] == [2, 1, 1, 1]
    assert [one.prompt for one in sandbox.generations[1:]] == [shot["motion_prompt"] for shot in SHOTS]
    for before, made_from in zip(clips, sandbox.generations[2:], strict=False):
        (link,) = made_from.parameters["image_urls"]
        path = tmp_path / "clip.mp4"
        path.write_bytes(await bytes_of(before))
        frame = f"{in_bucket}/assets/last-frames/{before.sha256}.png"
        assert frame.removeprefix("s3:/") in link
        assert await bytes_of(before.model_copy(update={"uri": frame})) == read_last_frame(path)
    assert made.film is not None
    assert await pictures_in(made.film) == sum([await pictures_in(clip) for clip in clips])
    assert await storyboard(SHOTS, chain="last_frame", join=True) == made
    assert len(sandbox.bill) == 5
    elsewhere = Storyboard.model_validate_json(made.model_dump_json())
    assert [item.assets[-1].sha256 for item in elsewhere.items] == [clip.sha256 for clip in clips]


async def test_when_a_shot_of_a_chain_fails_those_before_it_are_kept_and_those_behind_it_are_not_bought(
    sandbox: Sandbox, in_bucket: str
) -> None:
    sandbox.fault("failed", prompt="motion of c")
    first = await storyboard(SHOTS, chain="last_frame", join=True)
    assert ended(first) == {"a": "ok", "b": "ok", "c": "failed", "d": "blocked"}
    assert (first.items[3].error or "").startswith("The row 'c', whose last frame it uses, is failed: Generation")
    assert (bought(sandbox), first.film) == ([PICTURE, CLIP, CLIP], None)
    again = await storyboard(SHOTS, chain="last_frame", join=True)
    assert ended(again) == dict.fromkeys("abcd", "ok")
    assert bought(sandbox)[3:] == [CLIP, CLIP]
    assert [one.prompt for one in sandbox.generations[-2:]] == ["motion of c", "motion of d"]
    assert [item.reused for item in again.items] == [True, True, False, False]


async def test_a_last_frame_that_cannot_be_had_is_how_the_shot_behind_it_ended_and_buys_nothing(
    sandbox: Sandbox, in_bucket: str
) -> None:
    await storyboard(SHOTS[1:2])  # the same shot on its own is no part of the chain
    first = await storyboard(SHOTS[:1], chain="last_frame")
    key, other = f"assets/last-frames/{first.items[0].assets[-1].sha256}.png.json", "0" * 64
    asset = {"uri": "", "sha256": other, "size": 1, "content_type": "image/png", "generation_id": ""}
    await open_store(in_bucket).create(key, json.dumps({"asset": asset}).encode())
    made = await storyboard(SHOTS[:3], chain="last_frame")
    assert ended(made) == {"a": "ok", "b": "failed", "c": "blocked"}
    assert "is gone, and this version of FFmpeg makes another picture" in (made.items[1].error or "")
    assert (made.items[1].assets, made.items[1].price_usd, len(sandbox.bill)) == ((), 0, 4)


async def test_a_chain_whose_first_picture_fails_buys_no_clip(sandbox: Sandbox, in_bucket: str) -> None:
    sandbox.fault("failed", prompt="picture of a")
    made = await storyboard(SHOTS, chain="last_frame")
    assert ended(made) == {"a": "failed", "b": "blocked", "c": "blocked", "d": "blocked"}
    assert bought(sandbox) == []


async def test_in_a_chain_the_price_of_the_rest_is_known_after_each_shot(
    sandbox: Sandbox, in_bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await storyboard(SHOTS[:3], chain="last_frame")
        await storyboard(SHOTS, chain="last_frame")
    told = [line for line in caplog.messages if "to pay" in line.lower() and "Reused: " not in line]
    said = [line.partition("Left to pay: ")[2] or line for line in told]
    assert said == [
        "3 shots, $0.92 to pay",
        "$0.90 for 3 of 4 purchases",
        "$0.60 for 2 of 4 purchases",
        "$0.30 for 1 of 4 purchases",
        "$0.00 for 0 of 4 purchases",
        "4 shots, $0.30 to pay",
        *["$0.30 for 1 of 5 purchases"] * 4,
        "$0.00 for 0 of 5 purchases",
    ]


# ---------------------------------------------------------------- before anything is bought


async def test_shots_are_told_in_one_go_what_can_not_be_joined_and_what_their_models_do_not_offer(
    sandbox: Sandbox,
) -> None:
    shots = [SHOTS[0], SHOTS[1] | {"motion_resolution": "720p", "aspect_ratio": "17:9"}]
    with pytest.raises(InvalidManifest) as refused:
        await storyboard(shots, join=True)
    assert "row 2 (b): motion_resolution: '720p' can't be joined with None" in str(refused.value)
    assert "row 2 (b): aspect_ratio: gpt-4o-image does not offer this" in str(refused.value)
    assert sandbox.generations == ()


async def test_a_misspelt_chain_is_refused(sandbox: Sandbox) -> None:
    wrong: Any = "last-frame"
    with pytest.raises(ConfigurationError, match="'none', 'last_frame'"):
        await read_shots(SHOTS, wrong, image_model="gpt-4o-image", video_model="veo-3.1-fast")


@pytest.mark.parametrize(
    ("shots", "options", "error", "said"),
    [
        ([SHOTS[0] | {"motion_prompt": ""}], {}, InvalidManifest, "row 1 (a): motion_prompt: is required"),
        ([{"id": "a", "motion_prompt": "x"}], {}, InvalidManifest, "prompt: is required"),
        ([SHOTS[0] | {"variants": 2}], {}, InvalidManifest, "variants: a storyboard makes each shot once"),
        (SHOTS, {"video_model": "nope"}, InvalidManifest, "nope"),
        (SHOTS, {"video_model": "veo-3.1-lite"}, InvalidManifest, "motion_image_urls: veo-3.1-lite does not take"),
        (SHOTS, {"image_model": CLIP}, InvalidManifest, "model: veo-3.1-fast makes clips, where pictures are needed"),
        (SHOTS, {"video_model": PICTURE}, InvalidManifest, "motion_model: gpt-4o-image makes pictures, where"),
        (SHOTS, {"resolution": "16k"}, InvalidManifest, "motion_resolution: veo-3.1-fast does not offer this"),
        (SHOTS, {"reference_images": ["no link"]}, InvalidManifest, "image_urls: item 0"),
        (SHOTS, {"budget_usd": 1.27}, BudgetExceeded, "would cost $1.28 more"),
        (SHOTS, {"chain": "last_frame"}, ConfigurationError, "Use a bucket as VEOGEN_STORE"),
        (
            [SHOTS[0], SHOTS[1] | {"motion_resolution": "720p"}],
            {"join": True},
            InvalidManifest,
            "row 2 (b): motion_resolution: '720p' can't be joined with None, that of the first shot",
        ),
    ],
)  # fmt: skip
async def test_what_cannot_be_had_is_refused_before_anything_is_bought(
    shots: list[dict[str, Any]], options: dict[str, Any], error: type[Exception], said: str, sandbox: Sandbox
) -> None:
    with pytest.raises(error) as refused:
        await storyboard(shots, **options)
    assert said in str(refused.value)
    assert sandbox.generations == ()


@pytest.mark.parametrize(
    ("shots", "options", "said"),
    [
        ([SHOTS[0] | {"image_urls": ["row:b"]}, SHOTS[1]], {}, "row 1 (a): image_urls: in a chain no other shot has"),
        (SHOTS[:2], {"resolution": "16k"}, "row 2 (b), its clip: resolution: veo-3.1-fast does not offer this"),
    ],
)
async def test_what_a_chain_cannot_have_is_refused_before_anything_is_bought(
    shots: list[dict[str, Any]], options: dict[str, Any], said: str, sandbox: Sandbox, in_bucket: str
) -> None:
    with pytest.raises(InvalidManifest) as refused:
        await storyboard(shots, chain="last_frame", **options)
    assert said in str(refused.value)
    assert sandbox.generations == ()


@pytest.mark.parametrize("options", [{"join": True}, {"chain": "last_frame"}])
async def test_without_pyav_nothing_is_chained_or_joined_and_nothing_bought(
    options: dict[str, Any], sandbox: Sandbox, in_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'prefect-veogen\[media\]'"):
        await storyboard(SHOTS, **options)
    assert sandbox.generations == ()


# ---------------------------------------------------------------- killed


def child_environment() -> dict[str, str]:
    return os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("after", [2, 4])
def test_killed_in_a_chain_and_run_again_it_pays_each_clip_once(
    after: int, sandbox: Sandbox, in_bucket: str, tmp_path: Path
) -> None:
    code = "import asyncio, sys; from flows.storyboard import storyboard; "
    code += "made = asyncio.run(storyboard(sys.argv[1], chain='last_frame', join=True)); print(made.report, made.film)"
    (tmp_path / "shots.json").write_text(json.dumps(SHOTS))
    command = [sys.executable, "-c", code, str(tmp_path / "shots.json")]
    sandbox.speed = 40  # it is some time before the next one when it is killed
    process = subprocess.Popen(command, env=child_environment())
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(sandbox.bill) < after and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(sandbox.bill) < 5
    sandbox.speed = 100
    again = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert "4 ok; $1.22" in again.stdout, again.stderr
    assert "/assets/films/" in again.stdout
    assert (bought(sandbox), sandbox.bill.total_usd) == ([PICTURE] + [CLIP] * 4, Decimal("1.22"))


def test_as_a_script_without_shots_it_says_how_it_is_used() -> None:
    ran = subprocess.run([sys.executable, SCRIPT], env=child_environment(), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1, "usage: python flows/storyboard.py SHOTS")
