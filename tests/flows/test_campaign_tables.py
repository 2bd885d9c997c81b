"""A campaign as a step between tables: columns and labels come along, and the results are a table again."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pandas as pd
import polars as pl
import pytest
from prefect import flow

from flows.campaign import campaign
from prefect_veogen import CampaignReport, GenerationRequest
from prefect_veogen.campaign.references import picture_of_row
from prefect_veogen.errors import ConfigurationError, InvalidManifest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import open_store
from prefect_veogen.tasks.campaign import Row, Rows, check_campaign, keep_results, make_campaign
from prefect_veogen.upkeep.costs import Grouping, read_costs

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]


def row(identity: str, prompt: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": identity, "model": "gpt-4o-image", "prompt": prompt or f"picture of {identity}", **fields}


def query(sql: str) -> list[Any]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


def path_of(uri: str) -> Path:
    return Path(urlsplit(uri).path)


async def lines_of(report: CampaignReport) -> list[dict[str, Any]]:
    """Return the table in the store, read without our own parsing."""
    folder, _, name = report.results_uri.rpartition("/")
    document = await open_store(folder).read(name)
    assert document is not None
    return [json.loads(line) for line in document.body.splitlines()]


def read(uri: str) -> str:
    return path_of(uri).read_text()


def statuses(report: CampaignReport) -> dict[str, str]:
    return {" ".join(item.key): item.status.value for item in report.items}


# ---------------------------------------------------------------- a table out


async def test_the_results_are_a_table_with_the_columns_that_came_along(sandbox: Sandbox, store_url: str) -> None:
    sandbox.fault("failed", prompt="refuses", times=None)
    rows = [row("a", sku=7, locale="de"), row("moves", motion_prompt="it turns", sku=8), row("bad", "refuses", sku=9)]
    report = await campaign(rows, name="Spring", carry="*", labels={"project": "spring"})
    assert report.results_uri.endswith("/campaigns/spring/results.jsonl")
    lines = await lines_of(report)
    assert lines == report.records()
    a, moves, bad = lines
    assert len({tuple(line) for line in lines}) == 1
    assert [line["sku"] for line in lines] == [7, 8, 9]
    assert [line["locale"] for line in lines] == ["de", None, None]
    assert [line["label_project"] for line in lines] == ["spring"] * 3
    assert (a["status"], a["take"], a["price_usd"], a["reused"], a["error"]) == ("ok", "1", 0.02, False, None)
    assert a["image_uri"].endswith(".png")
    assert (a["image_model"], a["image_price_usd"], a["image_label_project"]) == ("gpt-4o-image", 0.02, "spring")
    assert moves["video_uri"].endswith(".mp4")
    assert moves["price_usd"] == pytest.approx(moves["image_price_usd"] + moves["video_price_usd"])
    assert (bad["status"], bad["error_type"], bad["image_uri"]) == ("failed", "ContentRejected", None)
    assert bad["image_receipt"]
    assert "refuses" in bad["prompt"]
    for line in lines:
        assert line["flow_run_id"]
        assert line["finished_at"].startswith("20")


async def test_the_parquet_file_has_the_same_rows_with_types_that_stay_when_all_is_missing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fault("failed", prompt="refuses", times=None)
    bad = await campaign([row("bad", "refuses", sku=None)], name="bad", carry="*")
    good = await campaign([row("good", sku=None)], name="good", carry="*")
    kinds = []
    for report in (bad, good):
        path = path_of(report.results_uri).with_suffix(".parquet")
        kinds.append(dict(query(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM '{path}')")))
    assert kinds[0] == kinds[1]
    assert kinds[0]["price_usd"] == kinds[0]["video_price_usd"] == "DECIMAL(12,6)"
    assert kinds[0]["image_bytes"] == "BIGINT"
    assert kinds[0]["finished_at"] == "TIMESTAMP WITH TIME ZONE"
    assert kinds[0]["reused"] == "BOOLEAN"
    path = path_of(good.results_uri).with_suffix(".parquet")
    assert query(f"SELECT id, price_usd FROM '{path}'") == [("good", Decimal("0.020000"))]


async def test_both_tables_are_read_by_a_database_and_add_up_to_the_bill_by_label(sandbox: Sandbox) -> None:
    teams: list[dict[str, Any]] = [{"sku": sku, "label_team": f"team {sku % 2}"} for sku in range(5)]
    rows = [row(f"{number}", motion_prompt="it turns", **fields) for number, fields in enumerate(teams)]
    rows.append(row("same again", "picture of 0", label_team="team 1"))  # bought by whoever came first, for its team
    report = await campaign(rows, name="n", carry="*", take="2026-11-24")
    lines, columns = path_of(report.results_uri), path_of(report.results_uri).with_suffix(".parquet")
    read = [f"read_json_auto('{lines}')", f"read_parquet('{columns}')"]
    taken = "SELECT id, sku, take::VARCHAR, image_uri, price_usd::DECIMAL(12, 6), finished_at::TIMESTAMP"
    found = [query(f"SET TimeZone = 'UTC'; {taken} FROM {table} ORDER BY id") for table in read]
    assert found[0] == found[1]
    assert len(found[0]) == 6
    bought = " UNION ".join(
        f"SELECT {kind}_generation_id, {kind}_label_team AS team, {kind}_price_usd AS usd FROM {read[1]} "
        f"WHERE {kind}_generation_id IS NOT NULL"
        for kind in ("image", "video")
    )
    spent = dict(query(f"SELECT team, sum(usd) FROM ({bought}) GROUP BY team"))
    ledger = await on_io(read_costs(open_session().ledger, Grouping("label", "team")))
    assert spent == {line.key: line.spent_usd for line in ledger.rows}
    assert sum(spent.values()) == sum(purchase.price_usd for purchase in sandbox.bill) == report.price_usd


async def test_a_wide_table_comes_along_whole_with_any_names_and_is_a_manifest_again(sandbox: Sandbox) -> None:
    names = ["Product Name", "größe", "日本", "a.b", 'q"uote', "labels", "label", "index", *map(str, range(200))]
    wide = pl.DataFrame({"id": ["a"], "model": ["gpt-4o-image"], "prompt": ["x"]} | {name: [7] for name in names})
    report = await campaign(wide, name="n", carry="*")
    path = path_of(report.results_uri).with_suffix(".parquet")
    columns = [name for name, *_ in query(f"DESCRIBE SELECT * FROM '{path}'")]
    assert [name for name in columns if name in names] == names
    again = await campaign(str(path), name="n")
    assert again.records() == report.records()
    assert len(sandbox.bill) == 1


@pytest.mark.parametrize("kind", ["polars", "pandas", "pyarrow"])
async def test_the_report_gives_a_frame_of_each_library(kind: Any, sandbox: Sandbox) -> None:
    report = await campaign([row("a", sku=7), row("b", sku=8)], carry=["sku"])
    frame: Any = report.to_frame(kind)
    assert list(frame["sku"] if kind != "pyarrow" else frame["sku"].to_pylist()) == [7, 8]
    money = list(frame["price_usd"] if kind != "pyarrow" else frame["price_usd"].to_pylist())
    assert money == [Decimal("0.02")] * 2


async def test_an_unknown_kind_of_frame_is_refused(sandbox: Sandbox) -> None:
    report = await campaign([row("a")])
    with pytest.raises(ConfigurationError, match="polars, pandas, pyarrow"):
        report.to_frame("excel")  # type: ignore[arg-type]


async def test_what_is_kept_of_a_run_is_small_and_its_rows_are_read_from_the_table(
    sandbox: Sandbox, store_url: str
) -> None:
    state = await campaign([row(str(number)) for number in range(40)], return_state=True)
    report = CampaignReport.model_validate_json((await state.aresult()).model_dump_json())
    assert len(report.model_dump_json()) < 600
    assert (report.rows, report.counts, report.price_usd) == (40, {"ok": 40}, Decimal("0.80"))
    assert [item.id for item in report.items] == [str(number) for number in range(40)]
    assert all(item.asset and item.asset.size for item in report.items)
    assert len(report.records()) == 40


async def test_a_report_without_its_table_says_what_to_do(sandbox: Sandbox) -> None:
    report = CampaignReport.model_validate_json((await campaign([row("a")])).model_dump_json())
    path_of(report.results_uri).unlink()
    with pytest.raises(ConfigurationError, match="There is no table of results at file:"):
        report.records()


async def test_reused_purchases_keep_their_labels_and_the_results_show_both(sandbox: Sandbox) -> None:
    await campaign([row("a")], labels={"project": "spring"})
    again = await campaign([row("a"), row("b")], labels={"project": "autumn"})
    a, b = again.records()
    assert (a["label_project"], a["image_label_project"], a["reused"], a["price_usd"]) == (
        "autumn",
        "spring",
        True,
        0.02,
    )
    assert (b["label_project"], b["image_label_project"], b["reused"]) == ("autumn", "autumn", False)


async def test_what_is_carried_along_is_in_the_sidecar_and_changing_it_buys_nothing(sandbox: Sandbox) -> None:
    report = await campaign([row("a", sku=7)], carry="*", labels={"project": "spring"})
    asset = report.items[0].asset
    assert asset is not None
    sidecar = json.loads(read(f"{asset.uri}.json"))
    assert (sidecar["carried"], sidecar["labels"]) == ({"sku": 7}, {"project": "spring"})
    again = await campaign([row("a", sku=8)], carry="*")
    assert again.records()[0]["sku"] == 8
    assert len(sandbox.bill) == 1


# ---------------------------------------------------------------- again


async def test_only_what_failed_is_made_again_and_the_table_is_complete(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.fault("failed", prompt="refuses", times=None)
    rows = [row("a"), row("bad", "refuses"), row("b")]
    first = await campaign(rows, name="n")
    sandbox.clear_faults()
    again = await campaign(rows, name="n", only="failed")
    assert statuses(again) == {"a 1": "ok", "bad 1": "ok", "b 1": "ok"}
    lines = await lines_of(again)
    assert [line["id"] for line in lines] == ["a", "bad", "b"]
    before = {line["id"]: line for line in first.records()}
    assert [lines[0], lines[2]] == [before["a"], before["b"]]
    assert lines[1]["flow_run_id"] != before["bad"]["flow_run_id"]


async def test_without_earlier_results_all_rows_are_made(sandbox: Sandbox) -> None:
    assert statuses(await campaign([row("a")], only="failed")) == {"a 1": "ok"}
    with pytest.raises(ConfigurationError, match="only='new'"):
        await keep_results(Rows(), "new", name="n")  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
async def test_a_table_of_results_is_a_manifest_of_what_is_missing(ending: str, sandbox: Sandbox) -> None:
    sandbox.fault("failed", prompt="refuses", times=None)
    rows = [row("hero"), row("moves", motion_prompt="it turns"), row("bad", "refuses", image_urls=["row:hero"], sku=7)]
    first = await campaign(rows, name="n", carry="*", labels={"project": "spring"}, variants=2)
    sandbox.clear_faults()
    bought = len(sandbox.bill)
    again = await campaign(str(path_of(first.results_uri).with_suffix(ending)), name="n")
    assert set(statuses(again).values()) == {"ok"}
    assert [item.key for item in again.items] == [item.key for item in first.items]
    assert [line["sku"] for line in again.records()] == [line["sku"] for line in first.records()]
    assert {line["label_project"] for line in again.records()} == {"spring"}
    assert len(sandbox.bill) == bought + 2
    third = await campaign(again.results_uri, name="n", variants=2)
    assert len(sandbox.bill) == bought + 2
    assert third.records() == again.records()


# ---------------------------------------------------------------- pictures of other rows, variants


async def test_a_picture_is_used_by_three_rows_and_bought_once(sandbox: Sandbox, store_url: str) -> None:
    clips = [row(f"clip {n}", f"she walks {n}", model="veo-3.1-fast", image_urls=["row:hero"]) for n in range(2)]
    rows = [*clips, row("hero"), row("still", "at night", image_urls=["row:hero"])]
    report = await campaign(rows)
    assert set(statuses(report).values()) == {"ok"}
    assert len(sandbox.bill) == 4
    assert [line["id"] for line in report.records()] == ["clip 0", "clip 1", "hero", "still"]
    assert len((await campaign(rows)).items) == 4
    assert len(sandbox.bill) == 4


async def test_a_row_whose_picture_fails_blocks_the_rows_that_use_it(sandbox: Sandbox) -> None:
    sandbox.fault("failed", prompt="refuses", times=None)
    rows = [row("user", image_urls=["row:hero"]), row("hero", "refuses"), row("user of user", image_urls=["row:user"])]
    report = await campaign(rows)
    assert statuses(report) == {"user 1": "blocked", "hero 1": "failed", "user of user 1": "blocked"}
    assert "The row 'hero', whose picture it uses, is failed" in str(report.items[0].error)
    assert len(sandbox.bill) == 0


async def test_a_row_that_makes_a_clip_lends_no_picture(sandbox: Sandbox) -> None:
    rows = [row("user", image_urls=["row:clip"]), row("clip", model="veo-3.1-fast")]
    with pytest.raises(InvalidManifest, match=r"row 1 \(user\): image_urls: row:clip makes a video, not a picture"):
        await campaign(rows)
    assert len(sandbox.bill) == 0


async def test_variants_are_made_once_each_and_have_a_row_each(sandbox: Sandbox) -> None:
    rows = [row("a", variants=3), row("b", motion_prompt="it turns")]
    report = await campaign(rows, take="2026-11-24")
    assert list(statuses(report)) == ["a 2026-11-24", "a 2026-11-24.2", "a 2026-11-24.3", "b 2026-11-24"]
    assert len(sandbox.bill) == 5
    await campaign(rows, take="2026-11-24")
    assert len(sandbox.bill) == 5
    await campaign(rows, take="2026-11-25")
    assert len(sandbox.bill) == 10


# ---------------------------------------------------------------- tables in


@pytest.mark.parametrize(
    "library",
    [pd.DataFrame, pl.DataFrame, lambda columns: duckdb.from_arrow(pl.DataFrame(columns).to_arrow())],
    ids=["pandas", "polars", "duckdb"],
)
async def test_a_frame_is_a_manifest_whose_gaps_are_unset(library: Any, sandbox: Sandbox) -> None:
    columns = {
        "id": [1, 2],
        "model": ["gpt-4o-image"] * 2,
        "prompt": ["a", "b"],
        "motion_prompt": [None, "it turns"],
        "motion_duration": [None, 8.0],
        "sku": ["x", None],
    }
    report = await campaign(library(columns), carry="*")
    assert [line["sku"] for line in report.records()] == ["x", None]
    assert [line["motion_duration"] for line in report.records()] == [None, 8]
    assert len(sandbox.bill) == 3


async def test_templates_fill_prompts_from_columns(sandbox: Sandbox) -> None:
    rows = [{"id": "a", "model": "gpt-4o-image", "color": "red", "name": "kettle"}]
    report = await campaign(rows, prompt_template="A {color} {name}, studio light", carry=["color"])
    (line,) = report.records()
    assert (line["prompt"], line["color"], line["name"]) == ("A red kettle, studio light", "red", "kettle")


async def test_a_generator_is_a_manifest(sandbox: Sandbox) -> None:
    assert len((await campaign(row(str(number)) for number in range(3))).items) == 3


# ---------------------------------------------------------------- rows that were edited since


async def test_a_row_that_was_edited_is_made_again_though_it_ended_well(sandbox: Sandbox) -> None:
    rows = [row("a"), row("hero"), row("user", image_urls=["row:hero"]), row("moves", motion_prompt="it turns")]
    await campaign(rows, name="n")
    bought = len(sandbox.bill)
    edited = [row("a", "another"), row("hero", "a hat"), rows[2], row("moves", motion_prompt="it falls")]
    again = await campaign(edited, name="n", only="failed")
    assert len(sandbox.bill) == bought + 4  # a, the hero, what uses it, and the clip alone
    assert again.records() == await lines_of(again)
    whole = await campaign(edited, name="all of them")
    assert [item.asset and item.asset.uri for item in again.items] == [
        item.asset and item.asset.uri for item in whole.items
    ]
    assert len(sandbox.bill) == bought + 4


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
async def test_a_row_edited_in_a_table_of_results_is_made_again(ending: str, sandbox: Sandbox) -> None:
    first = await campaign([row("a"), row("b"), row("c", image_urls=["row:a"])], name="n", variants=2)
    bought = len(sandbox.bill)
    frame = first.to_frame("polars").with_columns(
        prompt=pl.when(pl.col("id") == "b").then(pl.lit("another")).otherwise(pl.col("prompt"))
    )
    again = await campaign(frame.sort("take", descending=True), name="n")
    assert len(sandbox.bill) == bought + 2
    made, before = ({item.key: item.asset and item.asset.uri for item in each.items} for each in (again, first))
    assert {key for key in made if made[key] != before[key]} == {("b", "1"), ("b", "1.2")}


async def test_what_is_kept_takes_the_columns_and_labels_of_now_along(sandbox: Sandbox) -> None:
    await campaign([row("a", sku=1)], name="n", carry=["sku"], labels={"project": "old"})
    again = await campaign([row("a", sku=2, size="L")], name="n", carry="*", labels={"project": "new"}, only="failed")
    (line,) = await lines_of(again)
    assert (line["sku"], line["size"], line["label_project"], line["image_label_project"]) == (2, "L", "new", "old")
    assert len(sandbox.bill) == 1


async def test_of_a_hero_in_variants_the_first_lends_its_picture_whichever_is_ready_first(sandbox: Sandbox) -> None:
    await campaign([row("hero", take="1.2")])
    sandbox.fault("stuck", prompt="picture of hero")
    rows = [row("hero", variants=2), row("user", image_urls=["row:hero"])]
    report = await campaign(rows, timeout_seconds=1)
    assert statuses(report) == {"hero 1": "unknown", "hero 1.2": "ok", "user 1": "blocked"}
    assert len(sandbox.bill) == 2


async def test_rows_made_by_hand_that_use_a_picture_of_none_are_refused(sandbox: Sandbox) -> None:
    request = GenerationRequest(model="gpt-4o-image", prompt="x", image_urls=[picture_of_row("row:nobody")])
    for use in (check_campaign, make_campaign):

        @flow
        async def by_hand(use: Any = use) -> None:
            await use([Row("a", request)], name="n")

        with pytest.raises(InvalidManifest, match=r"row 1 \(a\): image_urls: row:nobody: there is no row"):
            await by_hand()
    assert len(sandbox.bill) == 0
