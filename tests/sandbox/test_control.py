"""The control routes and the control page do over HTTP what the Sandbox object does in Python."""

from __future__ import annotations

import httpx
import pytest

from prefect_veogen.sandbox import FAULTS, Sandbox
from tests.support.sandbox_client import IMAGE, LONG_ENOUGH


def test_faults_can_be_armed_over_http(sandbox: Sandbox, api: httpx.Client, control: httpx.Client) -> None:
    armed = control.post("/faults", json={"name": "500-before-charge", "times": 2, "kind": "image"})
    assert (armed.status_code, armed.json()["times_left"]) == (201, 2)
    assert api.post("/generations", json=IMAGE).status_code == 500
    listed = control.get("/faults").json()
    assert [(one["name"], one["times_left"], one["applied"]) for one in listed["armed"]] == [
        ("500-before-charge", 1, 1)
    ]
    assert set(listed["known"]) == set(FAULTS)
    assert control.delete("/faults").json() == {"armed": []}
    assert api.post("/generations", json=IMAGE).status_code == 201


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ('{"name": "look-50"}', "did you mean 'look-500'"),
        ('{"name": "look-500", "tims": 1}', "did you mean 'times'"),
        ('{"times": 1}', "name"),
        ("[]", "object"),
        ("{", "JSON"),
    ],
)
def test_a_mistake_over_http_is_explained(control: httpx.Client, body: str, hint: str) -> None:
    response = control.post("/faults", content=body)
    assert response.status_code == 422
    assert hint in response.json()["error"]


def test_the_clock_can_be_moved_over_http(sandbox: Sandbox, api: httpx.Client, control: httpx.Client) -> None:
    api.post("/generations", json=IMAGE)
    before = sandbox.now
    assert control.post("/clock", json={"advance_seconds": LONG_ENOUGH}).json()["speed"] == 0
    assert (sandbox.now - before).total_seconds() == LONG_ENOUGH
    assert control.get("/generations").json()["generations"][0]["status"] == "completed"
    control.post("/clock", json={"speed": 2.5})
    assert sandbox.speed == 2.5
    for wrong in ({}, {"speed": "fast"}, {"advance": 1}, {"advance_seconds": -1}, {"advance_seconds": 1e300}):
        assert control.post("/clock", json=wrong).status_code == 422


def test_bill_requests_and_generations_can_be_read_over_http(
    sandbox: Sandbox, api: httpx.Client, control: httpx.Client
) -> None:
    generation_id = api.post("/generations", json=IMAGE).json()["data"]["id"]
    bill = control.get("/bill").json()
    assert (bill["count"], bill["total_usd"], bill["balance_usd"]) == (1, "0.02", "99.98")
    assert bill["purchases"][0]["id"] == generation_id
    assert [one["path"] for one in control.get("/requests").json()["requests"]] == ["/api/v1/generations"]
    assert control.get("/generations").json()["generations"][0]["prompt"] == IMAGE["prompt"]
    assert control.post("/reset").status_code == 200
    assert (control.get("/bill").json()["count"], sandbox.generations) == (0, ())


def test_the_control_page_shows_pictures_without_using_up_faults(
    sandbox: Sandbox, api: httpx.Client, control: httpx.Client
) -> None:
    generation_id = api.post("/generations", json={**IMAGE, "prompt": "<b>bold</b>"}).json()["data"]["id"]
    sandbox.advance(LONG_ENOUGH)
    sandbox.fault("media-404")
    page = control.get("").text
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "media-404" in page
    assert f'src="/_sandbox/preview/{generation_id}"' in page
    assert control.get(f"/preview/{generation_id}").content.startswith(b"\x89PNG")
    assert len(sandbox.faults) == 1
    assert [one.path for one in sandbox.requests] == ["/api/v1/generations"]
