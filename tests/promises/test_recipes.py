"""The recipes run as they stand in the documentation: tables in, tables out, and what was paid for is in them."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.prefect_processes import DeployedTree, copy_deployable, running_deployments, running_worker
from tests.support.servers import Reply, Request, relayed, serving

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
MAX_LINES = 25

PRODUCTS = pl.DataFrame(
    {
        "sku": [1, 2, 3],
        "name": ["lamp", "chair", "shelf"],
        "color": ["red", "grey", "white"],
        "stock": [4, 0, 7],
        "added": [date(2026, 11, 24), date(2026, 11, 24), date(2026, 11, 25)],
    }
)


def blocks_of(heading: str, language: str = "python") -> list[str]:
    """Return the blocks below the heading that begins so."""
    (section,) = [text for text in PAGE.split("\n## ") if text.startswith(heading)]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def executed(source: str) -> dict[str, Any]:
    """Run a block as a program and return its names."""
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(source, "recipe", "exec"), names)
    return names


@pytest.fixture
def shop(sandbox: Sandbox) -> Sandbox:
    """The products in every form that a recipe reads, and a sandbox."""
    PRODUCTS.write_parquet("products.parquet")
    PRODUCTS.write_csv("products.csv")
    with duckdb.connect("shop.duckdb") as database:
        database.sql("CREATE TABLE products AS FROM 'products.parquet'")
        database.sql("CREATE TABLE pictures (sku BIGINT, image_uri VARCHAR, price_usd DECIMAL(12, 6))")
    return sandbox


def in_shop(sql: str) -> list[Any]:
    with duckdb.connect("shop.duckdb") as database:
        return database.sql(sql).fetchall()


def billed(sandbox: Sandbox) -> Decimal:
    return sum((purchase.price_usd for purchase in sandbox.bill), Decimal(0))


def test_a_recipe_fits_on_a_screen_and_every_block_is_python() -> None:
    sources = re.findall(r"^```(?:python|py)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(sources) >= 9
    for source in sources:
        ast.parse(source)
        assert len(source.splitlines()) <= MAX_LINES


def test_every_recipe_in_python_is_run_below() -> None:
    here = Path(__file__).read_text()
    headings = [text.partition("\n")[0] for text in PAGE.split("\n## ")[1:] if "\n```python\n" in text]
    assert [heading for heading in headings if f'blocks_of("{re.split("[:,]", heading)[0]}")' not in here] == []


@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
def test_a_query_of_duckdb_comes_back_as_rows_of_a_table(shop: Sandbox) -> None:
    (source,) = blocks_of("DuckDB")
    executed(source)
    pictures = in_shop("SELECT sku, image_uri, price_usd FROM pictures ORDER BY sku")
    assert [sku for sku, _, _ in pictures] == [1, 3]
    assert all(uri.endswith(".png") for _, uri, _ in pictures)
    assert sum(price for _, _, price in pictures) == billed(shop) == Decimal("0.04")
    assert {generation.prompt for generation in shop.generations} == {
        "A red lamp, studio light",
        "A white shelf, studio light",
    }


@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
def test_the_results_are_joined_in_pandas(shop: Sandbox) -> None:
    (source,) = blocks_of("pandas")
    executed(source)
    joined = pd.read_csv("products-with-pictures.csv")
    assert list(joined["sku"]) == [1, 2, 3]
    assert list(joined["status"]) == ["ok"] * 3
    assert joined["price_usd"].sum() == pytest.approx(float(billed(shop)))


@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
def test_parquet_comes_in_and_goes_out_by_polars(shop: Sandbox) -> None:
    (source,) = blocks_of("Polars")
    executed(source)
    joined = pl.read_parquet("products-with-clips.parquet")
    assert joined["sku"].to_list() == [1, 3]
    assert all(uri.endswith(".mp4") for uri in joined["video_uri"])
    assert joined["price_usd"].sum() == billed(shop)


@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
def test_the_sql_of_the_dbt_models_builds_around_the_campaign(shop: Sandbox, tmp_path: Path) -> None:
    to_picture, pictures = blocks_of("dbt", "sql")
    (source,) = blocks_of("dbt")
    results = f"'{tmp_path / 'store'}/campaigns/shop/results.parquet'"
    compiled = [
        re.sub(r"\{\{ ref\('(\w+)'\) \}\}", r'"\1"', sql).replace("{{ source('veogen', 'results') }}", results)
        for sql in (to_picture, pictures)
    ]
    in_shop("DROP TABLE pictures; SELECT 1")
    in_shop(f"CREATE VIEW to_picture AS ({compiled[0]}); SELECT 1")
    executed(source)
    in_shop(f"CREATE TABLE pictures AS ({compiled[1]}); SELECT 1")
    assert in_shop("SELECT sku, name, price_usd FROM pictures ORDER BY sku") == [
        (1, "lamp", Decimal("0.020000")),
        (3, "shelf", Decimal("0.020000")),
    ]


@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
def test_a_day_is_bought_once_and_all_days_are_one_table(shop: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    flow, query = blocks_of("A partition a day")
    daily_pictures = executed(flow)["daily_pictures"]
    days = ["2026-11-24", "2026-11-25", "2026-11-24", "2026-11-26"]
    uris = [asyncio.run(daily_pictures(day)) for day in days]
    assert [uri and uri.split("/")[-2] for uri in uris] == [*(f"daily-{day}" for day in days[:3]), None]
    assert billed(shop) == Decimal("0.06")
    capsys.readouterr()
    executed(query)
    expected = [("2026-11-24", 2, Decimal("0.040000")), ("2026-11-25", 1, Decimal("0.020000"))]
    assert capsys.readouterr().out.strip() == str(expected)


@pytest.fixture
def deployed(shop: Sandbox, tmp_path: Path) -> Iterator[DeployedTree]:
    tree = copy_deployable(tmp_path / "tree")
    with running_deployments(tree, tmp_path / "prefect") as environment:
        yield DeployedTree(environment, tree)


@pytest.fixture
def busy_api(deployed: DeployedTree) -> Iterator[str]:
    """The address of the deployments' server, which carries out every request, and responds to every other with 503."""
    api = deployed.environment["PREFECT_API_URL"]
    requests = count(1)

    def respond(request: Request) -> Reply:
        reply = relayed(api, request)
        return Reply(503, body=b"<html>") if next(requests) % 2 else reply

    with serving(respond) as origin:
        yield origin + "/api"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.server
def test_another_orchestrator_has_a_campaign_made_over_http_by_a_busy_server(
    deployed: DeployedTree, busy_api: str, shop: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", busy_api)
    (source,) = blocks_of("Airflow")
    run_campaign = executed(source)["run_campaign"]
    manifest = tmp_path / "2026-11-24.parquet"
    rows = PRODUCTS.select(pl.lit("gpt-4o-image").alias("model"), id="sku", prompt="name")
    rows.write_parquet(manifest)
    wanted: dict[str, Any] = {"manifest": str(manifest), "name": "daily-2026-11-24", "take": "2026-11-24"}
    with running_worker(deployed.environment, deployed.tree):
        for key in ("scheduled-1", "scheduled-1", "scheduled-2"):
            run_campaign(key, **wanted)
        pl.DataFrame({"id": ["a"], "model": ["gpt-4o-image"]}).write_parquet(manifest)
        with pytest.raises(RuntimeError, match="prompt: is required"):
            run_campaign("wrong", **wanted)
    with deployed.client() as client:
        assert len(client.read_flow_runs()) == 3
    results = pl.read_parquet(tmp_path / "store" / "campaigns" / "daily-2026-11-24" / "results.parquet")
    assert results["status"].to_list() == ["ok"] * 3
    assert results["price_usd"].sum() == billed(shop) == Decimal("0.06")
