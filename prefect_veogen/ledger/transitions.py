"""The state machine of a receipt: every state, every event, and every transition there is.

    RESERVED ──► SENDING ──► BOUGHT ──► STORED       the good path
        │  ▲      │ │ │         │
        │  └─429──┘ │ │         └──────► FAILED      it failed, and was not charged
        ▼           │ ▼
     RELEASED ◄─────┘ IN_DOUBT ──► BOUGHT            the response was lost: reconciled with the service's list, or
     (nothing was       │  ▲  └──► RELEASED          decided by a person;
      bought)           ▼  │
                      RESERVED                       proven absent: bought again by the next attempt

RELEASED and FAILED become RESERVED when the same request is made again. `_STEPS` holds every transition there is;
`next_state` refuses all others, so that what can't happen can't be written.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """How far a purchase is."""

    RESERVED = "reserved"
    """A worker is about to buy; surely nothing was sent yet."""
    SENDING = "sending"
    """The purchase is on its way; it may or may not have been made."""
    BOUGHT = "bought"
    """Paid for: the generation's id is known."""
    STORED = "stored"
    """The asset is in the store, verified."""
    FAILED = "failed"
    """The generation failed and was not charged."""
    RELEASED = "released"
    """Nothing was bought; any worker may try again."""
    IN_DOUBT = "unknown"
    """The response was lost: whether a purchase was made is to be reconciled with the service's list."""

    @property
    def label(self) -> str:
        """What it is called to people."""
        return "in doubt" if self is State.IN_DOUBT else self.value


class EventName(StrEnum):
    """What happened to a receipt."""

    RESERVED = "reserved"
    SENDING = "sending"
    WAITING = "waiting"
    BOUGHT = "bought"
    ADOPTED = "adopted"
    ALSO_BOUGHT = "also bought"
    STORED = "stored"
    FAILED = "failed"
    RELEASED = "released"
    IN_DOUBT = "unknown"
    READ = "read"
    REOPENED = "reopened"


class _Step(NamedTuple):
    """From which states an event may happen, and the state after it (`None`: the same)."""

    sources: frozenset[State]
    target: State | None


def _step(target: State | None, *sources: State) -> _Step:
    return _Step(frozenset(sources), target)


_UNBOUGHT = (State.RESERVED, State.SENDING, State.IN_DOUBT, State.RELEASED)
_STEPS: Mapping[EventName, _Step] = {
    # From IN_DOUBT only with the readings that prove the purchase absent; see `reserved`.
    EventName.RESERVED: _step(State.RESERVED, State.RESERVED, State.RELEASED, State.FAILED, State.IN_DOUBT),
    EventName.SENDING: _step(State.SENDING, State.RESERVED),
    EventName.WAITING: _step(State.RESERVED, State.SENDING),
    # From RESERVED and RELEASED too: a response may arrive after its sender was taken for dead.
    EventName.BOUGHT: _step(State.BOUGHT, *_UNBOUGHT),
    EventName.ADOPTED: _step(State.BOUGHT, *_UNBOUGHT),
    EventName.ALSO_BOUGHT: _step(None, State.BOUGHT, State.STORED, State.FAILED),
    EventName.STORED: _step(State.STORED, State.BOUGHT, State.STORED),
    EventName.FAILED: _step(State.FAILED, State.BOUGHT),
    EventName.RELEASED: _step(State.RELEASED, State.RESERVED, State.SENDING, State.IN_DOUBT),
    EventName.IN_DOUBT: _step(State.IN_DOUBT, State.SENDING),
    EventName.READ: _step(None, State.IN_DOUBT),
    EventName.REOPENED: _step(State.IN_DOUBT, State.RESERVED),
}


class IllegalTransition(AssertionError):
    """The program asked for a transition that the state machine doesn't have; nothing was written."""


def next_state(key: str, state: State, event: EventName) -> State:
    """Return the state of a receipt after an event.

    Raises:
        IllegalTransition: the event can't happen in that state.
    """
    sources, target = _STEPS[event]
    if state not in sources:
        raise IllegalTransition(f"{key} is {state.name}: it can't become {event.value!r}")
    return target or state
