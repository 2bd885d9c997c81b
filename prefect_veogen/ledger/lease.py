"""Leases: which process owns a purchase, and whether that process is still alive.

On the same machine a death is certain at once: a process is known by its id together with its start time, seen from the
same kernel and the same process namespace (a container has its own). Elsewhere only the expiry of its lease tells.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator

# Clocks of different machines may differ by so much without an owner being declared dead too early.
CLOCK_TOLERANCE = timedelta(seconds=30)

_active: set[str] = set()
"""The ids of this process's own leases; no lock, which a fork could leave locked for ever."""


class Owner(BaseModel):
    """Who holds something: one call in one process on one machine, until `lease_until` unless it lives on."""

    model_config = ConfigDict(frozen=True)

    id: str
    host: str
    pid: int
    process: str | None = None
    lease_until: datetime
    flow_run_id: str | None = None

    def renewed(self, seconds: float) -> Owner:
        """Return the same owner with a renewed lease."""
        return self.model_copy(update={"lease_until": datetime.now(UTC) + timedelta(seconds=seconds)})

    def is_dead(self) -> bool:
        """Tell whether this owner surely can't act any more: its call or process ended, or its lease expired."""
        own = _process_mark(os.getpid())
        if self.process is not None and own is not None and _same_machine(self.process, own):
            if self.process == own:
                return self.id not in _active
            mark = _process_mark(self.pid)
            if mark is not None or not _is_hidden(self.pid):
                return mark != self.process
        return self.is_expired()

    def is_expired(self) -> bool:
        """Tell whether the lease has expired, be the owner dead or alive."""
        return datetime.now(UTC) > self.lease_until + CLOCK_TOLERANCE


@contextmanager
def own_lease(lease_seconds: float, flow_run_id: str | None) -> Iterator[Owner]:
    """Own a lease while in the context; on exit it is released, in this process at once."""
    pid = os.getpid()
    owner = Owner(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=pid,
        process=_process_mark(pid),
        lease_until=datetime.now(UTC) + timedelta(seconds=lease_seconds),
        flow_run_id=flow_run_id,
    )
    _active.add(owner.id)
    try:
        yield owner
    finally:
        _active.discard(owner.id)


def boot_seconds() -> float:
    """Return the time since the machine started, that in which it slept included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _same_machine(one: str, other: str) -> bool:
    return one.rpartition("/")[0] == other.rpartition("/")[0]


def _is_hidden(pid: int) -> bool:
    """Tell whether a process runs that the system hides from us (another user's, with `hidepid`)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _process_mark(pid: int) -> str | None:
    """Return kernel, namespace and start of a process; `None` where there is none, or the system doesn't say."""
    view = _view()
    if view is None:
        return None
    try:
        # The name in brackets may hold spaces; the state is the first field behind it, the start time the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    is_zombie = fields[0] in "ZX"
    return None if is_zombie else f"{view}/{pid}.{fields[19]}"


@lru_cache(maxsize=1)
def _view() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Not a path: the link reads pid:[4026531836].
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return None
    return f"{boot}/{namespace}"
