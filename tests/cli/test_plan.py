"""`plan`: what a request or a manifest costs and whether it can be bought, before anything is."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.commands import FOX, Run, bought, lost
from tests.support.media import png


def test_a_plan_prices_a_request_and_buys_nothing(sandbox: Sandbox, run: Run) -> None:
    code, out, _ = run("plan", "veo-3.1-fast", "waves [bold]at[/bold] night :wave:", "--resolution", "4k")
    assert code == 0
    assert "waves [bold]at[/bold] night :wave:  $0.90" in out
    assert "Total: $0.90" in out
    assert "Balance: $100.00" in out
    assert len(sandbox.bill) == 0


def test_a_plan_of_a_manifest_knows_what_is_bought_and_what_is_double(
    sandbox: Sandbox, run: Run, tmp_path: Path
) -> None:
    bought()
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "id,model,prompt,duration,motion_prompt\n"
        "a,gpt-4o-image,a red fox,,\n"
        "b,gpt-4o-image,a grey fox,,it runs\n"
        "c,gpt-4o-image,a grey fox,,\n"
        "d,grok-video-1,waves,6,\n"
    )
    code, out, _ = run("plan", str(rows), "--json")
    items = json.loads(out)["items"]
    assert code == 0
    assert [Decimal(item["usd"]) for item in items] == [0, Decimal("0.02"), Decimal("0.3"), 0, Decimal("0.18")]
    assert [item["already_bought"] for item in items] == [True, False, False, True, False]
    lines = run("plan", str(rows))[1].splitlines()
    assert lines[1].endswith("already bought")
    assert lines[4].endswith("same as above")
    assert "Total: $0.50" in lines
    assert [line.split("  ")[0] for line in lines[1:4]] == ["line 2 (a)", "line 3 (b)", "line 3 (b)"]
    assert [item["row"] for item in items] == [f"line {line}" for line in ("2 (a)", "3 (b)", "3 (b)", "4 (c)", "5 (d)")]


def test_a_plan_says_of_a_purchase_in_doubt_that_it_may_be_paid_already(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost(sandbox, monkeypatch)
    code, out, _ = run("plan", FOX.model, FOX.prompt)
    assert code == 0
    assert "in doubt: may be paid already" in out
    described = json.loads(run("plan", FOX.model, FOX.prompt, "--json")[1])
    assert (described["items"][0]["in_doubt"], Decimal(described["in_doubt_usd"])) == (True, Decimal("0.02"))


def test_a_plan_names_the_rows_that_would_be_refused(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,model,prompt\na,gpt-4o-image,a fox\nb,gpt-40-image,a fox\n")
    code, out, _ = run("plan", str(rows))
    assert code == 1
    assert "line 3 (b) would be refused. " in out
    assert "'gpt-40-image'; nearest: gpt-4o-image (HTTP 404" in out


def test_a_plan_tells_in_one_go_what_is_wrong_with_a_table_and_what_its_models_do_not_offer(
    sandbox: Sandbox, run: Run, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,model,prompt,duration\na,gpt-40-image,a fox,\nb,gpt-4o-image,a fox,ten\nc,sora-2,waves,7\n")
    code, _, err = run("plan", str(rows))
    assert (code, "has 3 problem(s)" in err) == (1, True)
    for part in ("line 2 (a): model: ", "line 3 (b): duration: must be", "line 4 (c): duration: sora-2 does not"):
        assert part in err


def test_a_plan_says_how_sure_it_is(sandbox: Sandbox, run: Run) -> None:
    _, out, _ = run("plan", "grok-video-1", "waves")
    assert "Total: at most $0.90" in out


def test_a_plan_that_would_be_refused_is_1_and_names_what_is_allowed(sandbox: Sandbox, run: Run) -> None:
    code, out, _ = run("plan", "gpt-4o-image", "a fox", "--aspect-ratio", "5:7")
    assert code == 1
    assert "aspect_ratio: gpt-4o-image does not offer this (got '5:7'); allowed: 16:9" in out
    assert "Correct the request" in out
    (item,) = json.loads(run("plan", "veo-99", "a fox", "--json")[1])["items"]
    assert "`prefect-veogen models`" in item["next_step"]


MODEL_HINT = "If it is a model: give a prompt, too."


@pytest.mark.parametrize("model", ["gpt-4o-image", "veo-3.1-fast", "veo-3.1", "x" * 300])
def test_a_plan_of_what_may_be_a_model_says_what_it_lacks(sandbox: Sandbox, run: Run, model: str) -> None:
    code, out, err = run("plan", model)
    assert (code, out, MODEL_HINT in err) == (1, "", True)


@pytest.mark.parametrize(
    "words",
    [
        ["missing.csv"],
        ["missing.xlsx"],
        ["https://127.0.0.1:9/rows"],
        ["s3://no-such-bucket-here/rows"],
        ["rows.csv", "--variants", "200"],
        ["rows.csv", "--label", "Project=a"],
        ["rows.csv", "--label", "project=a", "--label", "project=b"],
        ["rows"],
        ["folder"],
        ["file://missing.csv"],
    ],
    ids=" ".join,
)
def test_a_plan_of_a_file_or_link_is_not_told_that_it_may_be_a_model(
    sandbox: Sandbox, run: Run, words: list[str]
) -> None:
    Path("folder").mkdir()
    for name in ("rows", "rows.csv"):
        Path(name).write_text("id,model,prompt\na,gpt-4o-image,a fox\n")
    code, out, err = run("plan", *words)
    assert (code, out) == (1, "")
    assert "What to do: " in err
    assert "model" not in err.partition("What to do: ")[2]


def test_a_plan_of_a_manifest_ignores_no_option(sandbox: Sandbox, run: Run) -> None:
    Path("rows.csv").write_text("id,model,prompt\na,gpt-4o-image,a fox\n")
    assert run("plan", "rows.csv", "--take", "2", "--budget-usd", "1")[0] == 0
    code, out, err = run("plan", "rows.csv", "--resolution", "4k", "--image-url", "https://x/y.png")
    assert (code, out) == (1, "")
    assert "resolution, image_urls would be ignored" in err


def test_a_plan_beyond_the_budget_is_1(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("plan", "veo-3.1-fast", "waves", "--budget-usd", "0.30")[0] == 0
    assert run("plan", "veo-3.1-fast", "waves", "--budget-usd", "0.29")[0] == 1
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.10")
    code, out, _ = run("plan", "veo-3.1-fast", "waves", "--json")
    assert code == 1
    assert json.loads(out)["is_affordable"] is False
    assert [budget["left_usd"] for budget in json.loads(out)["budgets"]] == ["0.10"]


def test_a_wrong_manifest_is_reported_row_by_row(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,model,prompt\na,gpt-4o-image,\nb,gpt-4o-image,x\nb,gpt-4o-image,y\n")
    code, out, err = run("plan", str(rows))
    assert (code, out) == (1, "")
    assert "line 2 (a): prompt" in err
    assert "line 4 (b): id: is used by line 3 already" in err


def test_a_plan_may_come_before_the_store_but_not_with_a_file_as_one(sandbox: Sandbox, run: Run) -> None:
    Path("a-file").touch()
    assert run("plan", "gpt-4o-image", "a fox", "--store", "nowhere")[0] == 0
    assert run("plan", "gpt-4o-image", "a fox", "--store", "a-file")[0] == 1


def test_a_scheduled_manifest_is_planned_as_if_it_ran_now(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,model,prompt,take\na,gpt-4o-image,x,{scheduled:%Y}\nb,gpt-4o-image,x,{scheduled:%%}\n")
    code, _, err = run("plan", str(rows), "--take", "{scheduled:%Y-%m-%d}")
    assert (code, "line 3 (b): take: " in err) == (1, True)
    rows.write_text("id,model,prompt,take\na,gpt-4o-image,x,{scheduled:%Y}\nb,gpt-4o-image,x,\n")
    code, out, _ = run("plan", str(rows), "--take", "{scheduled:%Y-%m-%d}")
    assert (code, "$0.04" in out) == (0, True)


def test_a_plan_takes_local_files_and_objects(
    sandbox: Sandbox, run: Run, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fox.png").write_bytes(png())
    code, _, err = run("plan", "gpt-4o-image", "a fox", "--image-url", "./fox.png")
    assert (code, "Use a bucket as VEOGEN_STORE" in err) == (1, True)
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    code, out, _ = run("plan", "gpt-4o-image", "a fox", "--image-url", "./fox.png", "--json")
    (item,) = json.loads(out)["items"]
    assert (code, item["request"]["image_urls"]) == (0, [{"sha256": hashlib.sha256(png()).hexdigest()}])
    code, out, _ = run("plan", "gpt-4o-image", "a fox", "--image-url", f"s3://{bucket}/missing.png")
    assert (code, "does not exist" in " ".join(out.split())) == (1, True)


def test_a_campaign_of_any_table_is_planned_with_its_options(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "products.csv"
    rows.write_text("id,model,name,color,stock\na,gpt-4o-image,hat,red,3\nb,gpt-4o-image,coat,blue,0\n")
    templates = ("--prompt-template", "a {color} {name}", "--motion-template", "the {name} turns")
    code, out, _ = run("plan", str(rows), *templates, "--carry", "stock", "--variants", "2", "--json")
    items = json.loads(out)["items"]
    assert code == 0
    assert [item["request"]["prompt"] for item in items[:4]] == ["a red hat", "the hat turns"] * 2
    assert sorted({item["take"] for item in items}, key=str) == [1, "1.2"]
    assert len(items) == 8
    assert run("plan", str(rows), *templates, "--carry", "*")[0] == 0
    code, _, err = run("plan", str(rows), *templates, "--carry", "stick")
    assert (code, "stick: no row has such a column; nearest: stock" in err) == (1, True)
    code, _, err = run("plan", str(rows), *templates)
    assert (code, "stock: is not a field" in err, "(--carry stock)" in err) == (1, True, True)
    rows.write_text("id,model,color,prompt\na,gpt-4o-image,red,a {color} hat\nb,gpt-4o-image,blue,\n")
    code, _, err = run("plan", str(rows), "--prompt-template", "a {color} hat")
    assert (code, "(--prompt-template) and this cell is empty" in err) == (1, True)
    rows.write_text(rows.read_text().replace("a {color} hat", ""))
    assert run("plan", str(rows), "--prompt-template", "a {color} hat")[0] == 0
    assert len(sandbox.bill) == 0


def test_a_plan_of_results_says_how_many_rows_are_kept(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    receipt = bought().generation.receipt
    ended: dict[str, Any] = {"id": "a", "model": "gpt-4o-image", "prompt": "a red fox", "take": "1", "status": "ok"}
    ended |= {"price_usd": 0.02, "finished_at": "2026-11-27T11:00:00+00:00", "image_receipt": receipt}
    rows = tmp_path / "results.jsonl"
    rows.write_text(json.dumps(ended) + "\n" + json.dumps({"id": "b", "model": "gpt-4o-image", "prompt": "an owl"}))
    code, out, _ = run("plan", str(rows))
    assert (code, "Rows that ended well before and are kept: 1" in out, "Total: $0.02" in out) == (0, True, True)
    rows.write_text(rows.read_text().replace("a red fox", "a blue fox"))
    out = run("plan", str(rows))[1]
    assert ("ended well" in out, "Total: $0.04" in out) == (False, True)


def test_a_plan_counts_the_caps_of_its_labels(
    sandbox: Sandbox, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGETS", '{"project:spring": 0.03}')
    rows = tmp_path / "rows.csv"
    rows.write_text("id,model,prompt\na,gpt-4o-image,x\nb,gpt-4o-image,y\n")
    for words in ((str(rows),), ("veo-3.1-fast", "waves")):
        assert run("plan", *words)[0] == 0
        code, out, _ = run("plan", *words, "--label", "team=shop", "--label", "project=spring")
        assert (code, "Budget label-project:spring: $0.03 of $0.03 left" in out) == (1, True)


def test_a_plan_refuses_labels_that_none_can_be(sandbox: Sandbox, run: Run) -> None:
    assert run("plan", "gpt-4o-image", "a fox", "--label", "spring")[0] == 2
    code, _, err = run("plan", "gpt-4o-image", "a fox", "--label", "Project=spring")
    assert (code, "a label's name must be" in err, "or --label project=spring." in err) == (1, True, True)
    code, _, err = run("plan", "gpt-4o-image", "a fox", "--label", "project=a", "--label", "project=b")
    assert (code, "--label project is given twice" in err) == (1, True)


def test_a_plan_of_one_request_ignores_no_option_of_a_manifest(sandbox: Sandbox, run: Run) -> None:
    code, out, err = run("plan", "gpt-4o-image", "a fox", "--carry", "sku", "--variants", "2")
    assert (code, out) == (1, "")
    assert "carry, variants would be ignored" in err
