"""Automations that tell a person what happened and what to do next, through a notification block of the server's."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from prefect_veogen.purchase.notices import FAILED, IN_DOUBT, REFUSED, WARNED
from prefect_veogen.tasks.automations import A_RUN, HEALED_TAG, MADE_HERE, OF_HEALED, Comparison, compare
from prefect_veogen.tasks.campaign import FINISHED_EVENT
from prefect_veogen.upkeep.balance import LOW

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import BlockDocument
    from prefect.events.schemas.events import ResourceSpecification

QUIET: Final = timedelta(minutes=10)
"""How long an alert is quiet after a message: a service in trouble must not send hundreds."""

_EACH: Final = frozenset({"prefect.resource.id"})


@dataclass(frozen=True, slots=True)
class _Alert:
    """What a person is told of, in Prefect's templates over the event; after a message it is quiet, `per` resource."""

    name: str
    told: str
    events: frozenset[str]
    subject: str
    body: str
    per: frozenset[str] = frozenset()
    match: dict[str, str | list[str]] = field(default_factory=dict)
    related: list[ResourceSpecification | dict[str, str | list[str]]] = field(default_factory=list)


# Where the run is: its artifacts show the pictures.
_RUN: Final = (
    "{% if flow_run %}\n\nRun: {{ flow_run.name }}"
    "{% set url = flow_run|ui_url %}{% if url %}, with its pictures under Artifacts: {{ url }}{% endif %}{% endif %}"
)
_FOR: Final = (
    "{% if event.payload.campaign %} of the campaign {{ event.payload.campaign }}{% endif %}"
    "{% for name, value in event.payload.labels|default({}, true)|dictsort %} [{{ name }}={{ value }}]{% endfor %}"
)

_IN_DOUBT: Final = _Alert(
    "veogen-alert-in-doubt",
    "a purchase in doubt",
    frozenset({IN_DOUBT}),
    "Veogen: a purchase of {{ event.payload.model }} is in doubt",
    "It may or may not have cost ${{ event.payload.price_usd }}" + _FOR + ". {{ event.payload.reason }}.\n\n"
    "What to do: nothing at once. The next run, or `prefect-veogen sweep`, searches for it and never buys twice. If "
    "the doubt stays, decide: `prefect-veogen receipts show {{ event.payload.receipt }}`. There may be more: "
    "`prefect-veogen receipts list --state in-doubt`." + _RUN,
)
_BUDGET: Final = _Alert(
    "veogen-alert-budget",
    "a budget that refused a purchase, or of which 80 % are committed",
    frozenset({REFUSED, WARNED}),
    "Veogen: the budget {{ event.payload.budget }} "
    f"{{% if event.event == '{REFUSED}' %}}refused a purchase{{% else %}}is used up soon{{% endif %}}",
    f"{{% if event.event == '{REFUSED}' %}}"
    "{% if event.payload.wanted_usd %}${{ event.payload.wanted_usd }} were wanted"
    "{% if event.payload.model %} for {{ event.payload.model }}{% endif %}"
    "{% else %}{{ event.payload.model }} has no price{% endif %}" + _FOR + "; ${{ event.payload.left_usd }} of "
    "${{ event.payload.cap_usd }} are left. Nothing was bought for it.\n\n"
    "What to do: look at what was spent (`prefect-veogen costs --by campaign`), raise the cap or wait until it is "
    "renewed, and run again: only what is missing is bought."
    "{% else %}${{ event.payload.committed_usd }} of ${{ event.payload.cap_usd }} are spent or reserved: "
    "${{ event.payload.left_usd }} are left.\n\n"
    "What to do: look at what was spent (`prefect-veogen costs --by campaign`), and raise the cap before it refuses, "
    "if it should not.{% endif %}" + _RUN,
    per=_EACH,
)
_FAILED: Final = _Alert(
    "veogen-alert-failed",
    "a generation that failed",
    frozenset({FAILED}),
    "Veogen: a generation of {{ event.payload.model }} failed",
    "{{ event.payload.error }} ({{ event.payload.generation_id }}" + _FOR + "). It was not charged.\n\n"
    "What to do: run again, which buys it anew, or change the prompt if it was rejected: "
    "`prefect-veogen receipts show {{ event.payload.receipt }}`. There may be more: "
    "`prefect-veogen receipts list --state failed`." + _RUN,
)
_BALANCE: Final = _Alert(
    "veogen-alert-balance",
    "a balance that doesn't last for three days more",
    frozenset({LOW}),
    "Veogen: the balance of ${{ event.payload.balance_usd }} is low",
    "At ${{ event.payload.daily_usd }} a day, as in the last seven, it lasts for {{ event.payload.days_covered }} days."
    "\n\n"
    "What to do: top it up at veogen.studio; `prefect-veogen balance` shows it. A run without balance buys nothing and "
    "loses nothing: run it again afterwards." + _RUN,
    per=_EACH,
)
_CAMPAIGN: Final = _Alert(
    "veogen-alert-campaign",
    "a campaign that ended with rows missing",
    frozenset({FINISHED_EVENT}),
    "Veogen: the campaign {{ event.payload.campaign }} ended with rows missing",
    "Of {{ event.payload.rows }} rows:{% for status, count in event.payload.counts|dictsort %} {{ count }} {{ status }}"
    "{% if not loop.last %},{% endif %}{% endfor %}; ${{ event.payload.price_usd }}.\n\n"
    "Pictures: {{ event.payload.gallery_uri }}\nErrors, row by row: {{ event.payload.results_uri }}\n\n"
    "What to do: run the campaign again. It buys only what is missing, and resumes what is paid for." + _RUN,
    per=_EACH,
    match={"prefect.resource.id": "veogen.campaign.*", "veogen.all_ok": "false", "veogen.run_again": "false"},
)
_APPROVAL: Final = _Alert(
    "veogen-alert-approval",
    f"a run of a deployment with the tag {HEALED_TAG} that waits for a person",
    frozenset({"prefect.flow-run.Suspended"}),
    "Veogen: {{ flow_run.name }} waits for your decision",
    "Its pictures are made and stored; no clip is bought until you have approved.\n\n"
    "What to do: look at them, choose Resume and fill in the form." + _RUN,
    per=_EACH,
    match={"prefect.resource.id": A_RUN},
    related=OF_HEALED,
)
_ALERTS: Final = (_IN_DOUBT, _BUDGET, _FAILED, _BALANCE, _CAMPAIGN, _APPROVAL)

ALERT_NAMES: Final = tuple(alert.name for alert in _ALERTS)


def alert_automations(block: UUID) -> tuple[AutomationCore, ...]:
    """Return the automations that send messages through a notification block."""
    return tuple(_automation(alert, block) for alert in _ALERTS)


def _automation(alert: _Alert, block: UUID) -> AutomationCore:
    return AutomationCore(
        name=alert.name,
        description=f"Tells of {alert.told}, and what to do; then it is quiet for {QUIET.seconds // 60} minutes"
        f"{' about the same' if alert.per else ''}. {MADE_HERE}",
        enabled=True,
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match=alert.match,
            match_related=alert.related,
            for_each=set(alert.per),
            expect=set(alert.events),
            threshold=1,
            within=QUIET,
        ),
        actions=[SendNotification(block_document_id=block, subject=alert.subject, body=alert.body)],
    )


async def read_alerts(client: PrefectClient, block: BlockDocument | None = None) -> tuple[Comparison, ...]:
    """Return the alerts as they should be beside what the server has, by default through the block that they use now.

    Empty where no block is given and there are none.
    """
    used = await find_block_in_use(client) if block is None else block.id
    return () if used is None else await compare(client, alert_automations(used))


async def find_block_in_use(client: PrefectClient) -> UUID | None:
    """Return the block through which the server's alerts are sent, `None` where there are none."""
    for name in ALERT_NAMES:
        for found in await client.read_automations_by_name(name):
            for action in found.actions:
                if isinstance(action, SendNotification):
                    return action.block_document_id
    return None
