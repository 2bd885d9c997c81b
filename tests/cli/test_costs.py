"""`prefect-veogen costs`, as a person and as a program read it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from prefect_veogen.cli import main
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session

PROJECT = 'spring "sale", [bold]ü'


@pytest.fixture
def bought(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three purchases in the store, and no token in the environment."""
    labelled = replace(open_session(labels={"project": PROJECT}), campaign="fair")
    clip = GenerationRequest(model="veo-3.1-fast", prompt="a clip")
    pictures = [GenerationRequest(model="gpt-4o-image", prompt="a picture", take=take) for take in (1, 2)]
    for session, request in ((labelled, clip), (labelled, pictures[0]), (open_session(), pictures[1])):
        asyncio.run(on_io(buy(session, request)))
    monkeypatch.delenv("VEOGEN_API_TOKEN")


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["costs", *words]) == code
    told = capsys.readouterr()
    return told.out, told.err


def test_a_table_has_a_row_each_and_the_total(bought: None, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = told(capsys, "--by", "label:project")
    width = len(PROJECT)
    assert out.splitlines() == [
        f"{'PROJECT':{width}}  SPENT  RESERVED  IN DOUBT",
        f"{PROJECT}  $0.32     $0.00     $0.00",
        f"{'(none)':{width}}  $0.02     $0.00     $0.00",
        f"{'TOTAL':{width}}  $0.34     $0.00     $0.00",
    ]
    assert err == ""


def test_by_model_is_the_default(bought: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == told(capsys, "--by", "model")
    assert [line.split()[0] for line in told(capsys)[0].splitlines()] == [
        "MODEL",
        "veo-3.1-fast",
        "gpt-4o-image",
        "TOTAL",
    ]


def test_json_is_the_rows_and_nothing_else_with_amounts_as_exact_numbers(
    bought: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = told(capsys, "--by", "label:project", "--json")
    nothing = {"reserved_usd": 0, "in_doubt_usd": 0}
    assert json.loads(out, parse_float=Decimal) == {
        "rows": [
            {"key": PROJECT, "spent_usd": Decimal("0.32"), **nothing},
            {"key": "", "spent_usd": Decimal("0.02"), **nothing},
        ]
    }


def test_csv_has_the_same_columns(bought: None, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = told(capsys, "--by", "campaign", "--csv")
    assert list(csv.reader(io.StringIO(out))) == [
        ["key", "spent_usd", "reserved_usd", "in_doubt_usd"],
        ["fair", "0.32", "0", "0"],
        ["", "0.02", "0", "0"],
    ]


def test_without_purchases_it_says_so_and_has_no_rows(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    assert told(capsys)[0].startswith("Nothing was bought in ")
    assert json.loads(told(capsys, "--json")[0]) == {"rows": []}
    assert told(capsys, "--csv")[0] == "key,spent_usd,reserved_usd,in_doubt_usd\n"


def test_a_date_before_which_all_was_bought_leaves_nothing(bought: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "TOTAL" in told(capsys, "--since", "2026-01-01T00:00+02:00")[0]
    now = datetime.now(UTC).isoformat()
    assert f"since {now[:10]}" in told(capsys, "--since", now)[0]


def test_a_damaged_receipt_is_told_on_stderr_and_by_the_exit_code(
    bought: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store" / "receipts" / "v1-damaged.json").write_text("{")
    out, err = told(capsys, "--json", code=1)
    assert len(json.loads(out)["rows"]) == 2
    assert "v1-damaged" in err


def test_a_store_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no store at" in told(capsys, "--store", "nowhere", code=1)[1]


def test_labels_and_campaign_show_in_a_receipt(bought: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["receipts", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert [(item.get("labels"), item.get("campaign")) for item in shown] == [
        ({"project": PROJECT}, "fair"),
        ({"project": PROJECT}, "fair"),
        (None, None),
    ]
    main(["receipts", "show", shown[0]["key"]])
    out = capsys.readouterr().out
    assert f"labels      project={PROJECT}\n" in out
    assert "campaign    fair\n" in out
