"""`receipts`, `sweep` and `reconcile`: what was bought, finished, and compared with the statement."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.commands import FOX, Run, bearer, bought, lost


def test_receipts_are_listed_without_a_token(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    key = bought().generation.receipt
    monkeypatch.delenv("VEOGEN_API_TOKEN")
    code, out, _ = run("receipts")
    assert code == 0
    assert re.search(rf"^bought  gpt-4o-image  \$0\.02  \S+ \S+  a red fox  {key}$", out, re.MULTILINE)
    assert "1 receipt, $0.02 paid" in out
    assert [item["key"] for item in json.loads(run("receipts", "--json")[1])] == [key]
    assert json.loads(run("receipts", "list", "--state", "unknown", "--json")[1]) == []
    assert json.loads(run("receipts", "--json", "list", "--state", "unknown")[1]) == []


def test_an_empty_store_has_no_receipts_and_is_no_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    code, out, _ = run("receipts", "--store", str(tmp_path / "nothing"))
    assert (code, out) == (0, f"There are no receipts in file://{tmp_path}/nothing\n")


@pytest.mark.parametrize("words", [["receipts"], ["receipts", "show", "v1"], ["sweep"], ["reconcile"]], ids=" ".join)
@pytest.mark.parametrize("store", ["nowhere", "a-file", ""])
def test_a_store_that_is_not_there_is_an_error(sandbox: Sandbox, run: Run, words: list[str], store: str) -> None:
    Path("a-file").touch()
    code, out, err = run(*words, "--store", store)
    assert (code, out) == (1, "")
    assert re.search(r"There is no store at .*/nowhere|a-file is a file|'' is not a valid store", err)
    assert "--store" in err
    assert not Path("nowhere").exists()


def test_a_receipt_is_shown_by_the_beginning_of_its_key(sandbox: Sandbox, run: Run) -> None:
    purchase = bought()
    code, out, _ = run("receipts", "show", str(purchase.generation.receipt)[:10])
    assert code == 0
    assert purchase.generation.id in out
    assert "$0.02, as charged" in out
    assert "sending" in out  # its history
    bought(FOX.model_copy(update={"take": 2}))
    assert "2 receipts begin with v1" in run("receipts", "show", "v1")[2]


def test_a_lost_purchase_is_adopted_by_hand(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    key = lost(sandbox, monkeypatch)
    body = {"model": "gpt-4o-image", "prompt": "something that doesn't look like it"}
    made = httpx.post(f"{sandbox.base_url}/generations", json=body, headers=bearer(sandbox)).json()
    assert f"prefect-veogen receipts adopt {key} GENERATION_ID" in run("receipts", "show", key)[1]
    code, _, shown = run("receipts", "adopt", key[:10], made["data"]["id"])
    assert (code, "--force" in shown) == (1, True)
    code, out, _ = run("receipts", "adopt", key, made["data"]["id"], "--force")
    assert code == 0
    assert f"{key} is bought now" in out
    assert bought().generation.id == made["data"]["id"]
    assert len(sandbox.bill) == 1


def test_a_lost_purchase_is_released_by_hand_and_then_bought(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = lost(sandbox, monkeypatch)
    code, out, _ = run("receipts", "release", key[:10], "--json")
    assert (code, json.loads(out)["state"]) == (0, "released")
    assert not bought().reused
    assert run("receipts", "release", key)[0] == 1  # it is bought now, and stays so
    assert len(sandbox.bill) == 1


def test_a_damaged_receipt_is_reported_beside_the_others(sandbox: Sandbox, run: Run) -> None:
    bought()
    store = Path(os.environ["VEOGEN_STORE"])
    (store / "receipts" / "v1-0-0-1.json").write_text("{")
    code, out, shown = run("receipts")
    assert code == 1
    assert "1 receipt, $0.02 paid" in out
    assert "v1-0-0-1 can't be read" in shown


# ---------------------------------------------------------------- sweep and reconcile


def test_sweep_stores_what_was_paid_for_and_buys_nothing(sandbox: Sandbox, run: Run) -> None:
    bought()
    sandbox.advance(60)
    code, out, _ = run("sweep")
    assert code == 0
    assert "bought → stored" in out
    assert "stored file://" in out
    assert run("sweep") == (0, "Nothing to do: everything that was bought is in the store, verified.\n", "")
    assert len(sandbox.bill) == 1


def test_sweep_is_1_when_something_needs_manual_review(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = lost(sandbox, monkeypatch)
    code, out, _ = run("sweep", "--json")
    assert code == 1
    assert [(item["key"], item["after"]) for item in json.loads(out)] == [(key, "unknown")]


def test_reconcile_adds_up_until_another_store_buys(sandbox: Sandbox, run: Run) -> None:
    bought()
    sandbox.advance(60)  # the statement names what is completed
    assert run("reconcile")[0] == 0
    body = {"model": "veo-3.1-fast", "prompt": "by another"}
    httpx.post(f"{sandbox.base_url}/generations", json=body, headers=bearer(sandbox)).raise_for_status()
    sandbox.advance(300)
    code, out, _ = run("reconcile")
    assert code == 1
    assert "On the statement, but not in this store's receipts:" in out
    code, out, _ = run("reconcile", "--json", "--since", "2020-01-01")
    shown = json.loads(out)
    assert (code, shown["adds_up"], shown["ledger_usd"], shown["receipts"]) == (1, False, "0.02", 1)
