"""Every fault of the API, as a client sees it. Faults of the media host: test_media_host.py, test_connections.py."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import IMAGE, LONG_ENOUGH, VIDEO, buy, poll

# Longer than a busy machine takes to connect, shorter than a response that never comes.
SHORT = httpx.Timeout(30, read=1)


@pytest.mark.parametrize(("name", "purchases"), [("lost-answer-after-charge", 1), ("lost-answer-before-charge", 0)])
def test_a_lost_response_is_a_connection_closed_without_a_byte(
    sandbox: Sandbox, api: httpx.Client, name: str, purchases: int
) -> None:
    sandbox.fault(name)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        api.post("/generations", json=IMAGE)
    assert len(sandbox.bill) == purchases
    assert sandbox.requests[-1].status is None
    assert api.post("/generations", json=IMAGE).status_code == 201


@pytest.mark.parametrize(
    ("name", "status", "content_type", "purchases"),
    [
        ("500-after-charge", 500, "application/json", 1),
        ("502-after-charge", 502, "text/html", 1),
        ("500-before-charge", 500, "application/json", 0),
        ("503-before-charge", 503, "text/html", 0),
        ("401", 401, "application/json", 0),
        ("402", 402, "application/json", 0),
        ("422", 422, "application/json", 0),
        ("429", 429, "application/json", 0),
        ("html-after-charge", 201, "text/html", 1),
        ("empty-body-after-charge", 201, "application/json", 1),
        ("garbled-json-after-charge", 201, "application/json", 1),
    ],
)
def test_a_purchase_that_goes_wrong_has_this_status_and_this_bill(
    sandbox: Sandbox, api: httpx.Client, name: str, status: int, content_type: str, purchases: int
) -> None:
    sandbox.fault(name)
    response = api.post("/generations", json=IMAGE)
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith(content_type)
    assert (len(sandbox.bill), len(sandbox.generations)) == (purchases, purchases)
    assert api.post("/generations", json=IMAGE).json()["price_usd"] == 0.02


def test_spoilt_responses_to_a_purchase_are_not_json(sandbox: Sandbox, api: httpx.Client) -> None:
    for name in ("garbled-json-after-charge", "empty-body-after-charge", "html-after-charge"):
        sandbox.fault(name)
        with pytest.raises(json.JSONDecodeError):
            api.post("/generations", json=IMAGE).json()
    assert len(sandbox.bill) == 3


def test_parameters_of_refusals_reach_the_client(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("429", retry_after=17)
    assert api.post("/generations", json=IMAGE).headers["Retry-After"] == "17"
    sandbox.fault("422", field="image_urls", message="Unreachable.")
    assert api.post("/generations", json=IMAGE).json()["errors"] == {"image_urls": ["Unreachable."]}
    sandbox.fault("402")
    refusal = api.post("/generations", json=IMAGE).json()
    assert refusal["balance"] < refusal["required"] == 0.02


def test_a_slow_response_outlasts_the_client_but_buys(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("slow-answer", seconds=30)
    with pytest.raises(httpx.ReadTimeout):
        api.post("/generations", json=IMAGE, timeout=SHORT)
    assert len(sandbox.bill) == 1


POLL_FAULTS = {
    "look-500": lambda response: response.status_code == 500,
    "look-garbled": lambda response: response.status_code == 200 and not response.text.endswith("}"),
    "look-html": lambda response: response.status_code == 200 and "text/html" in response.headers["Content-Type"],
    "look-429": lambda response: response.status_code == 429 and response.headers["Retry-After"] == "1",
    "look-401": lambda response: response.status_code == 401,
}


@pytest.mark.parametrize("name", POLL_FAULTS)
def test_a_poll_fails_once_by_id_and_once_on_the_list(sandbox: Sandbox, api: httpx.Client, name: str) -> None:
    fails: Callable[[httpx.Response], bool] = POLL_FAULTS[name]
    generation_id = buy(api, **IMAGE)["id"]
    for path in (f"/generations/{generation_id}", "/generations?type=image"):
        sandbox.fault(name)
        assert [fails(api.get(path)) for _ in range(2)] == [True, False], path


def test_a_dropped_poll_is_a_closed_connection(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = buy(api, **IMAGE)["id"]
    sandbox.fault("look-dropped")
    with pytest.raises(httpx.RemoteProtocolError):
        api.get(f"/generations/{generation_id}")
    assert poll(api, generation_id)["status"] == "pending"


def test_a_slow_poll_outlasts_the_client(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = buy(api, **IMAGE)["id"]
    sandbox.fault("look-slow", seconds=30)
    with pytest.raises(httpx.ReadTimeout):
        api.get(f"/generations/{generation_id}", timeout=SHORT)


def test_look_404_and_list_500_leave_the_other_way_of_polling_alone(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = buy(api, **IMAGE)["id"]
    sandbox.fault("look-404")
    assert api.get("/generations").status_code == 200
    assert api.get(f"/generations/{generation_id}").status_code == 404
    sandbox.fault("list-500")
    assert api.get(f"/generations/{generation_id}").status_code == 200
    assert api.get("/generations").status_code == 500
    assert sandbox.faults == ()


def test_a_hidden_generation_is_missing_from_the_list_only(sandbox: Sandbox, api: httpx.Client) -> None:
    hidden, shown = buy(api, **IMAGE)["id"], buy(api, **VIDEO)["id"]
    sandbox.fault("hidden-from-list", prompt="lighthouse", times=None)
    for _ in range(2):
        assert [one["id"] for one in api.get("/generations").json()["data"]] == [shown]
    assert api.get("/generations?type=image").json()["meta"]["total"] == 1
    assert poll(api, hidden)["id"] == hidden


def test_an_unknown_status_is_shown_as_armed(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = buy(api, **IMAGE)["id"]
    sandbox.fault("unknown-status", status="hibernating", times=2)
    assert poll(api, generation_id)["status"] == "hibernating"
    assert api.get("/generations").json()["data"][0]["status"] == "hibernating"
    assert poll(api, generation_id)["status"] == "pending"


def test_a_completed_generation_may_lack_its_output_for_some_polls(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = buy(api, **IMAGE)["id"]
    sandbox.fault("completed-without-output", times=2)
    assert poll(api, generation_id)["status"] == "pending"
    sandbox.advance(LONG_ENOUGH)
    seen = [poll(api, generation_id) for _ in range(3)]
    assert [one["status"] for one in seen] == ["completed"] * 3
    assert [one["output"] is None for one in seen] == [True, True, False]


@pytest.mark.parametrize("path", ["/models", "/models/veo-3.1-fast"])
def test_the_catalogue_can_fail(sandbox: Sandbox, api: httpx.Client, path: str) -> None:
    sandbox.fault("model-500")
    assert api.get(path).status_code == 500
    sandbox.fault("model-html")
    assert "text/html" in api.get(path).headers["Content-Type"]
    sandbox.fault("model-dropped")
    with pytest.raises(httpx.RemoteProtocolError):
        api.get(path)
    assert api.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/account", "/account/usage", "/balance"])
def test_the_account_can_fail(sandbox: Sandbox, api: httpx.Client, path: str) -> None:
    sandbox.fault("balance-500")
    assert [api.get(path).status_code for _ in range(2)] == [500, 200]
