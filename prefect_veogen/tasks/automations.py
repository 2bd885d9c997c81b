"""Automations that heal: a run which is heard of no more crashed; it is run again, as is one that did not begin."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import WorkPool
    from prefect.events.schemas.automations import Automation

HEALED_TAG: Final = "veogen"
"""The tag of deployments whose runs are healed; deployments/prefect.yaml sets it."""
MAX_HEALED: Final = 3
"""How often a run is started again: one that kills its process each time must end."""
HEARTBEATS_MISSED: Final = 3
HEARTBEAT_VARIABLE: Final = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
_LEAST_HEARTBEAT_SECONDS = 30
UNSTARTED_SECONDS: Final = 600
"""How long a worker may take to begin a run that it has taken: where images are pulled, that is minutes."""

_HEARTBEAT = "prefect.flow-run.heartbeat"
_BEGUN = "prefect.flow-run.Running"
_TAKEN = {f"prefect.flow-run.{name}" for name in ("Pending", "Submitting", "InfrastructurePending")}
# After these a run is silent, and rightly so.
_ENDS = {
    f"prefect.flow-run.{name}"
    for name in ("Completed", "Failed", "Crashed", "Cancelling", "Cancelled", "Suspended", "AwaitingRetry")
}
# Both: a flow that a deployment's flow calls is no run of a deployment, and can't be scheduled.
OF_HEALED: Final[list[ResourceSpecification | dict[str, str | list[str]]]] = [
    {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{HEALED_TAG}"},
    {"prefect.resource.role": "deployment"},
]
A_RUN: Final = "prefect.flow-run.*"
MADE_HERE: Final = "Made by prefect-veogen setup."


def heartbeat_seconds() -> int:
    """Return how often runs are to send a heartbeat: as is set on this machine, by default as often as Prefect can."""
    flows = get_current_settings().flows
    is_set = "heartbeat_frequency" in flows.model_fields_set
    return (is_set and flows.heartbeat_frequency) or _LEAST_HEARTBEAT_SECONDS


def heartbeat_of(pool: WorkPool) -> int | None:
    """Return how often the runs of a work pool send a heartbeat; `None` if that is up to each worker."""
    properties = pool.base_job_template.get("variables", {}).get("properties", {})
    seconds = (properties.get("env", {}).get("default") or {}).get(HEARTBEAT_VARIABLE)
    return int(seconds) if seconds and str(seconds).isdecimal() else None


def with_heartbeat(template: dict[str, Any], every_seconds: int) -> dict[str, Any]:
    """Return a work pool's template by which its runs send a heartbeat so often, whatever their workers have set."""
    template = copy.deepcopy(template)
    # A deployment's own `env` is merged with it.
    properties = template["variables"].setdefault("properties", {})
    env = properties.setdefault("env", {"type": "object", "title": "Environment Variables"})
    env["default"] = {**(env.get("default") or {}), HEARTBEAT_VARIABLE: str(every_seconds)}
    return template


def healing_automations(every_seconds: int) -> tuple[AutomationCore, AutomationCore, AutomationCore]:
    """Return what heals runs that send a heartbeat every so many seconds: first what detects death, then what restarts.

    They apply to runs of deployments with the tag `HEALED_TAG`, and to nothing else.
    """
    return _detect(HEARTBEATS_MISSED * every_seconds), _restart(), _restart_unstarted()


def _detect(silent_seconds: int) -> AutomationCore:
    return _automation(
        "veogen-silent-run-crashed",
        f"Marks a run of a deployment with the tag {HEALED_TAG} as crashed when it has sent no heartbeat "
        f"for {silent_seconds} s, as when its machine is gone.",
        ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {silent_seconds} s"),
        posture=Posture.Proactive,
        after={_HEARTBEAT, _BEGUN},
        expect={_HEARTBEAT, *_ENDS},
        within=timedelta(seconds=silent_seconds),
    )


def _restart() -> AutomationCore:
    # How often it has been started. What crashes before it was, would crash again for ever.
    counts = [str(count) for count in range(1, MAX_HEALED + 1)]
    return _automation(
        "veogen-crashed-run-again",
        f"Puts a crashed run of a deployment with the tag {HEALED_TAG} back on the schedule, at most "
        f"{MAX_HEALED} times. What it has bought is found again, not bought again.",
        _run_again("Its process is gone: run it again"),
        match={"prefect.resource.id": A_RUN, "prefect.run-count": counts},
        posture=Posture.Reactive,
        expect={"prefect.flow-run.Crashed"},
        within=timedelta(0),
    )


def _restart_unstarted() -> AutomationCore:
    # No heartbeat can be missed yet: a run whose worker dies here stays pending, and keeps its deployment's slot.
    return _automation(
        "veogen-unstarted-run-again",
        f"Puts a run of a deployment with the tag {HEALED_TAG} back on the schedule when a worker took it "
        f"and it has not begun within {UNSTARTED_SECONDS} s, as when that machine is gone.",
        _run_again(f"A worker took it {UNSTARTED_SECONDS} s ago and it has not begun: run it again"),
        posture=Posture.Proactive,
        after=_TAKEN,
        expect={_HEARTBEAT, _BEGUN, *_ENDS},
        within=timedelta(seconds=UNSTARTED_SECONDS),
    )


def _automation(name: str, description: str, action: ChangeFlowRunState, **trigger: Any) -> AutomationCore:
    """Return an automation on each run that is healed; `trigger` says upon what."""
    common = {"match": {"prefect.resource.id": A_RUN}, "match_related": OF_HEALED, "for_each": {"prefect.resource.id"}}
    return AutomationCore(
        name=name,
        description=f"{description} {MADE_HERE}",
        enabled=True,
        trigger=EventTrigger(**{**common, **trigger}, threshold=1),
        actions=[action],
    )


def _run_again(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=message)


NAMES: Final = tuple(automation.name for automation in healing_automations(60))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One automation as the server has it, beside what it should be."""

    wanted: AutomationCore
    found: Automation | None
    others: tuple[Automation, ...] = ()
    """More of that name, which would do everything once more: two have made it at the same time."""

    @property
    def is_as_wanted(self) -> bool:
        """Whether trigger and actions are what they should be; someone may have paused it nevertheless."""
        return (
            self.found is not None
            and not self.others
            and _essence(self.found) == _essence(self.wanted)
            and self.found.description == self.wanted.description
        )


async def read_healing(client: PrefectClient, every_seconds: int) -> tuple[Comparison, ...]:
    """Return the automations that heal, wanted and found."""
    return await compare(client, healing_automations(every_seconds))


async def compare(client: PrefectClient, wanted: Iterable[AutomationCore]) -> tuple[Comparison, ...]:
    """Return automations beside what the server has under their names."""
    return tuple([await _compare(client, each) for each in wanted])


async def _compare(client: PrefectClient, wanted: AutomationCore) -> Comparison:
    found = await _find(client, wanted.name)
    return Comparison(wanted, found[0] if found else None, tuple(found[1:]))


async def keep_one(client: PrefectClient, name: str) -> None:
    """Remove all automations of a name but one: the same one that whoever else does so at this time keeps."""
    for each in (await _find(client, name))[1:]:
        with suppress(ObjectNotFound):
            await client.delete_automation(each.id)


async def _find(client: PrefectClient, name: str) -> list[Automation]:
    return sorted(await client.read_automations_by_name(name), key=lambda each: each.id)


def silence_of(automation: AutomationCore) -> timedelta | None:
    """Return after which silence an automation acts, `None` if it doesn't act on silence."""
    trigger = automation.trigger
    is_proactive = isinstance(trigger, EventTrigger) and trigger.posture is Posture.Proactive
    return trigger.within if isinstance(trigger, EventTrigger) and is_proactive else None


def _essence(automation: AutomationCore) -> object:
    """Return what an automation does, whatever ids the server has added."""
    trigger = automation.trigger
    if not isinstance(trigger, EventTrigger):
        return None
    related = trigger.match_related if isinstance(trigger.match_related, list) else [trigger.match_related]
    matched = [dict(_specification(each).items()) for each in (trigger.match, *related)]
    rest = (trigger.posture, trigger.after, trigger.expect, trigger.for_each, trigger.threshold, trigger.within)
    return matched, rest, [action.model_dump(mode="json") for action in automation.actions]


def _specification(match: ResourceSpecification | dict[str, str | list[str]]) -> ResourceSpecification:
    return match if isinstance(match, ResourceSpecification) else ResourceSpecification(match)
