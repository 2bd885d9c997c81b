"""Events that automations of the Prefect server can react to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prefect.events import emit_event

_log = logging.getLogger("prefect_veogen")


def emit(name: str, resource: str, payload: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
    """Send an event about a resource to Prefect, which adds the run that it is sent from; nothing waits for it.

    `labels` are the resource's, which a trigger can match.

    A courtesy: one that can't be sent is lost, and fails no run.
    """
    title = resource.rpartition("/")[2] if "://" in resource else resource
    shown = {"prefect.resource.id": resource, "prefect.resource.name": title, **(labels or {})}
    try:
        emit_event(name, resource=shown, payload=dict(payload))
    except Exception as error:  # noqa: BLE001 - whatever the server or Prefect's queue says, the money is spent already
        _log.debug("The event %s could not be sent: %s", name, error)
