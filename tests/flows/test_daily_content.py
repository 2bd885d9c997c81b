"""flows/daily_content.py: a slot is made once, backfilled under one cap, skipped when late, and published whole."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect import get_client
from prefect.states import Scheduled

from flows.daily_content import daily_content
from prefect_veogen import CampaignReport
from prefect_veogen.errors import BudgetExceeded, ConfigurationError, InvalidManifest, StoreUnavailable
from prefect_veogen.sandbox import Sandbox

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
LIGHT = {"id": "light", "model": "gpt-4o-image", "prompt": "a lighthouse at dusk"}
SHELL = {"id": "shell", "model": "gpt-4o-image", "prompt": "a shell on the beach"}
DAYS: dict[str, Any] = {"start": date(2026, 11, 1), "end": date(2026, 11, 3)}


def today() -> str:
    """Return the day by now: the tests may have been collected on another one."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def takes(store: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["take"] for path in (store / "receipts").rglob("*.json"))


async def run_late(by: timedelta, **parameters: Any) -> list[CampaignReport]:
    """Return what the flow returns when it begins so long after its scheduled start, as a worker would begin it."""
    from prefect.flow_engine import run_flow_async

    async with get_client() as client:
        scheduled: Any = Scheduled(scheduled_time=datetime.now(UTC) - by)
        run = await client.create_flow_run(
            daily_content, parameters={"manifest": [LIGHT]} | parameters, state=scheduled
        )
        run = await client.read_flow_run(run.id)
    made: Any = await run_flow_async(daily_content, flow_run=run, parameters=run.parameters)
    return list(made)


async def test_a_slot_is_made_once_and_has_results_and_a_budget_of_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    (report,) = await daily_content([LIGHT], budget_usd=0.02)
    assert (report.name, report.rows) == (f"daily-{today()}", 1)
    assert takes(tmp_path / "store") == [today()]
    await daily_content([LIGHT], budget_usd=0.02)
    assert len(sandbox.bill) == 1
    await daily_content([LIGHT], start=date(2026, 11, 24), end=date(2026, 11, 24), budget_usd=0.02)
    results = sorted(path.parent.name for path in (tmp_path / "store" / "campaigns").rglob("results.jsonl"))
    assert results == sorted([f"daily-{today()}", "daily-2026-11-24"])
    assert len(sandbox.bill) == 2, "each slot has its own budget"


async def test_a_backfill_makes_each_day_with_its_own_pictures_and_again_for_nothing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """The second row uses the first one's picture: of its own day."""
    waves = {"id": "waves", "model": "gpt-4o-image", "prompt": "as an etching", "image_urls": ["row:light"]}
    reports = await daily_content([LIGHT, waves], **DAYS)
    assert [report.name for report in reports] == [f"daily-2026-11-0{day}" for day in (1, 2, 3)]
    assert takes(tmp_path / "store") == sorted([f"2026-11-0{day}" for day in (1, 2, 3)] * 2)
    by_id = {made.id: made for made in sandbox.generations}
    for report in reports:
        light, made = (by_id[item.assets[0].generation_id] for item in report.items)
        assert made.parameters["image_urls"] == [light.output_url]
    await daily_content([LIGHT, waves], **DAYS)
    assert len(sandbox.bill) == 6


async def test_a_rows_own_take_is_filled_in_for_the_day_that_is_made(sandbox: Sandbox, tmp_path: Path) -> None:
    await daily_content([LIGHT | {"take": "week {scheduled:%V}, {scheduled:%a}"}], **DAYS)
    assert takes(tmp_path / "store") == sorted(["week 44, Sun", "week 45, Mon", "week 45, Tue"])


@pytest.mark.parametrize("table", [lambda: iter([LIGHT]), lambda: pd.DataFrame([LIGHT])], ids=["iterator", "frame"])
async def test_a_backfill_of_any_table_has_its_rows_in_each_slot(table: Callable[[], Any], sandbox: Sandbox) -> None:
    reports = await daily_content(table(), **DAYS)
    assert [report.rows for report in reports] == [1, 1, 1]


async def test_a_backfill_is_priced_before_it_begins_and_its_slots_share_one_cap(sandbox: Sandbox) -> None:
    with pytest.raises(BudgetExceeded, match=r"would cost \$0\.06 more"):
        await daily_content([LIGHT], budget_usd=0.05, **DAYS)
    assert sandbox.bill.purchases == ()
    await daily_content([LIGHT], budget_usd=0.06, **DAYS)
    assert sandbox.bill.total_usd == Decimal("0.06")
    with pytest.raises(BudgetExceeded):
        await daily_content([LIGHT, SHELL], budget_usd=0.06, **DAYS)
    assert sandbox.bill.total_usd == Decimal("0.06"), "what the first run spent counts"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"start": date(2026, 11, 3)}, ConfigurationError, "needs both"),
        ({"start": date(2026, 11, 3), "end": date(2026, 11, 1)}, ConfigurationError, "not 1 to 366 days"),
        (DAYS | {"take": "2026-11-24"}, ConfigurationError, "not another one each day"),
        (DAYS | {"take": "{scheduled:%Y-%m-%dT%H}"}, ConfigurationError, "the same all day"),
        ({"manifest": [LIGHT | {"aspect_ratio": "7:3"}]}, InvalidManifest, "aspect_ratio"),
        ({"publish_as": "assets/day.png"}, ConfigurationError, "assets/ belongs to the store"),
        ({"latest": "../day.png"}, ConfigurationError, "begins with no dot"),
        ({"publish_as": "/day.png"}, ConfigurationError, "printable name"),
        ({"publish_as": "day.png", "manifest": [LIGHT, SHELL]}, ConfigurationError, "light .* and shell .* as day.png"),
        ({"latest": "day.png", "variants": 2}, ConfigurationError, "would both be published as day.png"),
        (DAYS | {"publish_as": "{id}.png"}, ConfigurationError, "would both be published"),
        (
            {"publish_as": "x/{id}", "manifest": [LIGHT, LIGHT | {"id": "light.json"}]},
            ConfigurationError,
            "both be publ",
        ),
        ({"take": "2026-11-24", "latest": "latest.png"}, ConfigurationError, "is not a slot's"),
        ({"publish_as": "{nope}.png"}, ConfigurationError, "publish_as='{nope}.png' can't be filled in"),
        ({"latest": "latest.{ext}"}, ConfigurationError, "Write latest='latest{ext}'"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_bought(
    wrong: dict[str, Any], error: type[Exception], said: str, sandbox: Sandbox
) -> None:
    with pytest.raises(error, match=said):
        await daily_content(**{"manifest": [LIGHT]} | wrong)
    assert sandbox.bill.purchases == ()


async def test_a_late_run_catches_up_on_its_own_slot_or_makes_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    two_days = timedelta(days=2)
    assert await run_late(two_days, late="skip") == []
    assert len(await run_late(timedelta(hours=1), late="skip", take=1)) == 1
    (report,) = await run_late(two_days)
    slot = f"{datetime.now(UTC) - two_days:%Y-%m-%d}"
    assert report.name == f"daily-{slot}"
    assert takes(tmp_path / "store") == sorted(["1", slot]) or takes(tmp_path / "store") == [1, slot]


async def test_each_slot_is_published_and_latest_is_the_newest_slot(sandbox: Sandbox, tmp_path: Path) -> None:
    store = tmp_path / "store"
    places: dict[str, Any] = {"publish_as": "out/{scheduled:%F}.png", "latest": "out/latest.png"}
    reports = await daily_content([LIGHT], **places, **DAYS)
    newest = reports[-1].items[0].assets[0]
    for report, day in zip(reports, (1, 2, 3), strict=True):
        published = (store / f"out/2026-11-0{day}.png").read_bytes()
        assert hashlib.sha256(published).hexdigest() == report.items[0].assets[0].sha256
    latest = json.loads((store / "out/latest.png.json").read_text())
    assert (latest["asset"]["sha256"], latest["scheduled"][:10]) == (newest.sha256, "2026-11-03")
    await daily_content([LIGHT], **places, start=date(2026, 10, 30), end=date(2026, 10, 31))
    assert json.loads((store / "out/latest.png.json").read_text()) == latest, "a late day doesn't bring yesterday back"
    await daily_content([LIGHT], **places)
    assert json.loads((store / "out/latest.png.json").read_text())["scheduled"][:10] == today()


async def test_the_day_that_is_made_again_with_a_corrected_row_replaces_its_own_latest(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    places: dict[str, Any] = {"publish_as": "out/{scheduled:%F}.png", "latest": "out/latest.png"}
    await daily_content([LIGHT], **places)
    day = date.fromisoformat(today())
    corrected = LIGHT | {"prompt": "a lighthouse at dawn"}
    (report,) = await daily_content([corrected], **places, start=day, end=day)
    assert len(sandbox.bill) == 2
    for name in (today(), "latest"):
        published = (tmp_path / "store" / f"out/{name}.png").read_bytes()
        assert hashlib.sha256(published).hexdigest() == report.items[0].assets[0].sha256
    assert json.loads((tmp_path / "store" / "out/latest.png.json").read_text())["take"] == today()


async def test_a_day_whose_copy_cannot_be_published_ends_no_backfill(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "store/out/2026-11-01.png").mkdir(parents=True)
    with pytest.raises(StoreUnavailable):
        await daily_content([LIGHT], publish_as="out/{scheduled:%F}.png", **DAYS)
    assert [(tmp_path / f"store/out/2026-11-0{day}.png").is_file() for day in (1, 2, 3)] == [False, True, True]
    assert len(sandbox.bill) == 3


async def test_an_asset_is_published_with_its_own_ending_and_never_as_another_kind_of_media(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await daily_content([LIGHT], publish_as="out/{scheduled:%F}{ext}", latest="out/latest{ext}")
    assert (tmp_path / "store" / f"out/{today()}.png").exists()
    assert (tmp_path / "store" / "out/latest.png").exists()
    assert len(sandbox.bill) == 1
    with pytest.raises(
        ConfigurationError, match=r"makes a picture, and latest='out/latest\.mp4' is the name of a clip"
    ):
        await daily_content([SHELL], latest="out/latest.mp4")
    with pytest.raises(
        ConfigurationError, match=r"makes a clip, and publish_as='{scheduled:%F}\.png' is the name of a"
    ):
        await daily_content([SHELL | {"motion_prompt": "it turns"}], publish_as="{scheduled:%F}.png")
    assert len(sandbox.bill) == 1


async def test_a_name_that_a_refusal_shows_publishes_what_the_rows_are(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await daily_content([LIGHT], publish_as="assets/x.png")
    shown = caught.value.next_step.split("such as ")[1].split(", in none of")[0]
    await daily_content([LIGHT], publish_as=shown)
    assert (tmp_path / "store" / f"daily/{today()}.png").exists()
    await daily_content([LIGHT | {"motion_prompt": "the beam turns"}], publish_as=shown)
    assert (tmp_path / "store" / f"daily/{today()}.mp4").exists()


async def test_what_cannot_be_published_stops_nothing_else_and_the_table_is_written(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fault("failed", prompt="shell")
    (before,) = await daily_content([LIGHT, SHELL], name="n")
    options: dict[str, Any] = {"store": tmp_path / "other", "publish_as": "out/{scheduled:%F}-{id}.png", "name": "n"}
    with pytest.raises(ConfigurationError, match="is not in the store"):
        await daily_content(before.results_uri, **options)
    assert (tmp_path / "other" / f"out/{today()}-shell.png").exists()
    lines = (tmp_path / "other" / f"campaigns/n-{today()}/results.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["ok", "ok"]
    assert len(sandbox.bill) == 2


async def test_the_clip_is_what_is_published_and_a_failure_leaves_what_was_there(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    row = LIGHT | {"motion_prompt": "the beam turns"}
    await daily_content([row], latest="latest.mp4")
    note = json.loads((tmp_path / "store" / "latest.mp4.json").read_text())
    assert note["asset"]["content_type"] == "video/mp4"
    sandbox.fault("failed", times=1)
    tomorrow = date.fromisoformat(today()) + timedelta(days=1)
    (report,) = await daily_content([row], start=tomorrow, end=tomorrow, latest="latest.mp4")
    assert report.items[0].status.value == "failed"
    assert json.loads((tmp_path / "store" / "latest.mp4.json").read_text()) == note


def test_as_a_script_without_a_manifest_it_says_how_it_is_used() -> None:
    command = [sys.executable, str(ROOT / "flows" / "daily_content.py")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1, "usage: python flows/daily_content.py MANIFEST")
