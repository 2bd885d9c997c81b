"""Events that automations of the Prefect server can react to."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from prefect.events import emit_event

_MAX_LABEL_CHARACTERS = 200

_log = logging.getLogger("prefect_veogen")


def emit(name: str, resource: str, payload: Mapping[str, Any]) -> None:
    """Send an event about a resource to Prefect, which adds the run that it is sent from; nothing waits for it.

    What it carries is on its resource as well, as `veogen.<field>`, unless it is long: triggers see nothing else. A
    courtesy: one that can't be sent is lost, and fails no run.
    """
    title = resource.rpartition("/")[2] if "://" in resource else resource
    shown = {"prefect.resource.id": resource, "prefect.resource.name": title, **dict(_on_resource(payload))}
    try:
        emit_event(name, resource=shown, payload=dict(payload))
    except Exception as error:  # noqa: BLE001 - whatever the server or Prefect's queue says, the money is spent already
        _log.debug("The event %s could not be sent: %s", name, error)


def _on_resource(payload: Mapping[str, Any], prefix: str = "veogen") -> Iterator[tuple[str, str]]:
    for name, value in payload.items():
        if isinstance(value, Mapping):
            yield from _on_resource(value, f"{prefix}.{name}")
        elif isinstance(value, bool):
            yield f"{prefix}.{name}", str(value).lower()
        elif isinstance(value, str | int) and len(str(value)) <= _MAX_LABEL_CHARACTERS:
            yield f"{prefix}.{name}", str(value)
