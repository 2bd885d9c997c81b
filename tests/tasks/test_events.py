"""Labels through the tasks, and the events that a Prefect server keeps of purchases and caps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client, unmapped
from prefect.runtime import flow_run
from prefect.settings import PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES, temporary_settings

from prefect_veogen import Asset, GenerationRequest, generate, submit_generation
from prefect_veogen.campaign.rows import Row
from prefect_veogen.errors import BudgetExceeded, ConfigurationError
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.tasks.campaign import make_campaign, publish_campaign
from prefect_veogen.tasks.events import emit
from prefect_veogen.upkeep.balance import LOW
from tests.support.runs import task_runs

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")
PICTURES = [GenerationRequest(model="gpt-4o-image", prompt=f"picture {number}") for number in range(3)]
PATIENCE_SECONDS = 60.0


@pytest.fixture
def project() -> str:
    """A label's value that no other test's events have."""
    return f"spring-{uuid.uuid4().hex[:8]}"


async def events(name: str, payload: Callable[[dict[str, Any]], bool], at_least: int = 1) -> list[dict[str, Any]]:
    """Return the server's events of a name with a certain payload, once there are so many."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with get_client() as client:
        while True:
            response = await client._client.post(
                "/events/filter", json={"filter": {"event": {"name": [name]}}, "limit": 50}
            )
            found = [event for event in response.json()["events"] if payload(event["payload"])]
            if len(found) >= at_least:
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.2)


async def events_of(name: str, project: str, at_least: int = 1) -> list[dict[str, Any]]:
    return await events(name, lambda payload: payload.get("labels") == {"project": project}, at_least)


def run_of(event: dict[str, Any]) -> str:
    (run,) = [it["prefect.resource.id"] for it in event["related"] if it["prefect.resource.role"] == "flow-run"]
    return str(run)


def sidecar_of(asset: Asset) -> dict[str, Any]:
    return dict(json.loads(Path(f"{asset.uri.removeprefix('file://')}.json").read_text()))


async def labels_in_receipts() -> list[dict[str, str]]:
    session = open_session()
    entries = [await session.ledger.read(key) for key in await session.ledger.list_keys()]
    return [entry.receipt.labels for entry in entries if entry is not None]


async def test_a_purchase_is_labelled_and_told_once_and_a_reused_one_keeps_its_label(
    sandbox: Sandbox, project: str
) -> None:
    @flow
    async def one_picture(label: str) -> tuple[UUID, Asset]:
        return UUID(flow_run.id), await generate(CAT, labels={"project": label})

    (first, asset), (again, same) = await one_picture(project), await one_picture("other")
    assert same == asset
    assert [run.state_name for run in await task_runs(again, 3)] == ["Cached"] * 3
    assert await labels_in_receipts() == [{"project": project}]
    sidecar = sidecar_of(asset)
    assert sidecar["labels"] == {"project": project}
    (event,) = await events_of("veogen.generation.bought", project)
    assert event["resource"]["prefect.resource.id"] == f"veogen.generation.{asset.generation_id}"
    assert run_of(event) == f"prefect.flow-run.{first}"
    assert event["payload"] == {
        "generation_id": asset.generation_id,
        "model": "gpt-4o-image",
        "price_usd": "0.02",
        "take": "1",
        "receipt": sidecar["receipt"],
        "labels": {"project": project},
    }


def test_submitted_and_mapped_purchases_are_labelled_too(sandbox: Sandbox, project: str) -> None:
    @flow
    def pictures() -> None:
        first: Any = generate.submit(PICTURES[0], labels={"project": project})
        rest: Any = submit_generation.map(PICTURES[1:], labels=unmapped({"project": project}))
        first.result()
        rest.result()

    pictures()
    assert asyncio.run(labels_in_receipts()) == [{"project": project}] * 3
    assert len(asyncio.run(events_of("veogen.generation.bought", project, 3))) == 3


async def test_a_labels_cap_holds_and_its_warning_and_refusal_are_told(
    sandbox: Sandbox, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGETS", json.dumps({f"project:{project}": 0.05}))

    @flow
    async def pictures() -> list[Any]:
        wanted = (generate(picture, labels={"project": project}) for picture in PICTURES)
        return list(await asyncio.gather(*wanted, return_exceptions=True))

    ends = sorted(type(end).__name__ for end in await pictures())
    assert (ends, len(sandbox.bill)) == (["Asset", "Asset", "BudgetExceeded"], 2)
    budget = f"label-project:{project}"
    (refused,) = await events_of("veogen.budget.refused", project)
    assert refused["resource"]["prefect.resource.id"] == f"veogen.budget.{budget}"
    assert refused["payload"]["left_usd"] == "0.01"
    (warned,) = await events("veogen.budget.warned", lambda payload: payload["budget"] == budget)
    assert warned["payload"] == {"budget": budget, "cap_usd": "0.05", "committed_usd": "0.04", "left_usd": "0.01"}


async def test_the_rows_of_a_campaign_tell_theirs_as_well(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"sale-{uuid.uuid4().hex[:8]}"

    @flow
    async def rows() -> Any:
        return await make_campaign([Row(id="a", request=CAT)], name=name, budget_usd=Decimal("0.02"))

    report = await rows()
    (warned,) = await events("veogen.budget.warned", lambda payload: payload["budget"] == f"campaign-{name}")
    assert warned["payload"]["left_usd"] == "0.00"
    (generation,) = (asset.generation_id for asset in report.items[0].assets)
    assert await events("veogen.generation.bought", lambda payload: payload["generation_id"] == generation)


@pytest.mark.parametrize("labels", [{"Project": "spring"}, {"project": ""}, {"project": None}, "project=spring"])
async def test_what_can_be_no_label_is_refused_before_anything_is_bought(sandbox: Sandbox, labels: Any) -> None:
    with pytest.raises(ConfigurationError, match="labels can't be used"):
        await generate(CAT, labels=labels)
    assert len(sandbox.generations) == 0


@pytest.mark.parametrize("payload", [{"text": "x" * 100}, {"cannot be sent": object()}], ids=["too large", "no JSON"])
def test_an_event_that_cannot_be_sent_raises_nothing(payload: dict[str, Any]) -> None:
    with temporary_settings({PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES: 100}):
        emit("veogen.test", "veogen.test.1", payload)


async def test_failures_and_doubts_are_told_with_what_they_cost(
    sandbox: Sandbox, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("failed", prompt="picture 0")
    sandbox.fault("lost-answer-before-charge", prompt="picture 1")
    rows = [Row(str(number), request, labels={"project": project}) for number, request in enumerate(PICTURES[:2])]

    @flow
    async def doomed() -> None:
        await make_campaign(rows, name="doomed")

    await doomed()
    (failed,) = await events_of("veogen.generation.failed", project)
    assert (failed["payload"]["campaign"], failed["payload"]["model"]) == ("doomed", "gpt-4o-image")
    assert failed["payload"]["error"]
    (doubted,) = await events_of("veogen.generation.in_doubt", project)
    assert doubted["payload"]["price_usd"] == "0.02"
    assert doubted["resource"]["prefect.resource.id"] == f"veogen.receipt.{doubted['payload']['receipt']}"


async def test_each_run_of_a_campaign_tells_its_end_and_its_assets_and_which_were_reused(
    sandbox: Sandbox, project: str
) -> None:
    rows = [Row("a", CAT, labels={"project": project})]

    @flow
    async def campaign() -> None:
        await publish_campaign(await make_campaign(rows, name=project))

    await campaign()
    await campaign()
    finished = await events("veogen.campaign.finished", lambda payload: payload["campaign"] == project, 2)
    assert [event["payload"]["counts"] for event in finished] == [{"ok": 1}] * 2
    assert finished[0]["payload"]["results_uri"].endswith(f"campaigns/{project}/results.jsonl")
    (bought,) = await events_of("veogen.generation.bought", project)
    made = bought["payload"]["generation_id"]
    stored = await events("veogen.asset.stored", lambda payload: payload["generation_id"] == made, 2)
    assert sorted(event["resource"]["veogen.reused"] for event in stored) == ["false", "true"]
    assert sorted(event["payload"]["reused"] for event in stored) == [False, True]
    assert stored[0]["payload"]["labels"] == {"project": project}
    assert (stored[0]["payload"]["prompt"], stored[0]["payload"]["campaign"]) == (CAT.prompt, project)


async def test_every_documented_event_is_sent_with_the_documented_payload_and_no_other(
    sandbox: Sandbox, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    monkeypatch.setenv("VEOGEN_BUDGETS", json.dumps({f"project:{project}": 0.10}))
    sandbox.fault("failed", prompt="picture 0")
    sandbox.fault("lost-answer-before-charge", prompt="picture 1")
    labels = {"project": project}
    rows = [Row(str(number), request, labels=labels) for number, request in enumerate((*PICTURES, CAT))]

    @flow
    async def all_that_can_happen() -> str:
        await publish_campaign(await make_campaign(rows, name=project))
        for number in range(3, 9):
            with contextlib.suppress(BudgetExceeded):
                await generate(CAT.model_copy(update={"take": number}), labels=labels)
        return f"prefect.flow-run.{flow_run.id}"

    documented = dict(documented_events())
    sent = await events_with(await all_that_can_happen(), {*documented})
    for name, fields in documented.items():
        assert sent[name]["payload"].keys() == fields, name
    shown = sent["veogen.campaign.finished"]["resource"]
    assert (shown["veogen.all_ok"], shown["veogen.counts.failed"], shown["veogen.rows"]) == ("false", "1", "4")
    assert sent["veogen.generation.bought"]["resource"]["veogen.labels.project"] == project


def documented_events() -> Iterator[tuple[str, set[str]]]:
    """Yield the names of docs/events.md that a run of this test can send, and what their payload has."""
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    for name, payload in re.findall(r"^\| `(veogen\.[a-z_.]+)` \|.*\| ([^|]*) \|$", page, re.MULTILINE):
        if name != LOW:
            yield name, set(re.findall(r"`(\w+)`", payload))


async def events_with(resource: str, names: set[str]) -> dict[str, dict[str, Any]]:
    """Return a run's last event of each name, once all have come."""
    wanted = {"filter": {"event": {"prefix": ["veogen."]}, "related": {"id": [resource]}}, "limit": 50}
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with get_client() as client:
        while True:
            found = (await client._client.post("/events/filter", json=wanted)).json()["events"]
            by_name = {event["event"]: event for event in found}
            if by_name.keys() >= names:
                return by_name
            assert time.monotonic() < deadline, names - by_name.keys()
            await asyncio.sleep(0.2)
