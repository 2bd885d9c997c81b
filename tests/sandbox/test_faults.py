"""Every fault of the sandbox, as a client of the API sees it. Faults of the media host: test_sandbox_media.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import FAULTS, Sandbox

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
VIDEO = {"model": "veo-3.1-fast", "prompt": "waves"}
LONG_ENOUGH = 200.0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=0, tiny_media=True) as running:
        yield running


@pytest.fixture
def api(sandbox: Sandbox) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {sandbox.token}"}
    with httpx.Client(base_url=sandbox.base_url, headers=headers, timeout=5) as client:
        yield client


def bought(api: httpx.Client, **request: Any) -> str:
    answer = api.post("/generations", json=request)
    assert answer.status_code == 201, answer.text
    generation_id: str = answer.json()["data"]["id"]
    return generation_id


def look(api: httpx.Client, generation_id: str) -> dict[str, Any]:
    data: dict[str, Any] = api.get(f"/generations/{generation_id}").json()["data"]
    return data


def test_every_fault_can_be_armed_and_disarmed(sandbox: Sandbox) -> None:
    for name in FAULTS:
        sandbox.fault(name)
    assert [fault.name for fault in sandbox.faults] == list(FAULTS)
    sandbox.clear_faults()
    assert sandbox.faults == ()


@pytest.mark.parametrize(("name", "purchases"), [("lost-answer-after-charge", 1), ("lost-answer-before-charge", 0)])
def test_a_lost_answer_is_a_connection_closed_without_a_byte(
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
    answer = api.post("/generations", json=IMAGE)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith(content_type)
    assert (len(sandbox.bill), len(sandbox.generations)) == (purchases, purchases)
    assert api.post("/generations", json=IMAGE).json()["price_usd"] == 0.02


def test_spoilt_answers_to_a_purchase_are_not_json(sandbox: Sandbox, api: httpx.Client) -> None:
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


def test_a_slow_answer_outlasts_the_client_but_buys(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("slow-answer", seconds=30)
    with pytest.raises(httpx.ReadTimeout):
        api.post("/generations", json=IMAGE, timeout=0.1)
    assert len(sandbox.bill) == 1


LOOK_FAULTS = {
    "look-500": lambda answer: answer.status_code == 500,
    "look-garbled": lambda answer: answer.status_code == 200 and not answer.text.endswith("}"),
    "look-html": lambda answer: answer.status_code == 200 and "text/html" in answer.headers["Content-Type"],
    "look-429": lambda answer: answer.status_code == 429 and answer.headers["Retry-After"] == "1",
    "look-401": lambda answer: answer.status_code == 401,
}


@pytest.mark.parametrize("name", LOOK_FAULTS)
def test_a_look_fails_once_on_a_single_look_and_once_on_the_list(
    sandbox: Sandbox, api: httpx.Client, name: str
) -> None:
    fails: Callable[[httpx.Response], bool] = LOOK_FAULTS[name]
    generation_id = bought(api, **IMAGE)
    for path in (f"/generations/{generation_id}", "/generations?type=image"):
        sandbox.fault(name)
        assert [fails(api.get(path)) for _ in range(2)] == [True, False], path


def test_a_dropped_look_is_a_closed_connection(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = bought(api, **IMAGE)
    sandbox.fault("look-dropped")
    with pytest.raises(httpx.RemoteProtocolError):
        api.get(f"/generations/{generation_id}")
    assert look(api, generation_id)["status"] == "pending"


def test_a_slow_look_outlasts_the_client(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = bought(api, **IMAGE)
    sandbox.fault("look-slow", seconds=30)
    with pytest.raises(httpx.ReadTimeout):
        api.get(f"/generations/{generation_id}", timeout=0.1)


def test_look_404_and_list_500_do_not_touch_the_other_way_of_looking(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = bought(api, **IMAGE)
    sandbox.fault("look-404")
    assert api.get("/generations").status_code == 200
    assert api.get(f"/generations/{generation_id}").status_code == 404
    sandbox.fault("list-500")
    assert api.get(f"/generations/{generation_id}").status_code == 200
    assert api.get("/generations").status_code == 500
    assert sandbox.faults == ()


def test_a_hidden_generation_is_missing_from_the_list_only(sandbox: Sandbox, api: httpx.Client) -> None:
    hidden, shown = bought(api, **IMAGE), bought(api, **VIDEO)
    sandbox.fault("hidden-from-list", prompt="lighthouse", times=None)
    for _ in range(2):
        assert [one["id"] for one in api.get("/generations").json()["data"]] == [shown]
    assert api.get("/generations?type=image").json()["meta"]["total"] == 1
    assert look(api, hidden)["id"] == hidden


def test_an_unknown_status_is_shown_as_it_was_named(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = bought(api, **IMAGE)
    sandbox.fault("unknown-status", status="hibernating", times=2)
    assert look(api, generation_id)["status"] == "hibernating"
    assert api.get("/generations").json()["data"][0]["status"] == "hibernating"
    assert look(api, generation_id)["status"] == "pending"


def test_a_completed_generation_may_lack_its_output_for_some_looks(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = bought(api, **IMAGE)
    sandbox.fault("completed-without-output", times=2)
    assert look(api, generation_id)["status"] == "pending"
    sandbox.advance(LONG_ENOUGH)
    seen = [look(api, generation_id) for _ in range(3)]
    assert [one["status"] for one in seen] == ["completed"] * 3
    assert [one["output"] is None for one in seen] == [True, True, False]


def test_a_stuck_generation_never_ends(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("stuck")
    stuck, normal = bought(api, **IMAGE), bought(api, **IMAGE)
    sandbox.advance(1_000_000)
    assert (look(api, stuck)["status"], look(api, normal)["status"]) == ("processing", "completed")
    assert len(sandbox.bill) == 2
    assert api.get("/account/usage").json()["total"] == 1


def test_failing_can_be_decided_while_a_generation_runs(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = bought(api, **IMAGE)
    sandbox.fault("failed", reason={"code": "moderation"})
    assert look(api, generation_id)["status"] == "pending"
    sandbox.advance(LONG_ENOUGH)
    shown = look(api, generation_id)
    assert (shown["status"], shown["error"]) == ("failed", {"code": "moderation"})
    assert api.get("/generations").json()["data"][0]["status"] == "failed"


def test_a_generation_that_was_let_pass_is_not_struck_by_looking_at_it(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("failed", after=1)
    spared = bought(api, **IMAGE)
    for _ in range(3):
        look(api, spared)
    struck = bought(api, **IMAGE)
    sandbox.advance(LONG_ENOUGH)
    assert (look(api, spared)["status"], look(api, struck)["status"]) == ("completed", "failed")


def test_what_has_completed_does_not_fail_afterwards(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = bought(api, **IMAGE)
    sandbox.advance(LONG_ENOUGH)
    sandbox.fault("failed", times=None)
    assert look(api, generation_id)["status"] == "completed"


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


def test_faults_can_be_narrowed_by_model_kind_and_prompt(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("500-before-charge", model="veo-3.1-lite")
    sandbox.fault("502-after-charge", kind="video")
    sandbox.fault("503-before-charge", prompt="house")
    assert api.post("/generations", json=VIDEO).status_code == 502
    assert api.post("/generations", json=IMAGE).status_code == 503
    assert api.post("/generations", json={**VIDEO, "model": "veo-3.1-lite"}).status_code == 500
    assert api.post("/generations", json=VIDEO).status_code == 201


def test_a_fault_narrowed_to_a_prompt_strikes_the_list_that_would_show_it(sandbox: Sandbox, api: httpx.Client) -> None:
    bought(api, **VIDEO)
    sandbox.fault("list-500", prompt="lighthouse")
    assert api.get("/generations").status_code == 200
    bought(api, **IMAGE)
    assert api.get("/generations?type=video").status_code == 200
    assert api.get("/generations").status_code == 500


def test_a_fault_can_let_requests_pass_first_and_strike_several_times(sandbox: Sandbox, api: httpx.Client) -> None:
    fault = sandbox.fault("500-before-charge", after=1, times=2)
    statuses = [api.post("/generations", json=IMAGE).status_code for _ in range(4)]
    assert statuses == [201, 500, 500, 201]
    assert (fault.applied, fault.times_left) == (2, 0)
    assert sandbox.faults == ()


def test_times_none_never_wears_off(sandbox: Sandbox, api: httpx.Client) -> None:
    fault = sandbox.fault("500-before-charge", times=None)
    assert {api.post("/generations", json=IMAGE).status_code for _ in range(20)} == {500}
    assert (fault.applied, fault.times_left) == (20, None)


def test_invalid_requests_do_not_use_up_a_fault(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("lost-answer-after-charge")
    assert api.post("/generations", json={"model": "x"}).status_code == 422
    assert len(sandbox.faults) == 1


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("lost-anser-after-charge", {}, "did you mean 'lost-answer-after-charge'"),
        ("slow-answer", {"second": 3}, "did you mean 'seconds'"),
        ("slow-answer", {"seconds": "3"}, "a float such as 5.0"),
        ("slow-answer", {"seconds": -1}, "positive"),
        ("429", {"time": 3}, "did you mean 'times'"),
        ("429", {"times": 0}, "1 or more or None"),
        ("429", {"after": -1}, "0 or more"),
        ("429", {"kind": "audio"}, "'image' or 'video'"),
        ("media-truncated", {"share": 1}, "up to but not including 1"),
        ("media-huge", {"size_bytes": 10}, "at least"),
    ],
)
def test_a_mistake_in_arming_is_explained(sandbox: Sandbox, name: str, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        sandbox.fault(name, **options)
    assert sandbox.faults == ()
