"""`models` and `balance`: the catalogue and the account, as a person and as a script read them."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.commands import Run, bought
from tests.support.servers import Reply, Request, serving


def test_models_lists_all_with_what_one_generation_costs(sandbox: Sandbox, run: Run) -> None:
    code, out, _ = run("models")
    rows = {line.split()[0]: line for line in out.splitlines()[1:-2]}
    assert code == 0
    assert len(rows) == 13
    assert "$0.30 to $0.90" in rows["veo-3.1-fast"]
    assert re.search(r"image +\$0\.02$", rows["gpt-4o-image"])
    assert "$0.18 to $0.90  by the second, 6-30 s" in rows["grok-video-1"]


def test_models_reads_every_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(request: Request) -> Reply:
        page = int(request.path.partition("page=")[2] or 1)
        model = {"slug": f"model-{page}", "type": "image", "price_usd": "0.10"}
        return Reply(body=json.dumps({"data": [model], "total": 3, "per_page": 1}).encode())

    monkeypatch.setenv("VEOGEN_API_TOKEN", "t")
    with serving(respond) as url:
        code, out, _ = run("models", "--json", "--base-url", url)
    assert code == 0
    assert [model["slug"] for model in json.loads(out)] == ["model-1", "model-2", "model-3"]


def test_one_model_is_shown_with_the_price_of_every_resolution(sandbox: Sandbox, run: Run) -> None:
    _, out, _ = run("models", "veo-3.1-fast")
    assert re.search(r"^4k +\$0\.90$", out, re.MULTILINE)
    assert "frame, ingredient" in out
    _, out, _ = run("models", "seedance-2.0")
    assert re.search(r"^480p +\$0\.1321 +\$0\.5284 +\$1\.9815$", out, re.MULTILINE)


def test_prices_in_json_are_decimal_strings(sandbox: Sandbox, run: Run) -> None:
    _, out, err = run("models", "seedance-2.0", "--json")
    shown = json.loads(out)
    assert (shown["priced_per"], err) == ("second", "")
    assert shown["price_usd_by_resolution"] == {"480p": "0.1321", "720p": "0.284015"}


def test_an_unknown_model_is_an_error_with_a_next_step(sandbox: Sandbox, run: Run) -> None:
    code, out, err = run("models", "veo-99")
    assert (code, out) == (1, "")
    assert err.startswith("Error: The service does not know this model")
    assert "What to do: " in err


def test_balance_shows_what_is_left_and_spent(sandbox: Sandbox, run: Run) -> None:
    bought()
    assert run("balance") == (0, "The account holds $99.98 and has spent $0.02.\n", "")
    shown = json.loads(run("balance", "--json")[1])
    assert {name: Decimal(amount) for name, amount in shown.items()} == {
        "remaining_usd": Decimal("99.98"),
        "spent_usd": Decimal("0.02"),
    }


def test_a_balance_that_no_endpoint_states_is_an_error_and_not_zero(sandbox: Sandbox, run: Run) -> None:
    sandbox.fault("balance-500", times=None)
    code, out, err = run("balance", "--json")
    assert (code, out) == (1, "")
    assert "HTTP 500" in err


def test_without_a_token_it_says_how_to_get_one_or_do_without(run: Run) -> None:
    code, out, err = run("balance")
    assert (code, out) == (1, "")
    assert "VEOGEN_API_TOKEN" in err
    assert "prefect-veogen demo" in err


@pytest.mark.parametrize("words", [["models"], ["balance"], ["plan", "gpt-4o-image", "x"], ["sweep"], ["reconcile"]])
def test_a_refused_token_is_never_shown(run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    with Sandbox(token="the-right-one") as sandbox:
        monkeypatch.setenv("VEOGEN_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("VEOGEN_API_TOKEN", "sekrit-4711")
        Path("veogen-store").mkdir()
        code, out, err = run(*words)
    assert "sekrit" not in out + err
    assert words == ["sweep"] or (code == 1 and "refused the token" in err)
