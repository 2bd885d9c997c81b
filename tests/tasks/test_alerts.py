"""Alerts: what needs a person arrives at a webhook, with what to do next, and not hundreds of times."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Suspended
from pydantic import SecretStr

from flows.campaign import campaign
from prefect_veogen import GenerationRequest, Settings, generate
from prefect_veogen.campaign.rows import Row
from prefect_veogen.errors import BudgetExceeded, ConfigurationError
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.alerts import ALERT_NAMES
from prefect_veogen.tasks.campaign import make_campaign, publish_campaign
from prefect_veogen.tasks.events import emit
from prefect_veogen.tasks.provision import provision, withdraw
from prefect_veogen.upkeep.balance import LOW
from tests.support.runs import execute, run_of
from tests.support.servers import Reply, Request, serving

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

PATIENCE_SECONDS = 60.0
BLOCK = "custom-webhook/alerts"


class Inbox:
    """What a webhook has received: subject and body of each message."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    def receive(self, request: Request) -> Reply:
        message = json.loads(request.body)
        self.messages.append((message["subject"], message["body"]))
        return Reply()

    async def about(self, word: str) -> tuple[str, str]:
        """Return the only message that has a word in it, once it has come."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := [message for message in self.messages if word in "\n".join(message)]):
            assert time.monotonic() < deadline, self.messages
            await asyncio.sleep(0.1)
        (message,) = found
        return message


@pytest.fixture
def inbox(sandbox: Sandbox) -> Iterator[Inbox]:
    """A server with alerts that are sent to a webhook of this process."""
    inbox = Inbox()
    with serving(inbox.receive) as url:
        block = CustomWebhookNotificationBlock(
            name="alerts", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        block.save("alerts", overwrite=True)
        asyncio.run(provision(Settings(), BLOCK))
        yield inbox
        asyncio.run(withdraw(Settings()))


def rows(count: int) -> list[Row]:
    return [
        Row(str(number), GenerationRequest(model="gpt-4o-image", prompt=f"picture {number}")) for number in range(count)
    ]


async def test_a_refused_budget_arrives_with_the_amounts_the_run_and_what_to_do(inbox: Inbox, sandbox: Sandbox) -> None:
    project = f"spring-{uuid.uuid4().hex[:8]}"

    @flow
    async def two_pictures() -> str:
        requests = [GenerationRequest(model="gpt-4o-image", prompt=f"picture {number}") for number in range(2)]
        await generate(requests[0], labels={"project": project}, budget_usd=Decimal("0.03"))
        with pytest.raises(BudgetExceeded):
            await generate(requests[1], labels={"project": project}, budget_usd=Decimal("0.03"))
        return str(flow_run.name)

    run = await two_pictures()
    subject, body = await inbox.about(f"[project={project}]")
    assert subject.startswith("Veogen: the budget run-")
    assert subject.endswith(" refused a purchase")
    assert body.startswith("$0.02 were wanted for gpt-4o-image")
    assert "$0.01 of $0.03 are left. Nothing was bought for it." in body
    assert "What to do: look at what was spent (`prefect-veogen costs --by campaign`), raise the cap" in body
    assert f"Run: {run}" in body
    assert len(sandbox.bill) == 1


async def test_a_doubt_and_a_failure_arrive_with_the_receipt_to_look_at(
    inbox: Inbox, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("lost-answer-before-charge", prompt="picture 0")
    sandbox.fault("failed", prompt="picture 1")
    name = f"doomed-{uuid.uuid4().hex[:8]}"

    @flow
    async def doomed() -> list[str]:
        report = await make_campaign(rows(2), name=name)
        return [step.receipt for item in report.items for step in item.steps]

    lost, failed = await doomed()
    subject, body = await inbox.about(lost)
    assert subject == "Veogen: a purchase of gpt-4o-image is in doubt"
    assert body.startswith(f"It may or may not have cost $0.02 of the campaign {name}. ")
    assert "`prefect-veogen receipts show " + lost + "`" in body
    subject, body = await inbox.about(failed)
    assert subject == "Veogen: a generation of gpt-4o-image failed"
    assert "It was not charged.\n\nWhat to do: run again" in body


@pytest.mark.usefixtures("no_schedule_stays")
async def test_of_a_scheduled_campaign_that_is_run_again_for_its_rows_only_the_last_word_arrives(
    inbox: Inbox, sandbox: Sandbox
) -> None:
    sandbox.speed = 1
    sandbox.fault("stuck", times=None)
    names = [f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("scheduled", "hand")]
    table = [{"id": "1", "model": "gpt-4o-image", "prompt": "a lamp"}]
    run = await run_of(campaign, manifest=table, name=names[0], timeout_seconds=0.5)
    for _ in range(3):
        assert (await execute(campaign, run)).name == "AwaitingRetry"
    await campaign(table, name=names[1], timeout_seconds=0.5)
    await inbox.about(f"the campaign {names[1]} ended")
    assert names[0] not in str(inbox.messages)
    assert (await execute(campaign, run)).is_completed()
    _, body = await inbox.about(f"the campaign {names[0]} ended")
    assert body.startswith("Of 1 rows: 1 unknown")


async def test_a_service_in_trouble_sends_one_message_and_the_campaign_tells_the_rest(
    inbox: Inbox, sandbox: Sandbox
) -> None:
    name = f"sale-{uuid.uuid4().hex[:8]}"
    sandbox.fault("failed", prompt="picture", times=3)

    @flow
    async def campaign(name: str, count: int) -> Any:
        report = await make_campaign(rows(count), name=name)
        return await publish_campaign(report)

    gallery = await campaign(name, 4)
    subject, body = await inbox.about(f"the campaign {name} ended")
    assert body.startswith("Of 4 rows: 3 failed, 1 ok; $0.02.")
    assert f"Pictures: {gallery}" in body
    assert "What to do: run the campaign again. It buys only what is missing" in body
    assert len([subject for subject, _ in inbox.messages if subject.endswith("failed")]) == 1
    # All is well now, which nobody needs to be told: what comes after it comes without it.
    await campaign(name, 4)
    emit(LOW, f"veogen.account.{name}", {"balance_usd": "1.20", "daily_usd": "0.80", "days_covered": "1.5"})
    subject, body = await inbox.about("balance")
    assert subject == "Veogen: the balance of $1.20 is low"
    assert body.startswith("At $0.80 a day, as in the last seven, it lasts for 1.5 days.\n\nWhat to do: top it up")
    assert len([subject for subject, _ in inbox.messages if name in subject]) == 1


async def test_a_run_that_waits_for_a_person_says_where_its_pictures_are(inbox: Inbox) -> None:
    @flow
    def choose() -> None: ...

    async with get_client() as client:
        flow_id = await client.create_flow(choose)
        healed, other = [
            await client.create_deployment(flow_id, f"choose-{uuid.uuid4().hex[:8]}", tags=tags)
            for tags in (["veogen"], ["theirs"])
        ]
        for deployment in (other, healed):
            run = await client.create_flow_run_from_deployment(deployment)
            await client.set_flow_run_state(run.id, Suspended(), force=True)
    subject, body = await inbox.about("waits for your decision")
    assert subject == f"Veogen: {run.name} waits for your decision"
    assert "What to do: look at them, choose Resume" in body
    assert f"Run: {run.name}" in body


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("custom-webhook/nowhere", "The Prefect server has no block custom-webhook/nowhere"),
        ("alerts", "'alerts' is not a valid name of a block"),
        ("secret/word", "secret/word can't send messages: Secret is not a notification block"),
    ],
)
async def test_a_block_that_can_send_nothing_is_refused_before_anything_is_made(
    sandbox: Sandbox, block: str, words: str
) -> None:
    await Secret(value=SecretStr("x")).asave("word", overwrite=True)
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        await provision(Settings(), block)
    async with get_client() as client:
        assert [await client.read_automations_by_name(name) for name in ALERT_NAMES] == [[]] * len(ALERT_NAMES)
