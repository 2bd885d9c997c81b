"""Money in the sandbox: the bill, the balance and the statement."""

from __future__ import annotations

from decimal import Decimal

import httpx

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE, LONG_ENOUGH, VIDEO, buy, client_of


def test_a_purchase_is_on_the_bill_and_off_the_balance_at_once(sandbox: Sandbox, api: httpx.Client) -> None:
    generation = buy(api, **VIDEO)
    assert [purchase.id for purchase in sandbox.bill] == [generation["id"]]
    assert sandbox.bill.total_usd == Decimal("0.30")
    assert sandbox.balance_usd == Decimal("99.70")
    assert api.get("/account").json()["data"]["usd_balance"] == 99.7
    assert api.get("/account").json()["data"]["usd_spent"] == 0.3
    assert api.get("/balance").json() == {"remaining_balance": 99.7, "used_balance": 0.3}


def test_a_failed_generation_is_refunded_when_it_fails_and_not_before(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("failed", reason="not allowed")
    generation = buy(api, **VIDEO)
    assert (len(sandbox.bill), sandbox.balance_usd) == (1, Decimal("99.70"))
    sandbox.advance(LONG_ENOUGH)
    shown = api.get(f"/generations/{generation['id']}").json()["data"]
    assert (shown["status"], shown["error"], shown["output"]) == ("failed", "not allowed", None)
    assert (len(sandbox.bill), sandbox.bill.total_usd, sandbox.balance_usd) == (0, 0, 100)
    assert [purchase.refunded for purchase in sandbox.bill.purchases] == [True]
    assert api.get("/account/usage").json()["total"] == 0


def test_a_short_balance_is_402_with_the_price_and_the_balance() -> None:
    with Sandbox(balance_usd="0.05") as sandbox, client_of(sandbox) as api:
        response = api.post("/generations", json=VIDEO)
        assert response.status_code == 402
        assert response.json() == {
            "error": "Insufficient balance.",
            "message": "This generation costs $0.30 but your balance is $0.05.",
            "required": 0.3,
            "balance": 0.05,
        }
        assert len(sandbox.bill) == 0
        assert api.post("/generations", json=IMAGE).status_code == 201


def test_the_statement_lists_final_charges_under_internal_model_keys(sandbox: Sandbox, api: httpx.Client) -> None:
    buy(api, **IMAGE)
    buy(api, **VIDEO)
    assert api.get("/account/usage").json()["total"] == 0
    sandbox.advance(LONG_ENOUGH)
    page = api.get("/account/usage", params={"per_page": 1}).json()
    assert (page["current_page"], page["per_page"], page["total"]) == (1, 1, 2)
    assert set(page) == {"current_page", "data", "per_page", "total"}
    line = page["data"][0]
    assert (line["model_key"], line["generation_type"], line["amount_usd"]) == ("veo_3_1_fast", "video", 0.3)
    assert line["created_at"].endswith(".000000Z")
    assert isinstance(line["id"], int)
    by_model = api.get("/account/usage", params={"model": "gpt-4o-image"}).json()["data"]
    assert [one["model_key"] for one in by_model] == ["gpt4o_image"]
    assert api.get("/account/usage", params={"type": "video"}).json()["total"] == 1
