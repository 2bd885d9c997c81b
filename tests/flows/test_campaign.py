"""A campaign: all rows checked and priced before the first purchase, then each row on its own, paid once."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from markdown_it import MarkdownIt
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, TaskRun
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema

from flows.campaign import campaign
from flows.image_then_animate import image_then_animate
from flows.sweep import sweep
from prefect_veogen import Asset
from prefect_veogen.campaign.gallery import Tile, page
from prefect_veogen.campaign.items import Step
from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.campaign.run import campaign_name
from prefect_veogen.errors import BudgetExceeded, ConfigurationError, InsufficientBalance, InvalidManifest
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import Kind
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import open_store
from prefect_veogen.tasks.campaign import CampaignItem, CampaignReport, ItemStatus, make_campaign, publish_campaign
from tests.support.servers import Reply, Request, relayed, serving

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "flows" / "campaign.py")
PATIENCE_SECONDS = 120.0
CENTS = Decimal("0.02")


def row(identity: str, prompt: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": identity, "model": "gpt-4o-image", "prompt": prompt or f"picture of {identity}", **fields}


def pictures(count: int) -> list[dict[str, Any]]:
    return [row(f"r{number}") for number in range(count)]


def ended(report: CampaignReport) -> dict[str, str]:
    return {item.id: item.status.value for item in report.items}


def assets_of(report: CampaignReport) -> list[tuple[Asset, ...]]:
    return [item.assets for item in report.items]


async def refused(error: type[Exception], rows: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(error) as caught:
        await campaign(rows, **options)
    return str(caught.value)


async def test_a_path_is_as_good_as_its_name_for_the_manifest_and_the_store(sandbox: Sandbox, tmp_path: Path) -> None:
    manifest, store = tmp_path / "rows.csv", tmp_path / "other"
    manifest.write_text("id,model,prompt\nhero,gpt-4o-image,a lighthouse\n")
    report = await campaign(manifest, store=store)
    again = await campaign(str(manifest), store=str(store))
    assert (again.results_uri, assets_of(again)) == (report.results_uri, assets_of(report))
    assert len(sandbox.bill) == 1
    assert (asset := report.items[0].asset)
    assert Path(urlsplit(asset.uri).path).is_relative_to(store)


@pytest.mark.parametrize("flow", [campaign, image_then_animate, sweep])
def test_the_form_of_a_deployment_asks_for_no_more_than_a_string_where_a_path_will_do(flow: Any) -> None:
    form = parameter_schema(flow).model_dump()["properties"]
    assert [kind["type"] for kind in form["store"]["anyOf"]] == ["string", "null"]
    if "manifest" in form:
        assert [kind["type"] for kind in form["manifest"]["anyOf"]] == ["string", "array"]
    given = {name: Path("a/b") for name in form if name in ("manifest", "store")}
    others = {name: "x" for name in ("image_prompt", "motion_prompt") if name in form}
    assert flow.serialize_parameters(flow.validate_parameters({**given, **others}))["store"] == "a/b"


# ---------------------------------------------------------------- before the first purchase


async def test_every_row_is_checked_against_the_live_catalogue_before_anything_is_bought(sandbox: Sandbox) -> None:
    rows = [
        row("fine"),
        row("gone", model="gpt-5o-image"),
        row("large", model="gpt-image-2", resolution="8K"),
        row("both", aspect_ratio="17:9", motion_prompt="x", motion_model="grok-video-1", motion_duration=99),
        row("no picture", motion_prompt="x", motion_model="veo-3.1-lite"),
    ]
    message = await refused(InvalidManifest, rows)
    assert "has 6 problem(s)" in message
    for part in (
        "row 2 (gone): model: ",
        "row 3 (large): resolution: gpt-image-2 does not offer this (got '8K'); allowed: 1K, 2K, 4K; nearest: ",
        "row 4 (both): aspect_ratio: ",
        "row 4 (both): motion_aspect_ratio: ",
        "row 4 (both): motion_duration: grok-video-1 does not offer this (got 99)",
        "row 5 (no picture): motion_image_urls: veo-3.1-lite does not take this field",
    ):
        assert part in message
    assert sandbox.bill.purchases == ()


async def test_a_table_is_told_in_one_go_what_is_wrong_with_it_and_what_its_models_do_not_offer(
    sandbox: Sandbox,
) -> None:
    rows = [
        row("fine"),
        row("gone", model="gpt-5o-image"),
        row("typo", duration="ten"),
        row("large", model="gpt-image-2", resolution="8K", image_urls=["row:typo"]),
        row("odd", aspect_ratio="17:9"),
    ]
    message = await refused(InvalidManifest, rows)
    assert "has 3 problem(s)" in message
    for part in ("row 3 (typo): duration: must be a whole", "row 2 (gone): model: ", "row 5 (odd): aspect_ratio: "):
        assert part in message
    rows[2] = row("typo", style="NULL")
    rows[3].pop("image_urls")
    assert "has 4 problem(s)" in await refused(InvalidManifest, rows)
    assert sandbox.bill.purchases == ()


@pytest.mark.parametrize(
    ("name", "value"), [("VEOGEN_API_TOKEN", ""), ("VEOGEN_BASE_URL", "http://127.0.0.1:9/api/v1")]
)
async def test_where_the_service_can_not_be_asked_a_table_is_told_what_is_wrong_with_it_all_the_same(
    name: str, value: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert "row 1 (typo): duration: " in await refused(InvalidManifest, [row("typo", duration="ten"), row("fine")])


async def test_what_rows_share_is_paid_and_counted_once(sandbox: Sandbox) -> None:
    rows = [
        {**row("still"), "prompt": "one lighthouse"},
        {**row("moving", motion_prompt="x"), "prompt": "one lighthouse"},
    ]
    report = await campaign(rows)
    assert [item.price_usd for item in report.items] == [Decimal("0.02"), Decimal("0.32")]
    assert report.price_usd == sandbox.bill.total_usd == Decimal("0.32")


async def test_a_budget_too_small_for_all_rows_buys_none(sandbox: Sandbox) -> None:
    message = await refused(BudgetExceeded, [*pictures(3), row("clip", motion_prompt="x")], budget_usd=0.37)
    assert "would cost $0.38 more" in message
    assert "has $0.37 left" in message
    assert sandbox.bill.purchases == ()


async def test_the_days_budget_counts_too(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.05")
    assert "the budget 'day-" in await refused(BudgetExceeded, pictures(3), budget_usd=1)
    assert sandbox.bill.purchases == ()


async def test_a_balance_too_small_for_all_rows_buys_none(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(balance_usd="0.05", tiny_media=True) as poor:
        monkeypatch.setenv("VEOGEN_BASE_URL", poor.base_url)
        assert "the account holds $0.05" in await refused(InsufficientBalance, pictures(3))
        assert poor.bill.purchases == ()


async def test_a_price_nobody_names_is_not_bought_under_a_cap(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_price(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        return Reply(reply.status, reply.headers, reply.body.replace(b'"price_usd":0.03', b'"price_usd":null'))

    with serving(without_price) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        message = await refused(BudgetExceeded, [row("a"), row("b", model="nano-banana-2")], budget_usd=10)
    assert "no price for nano-banana-2" in message
    assert sandbox.bill.purchases == ()


async def test_a_model_that_is_not_known_is_asked_for_once_not_once_a_row(sandbox: Sandbox) -> None:
    message = await refused(InvalidManifest, [row(f"r{number}", model="gpt-5o-image") for number in range(50)])
    assert message.count("model: ") >= 10
    assert [request.path.partition("/v1/")[2] for request in sandbox.requests] == ["models/gpt-5o-image", "models"]


async def test_rows_that_share_an_id_are_refused_however_they_were_made(sandbox: Sandbox) -> None:
    rows = await read_manifest(pictures(2))
    with pytest.raises(InvalidManifest, match="'r1' is used 2 times"):
        await make_campaign([*rows, rows[1]], name="twins")
    assert sandbox.requests == ()


async def test_a_blip_before_the_first_purchase_ends_no_campaign(sandbox: Sandbox) -> None:
    sandbox.fault("look-500")
    assert Counter(ended(await campaign(pictures(2))).values()) == Counter(ok=2)


@pytest.mark.parametrize("manifest", [[], [row("a"), row("a")], [row("a", promt="x")]])
async def test_a_wrong_manifest_buys_nothing(manifest: list[dict[str, Any]], sandbox: Sandbox) -> None:
    await refused(InvalidManifest, manifest)
    assert {request.path.rpartition("/")[0] for request in sandbox.requests} <= {"/api/v1/models"}
    assert sandbox.bill.purchases == ()


@pytest.mark.parametrize("at_once", [0, -1])
async def test_nobody_at_work_is_refused_before_anything_is_bought(at_once: int, sandbox: Sandbox) -> None:
    assert f"at_once={at_once}" in await refused(ConfigurationError, pictures(2), at_once=at_once)
    assert sandbox.bill.purchases == ()


# ---------------------------------------------------------------- each row on its own


async def test_every_row_ends_for_itself(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("failed", prompt="refuses", reason="not in good taste")
    sandbox.fault("402", prompt="penniless")
    sandbox.fault("lost-answer-before-charge", prompt="vanishes")
    rows = [row("a"), row("f", "refuses"), row("b", "penniless"), row("u", "vanishes"), row("z")]
    report = await campaign(rows, name="mixed")
    assert ended(report) == {"a": "ok", "f": "failed", "b": "blocked", "u": "unknown", "z": "ok"}
    errors = {item.id: item.error or "" for item in report.items}
    for identity, part in {"f": "not in good taste", "b": "402", "u": "receipts adopt"}.items():
        assert part in errors[identity]
    assert (errors["a"], errors["z"]) == ("", "")
    assert [item.asset is not None for item in report.items] == [True, False, False, False, True]
    assert str(report) == "Campaign mixed: 2 ok, 1 failed, 1 blocked, 1 unknown; $0.04"


async def test_a_row_that_takes_too_long_is_unknown_and_the_next_run_goes_on_with_it(sandbox: Sandbox) -> None:
    sandbox.fault("stuck", prompt="never ends")
    report = await campaign([row("s", "never ends")], name="slow", timeout_seconds=1)
    assert ended(report) == {"s": "unknown"}
    assert " after 1 s" in str(report.items[0].error)
    assert (report.price_usd, report.undelivered_usd) == (CENTS, CENTS)
    assert str(report) == "Campaign slow: 1 unknown; $0.02, $0.02 of it not delivered yet"
    again = await campaign([row("s", "never ends")], name="slow", timeout_seconds=1)
    assert (again.undelivered_usd, again.items[0].reused, len(sandbox.bill)) == (CENTS, True, 1)


async def test_a_row_that_is_paid_for_is_never_called_blocked_or_failed(sandbox: Sandbox) -> None:
    sandbox.fault("look-401", times=None)
    report = await campaign([row("a"), row("b", motion_prompt="x")], name="refused")
    assert ended(report) == {"a": "unknown", "b": "unknown"}
    assert report.undelivered_usd == sandbox.bill.total_usd == 2 * CENTS
    for item in report.items:
        (generation_id,) = item.undelivered_usd
        assert f"Generation {generation_id} is paid for ($0.02)" in str(item.error)
    sandbox.clear_faults()
    again = await campaign([row("a"), row("b", motion_prompt="x")], name="refused")
    assert (ended(again), again.undelivered_usd) == ({"a": "ok", "b": "ok"}, 0)


async def test_what_is_paid_for_is_to_be_had_under_any_cap(sandbox: Sandbox) -> None:
    await campaign(pictures(3), name="paid", budget_usd=0.06)
    again = await campaign(pictures(3), name="paid", budget_usd=0.01)
    assert (len(sandbox.bill), again.price_usd) == (3, 3 * CENTS)


async def test_a_second_run_buys_only_what_is_missing(sandbox: Sandbox, store_url: str) -> None:
    sandbox.fault("failed", prompt="picture of r1")
    first = await campaign(pictures(4))
    assert (Counter(ended(first).values()), len(sandbox.bill)) == (Counter(ok=3, failed=1), 3)
    second = await campaign(pictures(4))
    assert (Counter(ended(second).values()), len(sandbox.bill)) == (Counter(ok=4), 4)
    assert [one.asset for one in first.items if one.asset] == [two.asset for two in second.items if two.id != "r1"]
    assert assets_of(await campaign(pictures(4))) == assets_of(second)
    assert (await campaign(pictures(1), take=2)).items[0].asset != second.items[0].asset
    assert len(sandbox.bill) == 5


async def test_equal_rows_are_one_purchase(sandbox: Sandbox) -> None:
    report = await campaign([row("a", "the same"), row("b", "the same"), row("c", "the same", take=2)], budget_usd=0.04)
    assert [len({item.asset for item in report.items}), len(sandbox.bill)] == [2, 2]


async def test_equal_animated_rows_are_priced_and_bought_as_one(sandbox: Sandbox) -> None:
    rows = [row(identity, "the same", motion_prompt="slowly") for identity in ("a", "b")]
    report = await campaign(rows, budget_usd=0.32)
    assert (Counter(ended(report).values()), len(sandbox.bill)) == (Counter(ok=2), 2)


async def test_what_a_dead_run_set_aside_does_not_stop_the_next(sandbox: Sandbox) -> None:
    session = open_session()
    rows = await read_manifest(pictures(3))
    held = f"{rows[0].request.receipt_key(session.client.base_url)}#1"
    await session.budgets.reserve([Cap("campaign-autumn", 3 * CENTS)], held, CENTS, "the dead")
    assert Counter(ended(await campaign(pictures(3), name="autumn", budget_usd=0.06)).values()) == Counter(ok=3)


async def test_a_picture_is_animated_and_both_are_the_rows(sandbox: Sandbox) -> None:
    rows = [row("still"), row("moves", motion_prompt="slowly", aspect_ratio="9:16")]
    still, moves = (await campaign(rows, budget_usd=0.34)).items
    assert [asset.content_type for asset in still.assets] == ["image/png"]
    assert [asset.content_type for asset in moves.assets] == ["image/png", "video/mp4"]
    assert moves.asset is moves.assets[1]
    assert (still.price_usd, moves.price_usd) == (CENTS, Decimal("0.32"))
    clip = next(generation for generation in sandbox.generations if generation.kind == "video")
    assert clip.parameters["aspect_ratio"] == "9:16"


async def test_a_clip_that_fails_keeps_its_picture_and_only_the_clip_is_tried_again(sandbox: Sandbox) -> None:
    sandbox.fault("failed", kind="video")
    rows = [row("moves", motion_prompt="slowly")]
    (item,) = (await campaign(rows)).items
    assert (item.status, item.price_usd, len(item.assets)) == (ItemStatus.FAILED, CENTS, 1)
    (item,) = (await campaign(rows)).items
    assert (item.status, item.price_usd, len(item.assets)) == (ItemStatus.OK, Decimal("0.32"), 2)
    assert [purchase.model for purchase in sandbox.bill] == ["gpt-4o-image", "veo-3.1-fast"]


# ---------------------------------------------------------------- budgets


async def test_all_runs_of_a_name_share_its_budget(sandbox: Sandbox) -> None:
    await campaign(pictures(3), name="autumn", budget_usd=0.1)
    others = [row(f"other {number}") for number in range(3)]
    message = await refused(BudgetExceeded, [*pictures(3), *others], name="autumn", budget_usd=0.1)
    assert "would cost $0.06 more, and the budget 'campaign-autumn' of $0.10 has $0.04 left" in message
    await campaign([*pictures(3), *others[:2]], name="autumn", budget_usd=0.1)
    assert len(sandbox.bill) == 5
    await campaign(others, name="winter", budget_usd=0.1)
    assert len(sandbox.bill) == 6


async def test_without_a_name_the_same_rows_share_a_budget(sandbox: Sandbox) -> None:
    assert campaign_name(await read_manifest(pictures(3))) == campaign_name(await read_manifest(pictures(3)))
    assert campaign_name(await read_manifest(pictures(3))) != campaign_name(await read_manifest(pictures(2)))
    report = await campaign(pictures(2), budget_usd=0.04)
    assert (await campaign(pictures(2), budget_usd=0.04)).name == report.name


async def test_a_cap_reached_by_others_blocks_the_rest_and_loses_nothing(sandbox: Sandbox) -> None:
    rows = await read_manifest(pictures(4))
    report = await make_campaign(rows, name="autumn", budget_usd=0.04, at_once=1)  # as if checked before
    assert Counter(ended(report).values()) == Counter(ok=2, blocked=2)
    assert "The budget 'campaign-autumn' allows $0.04" in (report.items[3].error or "")
    assert len(sandbox.bill) == 2


# ---------------------------------------------------------------- what is shown


async def shown(state: Any) -> tuple[dict[str, Artifact], list[TaskRun]]:
    """Return a flow run's artifacts by key and, as soon as the server has them all, its task runs."""
    (mine,) = [state.state_details.flow_run_id]
    async with get_client() as client:
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[mine])), limit=200
        )
        for _ in range(600):
            runs = await client.read_task_runs(
                task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[mine])), limit=200
            )
            if any(run.name.startswith("publish") and run.state_name == "Completed" for run in runs):
                break
            await asyncio.sleep(0.1)
    return {artifact.key: artifact for artifact in artifacts if artifact.key}, runs  # a stored result has none


async def test_progress_table_and_pictures_are_artifacts_and_each_row_is_one_task_run(sandbox: Sandbox) -> None:
    sandbox.fault("failed", prompt="refuses")
    rows = [*pictures(2), row("moves", motion_prompt="x"), row("bad", "refuses")]
    state = await campaign(rows, name="Autumn / 2026", return_state=True)
    artifacts, runs = await shown(state)
    assert set(artifacts) == {
        "campaign-autumn-2026",
        "campaign-autumn-2026-progress",
        "campaign-autumn-2026-pictures",
        "gpt-4o-image-picture-of-r0",
        "gpt-4o-image-picture-of-r1",
        "gpt-4o-image-picture-of-moves",
        "veo-3-1-fast-x",
    }
    assert artifacts["campaign-autumn-2026-progress"].data == 100.0
    table = json.loads(str(artifacts["campaign-autumn-2026"].data))
    assert [line["id"] for line in table] == ["bad", "r0", "r1", "moves"]
    assert str(artifacts["campaign-autumn-2026-pictures"].data).count("data:image/jpeg;base64,") == 3
    assert sorted(run.name[:14] for run in runs) == sorted(
        ["r0", "r1", "moves", "bad", "check Autumn /", "publish Autumn"]
    )


HOSTILE_IDS = ["a|b", "`code`", "<script>alert(1)</script>", "![x](http://x/y.png)", "# big", "x](javascript:alert(1))"]


async def test_ids_and_names_cannot_break_what_prefect_shows(sandbox: Sandbox) -> None:
    sandbox.fault("failed", prompt="refuses", reason="[no](javascript:x)\n# `or` <b>")
    name = "a `name` [x](javascript:alert(1)) <img src=x>"
    rows = [row(identity, f"picture {number}") for number, identity in enumerate(HOSTILE_IDS)]
    artifacts, _ = await shown(await campaign([*rows, row("bad", "refuses")], name=name, return_state=True))
    reader = MarkdownIt("commonmark").enable("table")
    table = next(json.loads(str(found.data)) for found in artifacts.values() if found.type == "table")
    cells = [reader.render(line["id"]) for line in table]
    assert cells == [f"<p>{html.escape(identity)}</p>\n" for identity in ["bad", *HOSTILE_IDS]]
    texts = [cell for line in table for cell in line.values()]
    texts += [found.description or "" for found in artifacts.values()]
    texts += [str(found.data) for found in artifacts.values() if found.type == "markdown"]
    rendered = "".join(map(reader.render, texts))
    assert set(re.findall(r"<(\w+)", rendered)) == {"p", "h1", "code", "img", "a"}
    assert {link[: len(sandbox.media_url)] for link in re.findall(r'href="([^"]+)"', rendered)} == {sandbox.media_url}
    assert set(re.findall(r'src="([^"]{11})', rendered)) == {"data:image/"}


async def test_the_gallery_shows_every_row_and_gives_nothing_away(sandbox: Sandbox, store_url: str) -> None:
    sandbox.fault("failed", prompt="refuses")
    rows = [row("<b>bold</b>"), row("moves", motion_prompt="x"), row("bad", "refuses")]
    state = await campaign(rows, name="autumn", return_state=True)
    gallery = await gallery_of("autumn")
    assert gallery.count("data:image/jpeg;base64,") == 2
    assert gallery.count("<figure") == 3
    assert "&lt;b&gt;bold&lt;/b&gt;" in gallery
    assert "<b>bold" not in gallery
    artifacts, _ = await shown(state)
    for text in (gallery, *map(str, artifacts.values())):
        for secret in ("X-Amz-", "Signature", sandbox.token):
            assert secret not in text
    assert sandbox.media_url not in gallery


async def gallery_of(name: str) -> str:
    document = await open_session().store.read(f"campaigns/{name}/gallery.html")
    assert document is not None
    return document.body.decode()


async def test_campaigns_whose_names_have_no_letter_a_to_z_have_galleries_of_their_own(sandbox: Sandbox) -> None:
    galleries = [
        await publish_campaign(CampaignReport.of(name, ())) for name in ("秋", "冬", "Über", "ber", "autumn", "!")
    ]
    assert len(set(galleries)) == 6
    assert galleries[4].endswith("/campaigns/autumn/gallery.html")


async def test_long_names_have_galleries_of_their_own_too(sandbox: Sandbox) -> None:
    galleries = [await publish_campaign(CampaignReport.of("n" * 300 + end, ())) for end in ("", "x", "y")]
    assert len(set(galleries)) == 3


async def test_assets_that_are_gone_spoil_no_gallery(sandbox: Sandbox) -> None:
    report = await campaign(pictures(2), name="autumn")
    asset = report.items[0].asset
    assert asset is not None
    os.remove(asset.uri.removeprefix("file://"))  # noqa: PTH107 - in an async test there is no Path
    await publish_campaign(report)
    assert (await gallery_of("autumn")).count("data:image") == 2, "thumbnails are kept by themselves"
    shutil.rmtree(open_session().store.uri("thumbnails").removeprefix("file://"))
    await publish_campaign(report)
    assert (await gallery_of("autumn")).count("data:image") == 1


def test_rows_without_a_thumbnail_of_their_own_show_their_files(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    asset = Asset(uri=store.uri("assets/a b.png"), sha256="ab", size=1, content_type="image/png", generation_id="g")
    elsewhere = asset.model_copy(update={"uri": "s3://other/a.png"})
    items = [CampaignItem(f"r{number}", ItemStatus.OK, (Step(Kind.IMAGE, "v1", asset),)) for number in range(3)]
    items.append(CampaignItem("elsewhere", ItemStatus.OK, (Step(Kind.IMAGE, "v1", elsewhere),)))
    gallery = "".join(page(CampaignReport.of("large", items), [Tile(item) for item in items], store))
    assert gallery.count('<img src="../../assets/a%20b.png" alt="" loading="lazy">') == 3
    assert 'href="s3://other/a.png"' in gallery


# ---------------------------------------------------------------- many, and killed


@pytest.mark.parametrize(
    ("in_a_mapping", "long"),
    [(False, "a lighthouse " * 150), (True, "a lighthouse " * 150), (False, "маяк на рассвете " * 20)],
)
async def test_a_list_larger_than_prefect_keeps_of_a_run_is_made_all_the_same(
    in_a_mapping: bool, long: str, sandbox: Sandbox
) -> None:
    rows = [row(f"r{number}", f"{number} {long}") for number in range(300)]
    assert len(json.dumps(rows)) > 512 * 1024
    sandbox.fault("422", times=None)
    state = await campaign({"rows": rows} if in_a_mapping else rows, name="long", return_state=True)
    report = await state.aresult()
    assert len(ended(report)) == 300  # one whose refusal is lost on the way is in doubt, and not failed
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    async with get_client() as client:
        kept = (await client.read_flow_run(run_id)).parameters
    assert (kept["manifest"], kept["name"]) == ("300 rows, too many to be kept here", "long")
    with pytest.raises(ConfigurationError, match="has an unknown file extension"):
        await campaign(kept["manifest"])


def at_least(sandbox: Sandbox, bought: int) -> bool:
    return len(sandbox.bill) >= bought


async def test_at_most_so_many_rows_are_in_the_making(sandbox: Sandbox) -> None:
    sandbox.speed = 0  # nothing is over before the clock is moved
    running = asyncio.create_task(campaign(pictures(8), at_once=3))
    for bought in (3, 6, 8):
        await asyncio.to_thread(wait_until, partial(at_least, sandbox, bought))
        await asyncio.sleep(0.2)
        assert len(sandbox.bill) == bought
        sandbox.advance(60)
    assert Counter(ended(await running).values()) == Counter(ok=8)


@pytest.mark.slow
async def test_hundreds_of_rows_are_bought_once_each_and_all_arrive(sandbox: Sandbox) -> None:
    state = await campaign(pictures(300), name="many", budget_usd=6, return_state=True)
    report = await state.aresult()
    assert Counter(ended(report).values()) == Counter(ok=300)
    assert (len(sandbox.bill), report.price_usd) == (300, 6)


def child_environment() -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.kill
def test_killed_in_the_middle_and_run_again_it_pays_each_row_once(
    sandbox: Sandbox, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_REQUESTS_PER_MINUTE", "600")  # it has some two seconds to go when it is killed
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "2")  # what may have been spent stays set aside, besides what is
    manifest = tmp_path / "rows.json"
    manifest.write_text(json.dumps([*pictures(25), row("moves", motion_prompt="x")]))
    process = subprocess.Popen([sys.executable, SCRIPT, str(manifest)], env=child_environment())
    wait_until(lambda: len(sandbox.bill) >= 8 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 8 <= len(sandbox.bill) < 26
    # What was killed between its note and its sending is in doubt for a second, and then proven absent.
    again = subprocess.run(
        [sys.executable, SCRIPT, str(manifest)], env=child_environment(), capture_output=True, text=True, check=False
    )
    assert "26 ok; $0.82" in again.stdout, again.stderr
    assert (len(sandbox.bill), sandbox.bill.total_usd) == (27, Decimal("0.82"))
    assert len(stored(store_url, ".png")) == 26


def stored(store: str, ending: str) -> list[str]:
    """Return the assets in a store, found without our own code."""
    if not store.startswith("s3://"):
        return [str(path) for path in (Path(store) / "assets").rglob(f"*{ending}")]
    bucket, _, prefix = store.removeprefix("s3://").partition("/")
    with closing(boto3.client("s3")) as client:
        listed = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/assets/")
    return [item["Key"] for item in listed.get("Contents", ()) if item["Key"].endswith(ending)]


def test_as_a_script_without_a_manifest_it_says_how_it_is_used() -> None:
    ran = subprocess.run([sys.executable, SCRIPT], env=child_environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "usage: python flows/campaign.py MANIFEST"
