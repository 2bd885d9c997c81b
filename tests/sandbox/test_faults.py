"""Faults are armed, narrowed, used up and disarmed; some decide the fate of generations."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from prefect_veogen.sandbox import FAULTS, Sandbox
from tests.support.sandbox_client import IMAGE, LONG_ENOUGH, VIDEO, buy, poll


def test_every_fault_can_be_armed_and_disarmed(sandbox: Sandbox) -> None:
    for name in FAULTS:
        sandbox.fault(name)
    assert [fault.name for fault in sandbox.faults] == list(FAULTS)
    sandbox.clear_faults()
    assert sandbox.faults == ()


def test_a_stuck_generation_never_ends(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("stuck")
    stuck, normal = buy(api, **IMAGE)["id"], buy(api, **IMAGE)["id"]
    sandbox.advance(1_000_000)
    assert (poll(api, stuck)["status"], poll(api, normal)["status"]) == ("processing", "completed")
    assert len(sandbox.bill) == 2
    assert api.get("/account/usage").json()["total"] == 1


def test_failing_can_be_decided_while_a_generation_runs(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = buy(api, **IMAGE)["id"]
    sandbox.fault("failed", reason={"code": "moderation"})
    assert poll(api, generation_id)["status"] == "pending"
    sandbox.advance(LONG_ENOUGH)
    shown = poll(api, generation_id)
    assert (shown["status"], shown["error"]) == ("failed", {"code": "moderation"})
    assert api.get("/generations").json()["data"][0]["status"] == "failed"


def test_a_generation_that_was_spared_is_not_struck_by_polling_it(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("failed", after=1)
    spared = buy(api, **IMAGE)["id"]
    for _ in range(3):
        poll(api, spared)
    struck = buy(api, **IMAGE)["id"]
    sandbox.advance(LONG_ENOUGH)
    assert (poll(api, spared)["status"], poll(api, struck)["status"]) == ("completed", "failed")


def test_what_has_completed_does_not_fail_afterwards(sandbox: Sandbox, api: httpx.Client) -> None:
    generation_id = buy(api, **IMAGE)["id"]
    sandbox.advance(LONG_ENOUGH)
    sandbox.fault("failed", times=None)
    assert poll(api, generation_id)["status"] == "completed"


def test_faults_can_be_narrowed_by_model_kind_and_prompt(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("500-before-charge", model="veo-3.1-lite")
    sandbox.fault("502-after-charge", kind="video")
    sandbox.fault("503-before-charge", prompt="house")
    assert api.post("/generations", json=VIDEO).status_code == 502
    assert api.post("/generations", json=IMAGE).status_code == 503
    assert api.post("/generations", json={**VIDEO, "model": "veo-3.1-lite"}).status_code == 500
    assert api.post("/generations", json=VIDEO).status_code == 201


def test_a_fault_narrowed_to_a_prompt_strikes_the_list_that_would_show_it(sandbox: Sandbox, api: httpx.Client) -> None:
    buy(api, **VIDEO)["id"]
    sandbox.fault("list-500", prompt="lighthouse")
    assert api.get("/generations").status_code == 200
    buy(api, **IMAGE)["id"]
    assert api.get("/generations?type=video").status_code == 200
    assert api.get("/generations").status_code == 500


def test_a_fault_can_spare_requests_first_and_strike_several_times(sandbox: Sandbox, api: httpx.Client) -> None:
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
