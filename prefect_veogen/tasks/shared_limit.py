"""One rate limit over many processes and machines, through a Prefect global concurrency limit where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
import weakref
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from prefect_veogen.api.rate_limit import burst_and_interval
from prefect_veogen.process.io_loop import close_at_end, close_now, io_loop, on_io
from prefect_veogen.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

    from prefect_veogen.session import Session

_TRUSTED_SECONDS = 300.0
# A server that doesn't respond is asked again sooner.
_RETRY_AFTER_SECONDS = 60.0
# A busy server (SQLite under load) takes some seconds now and then, Prefect's client waits for two before it repeats a
# 503, and a process that gives up leaves the shared limit.
_RESPONSE_SECONDS = 10.0
# Prefect lets whole slots decay and rounds fractions away at each request: of thousandths that is hardly anything.
_SLOTS_PER_REQUEST = 1000
# Waiting processes retry at different times, over this share of a request's interval: all but one would be refused.
_JITTER = 0.2
# After this time a server that reports current slots must show that some have decayed.
_DECAY_SHOWS_SECONDS = 0.1


class _Connection:
    """A connection to a Prefect server, on the I/O loop; closed when it has failed and its last user is done."""

    def __init__(self) -> None:
        # Making one takes more than 20 ms of processor time, too much for each request.
        self.client = get_client(httpx_settings={"event_hooks": {"response": [_retry_soon]}})
        self.users = 0
        self.has_failed = False

    async def open(self) -> None:
        await self.client.__aenter__()
        close_at_end(self.close)

    async def close(self) -> None:
        await self.client.__aexit__(None, None, None)


class _Server:
    """What this process knows of a Prefect server's limits, and its connection to it; belongs to the I/O loop."""

    def __init__(self) -> None:
        self.connection: _Connection | None = None
        self.reports_no_decay = False
        """Whether it reports active slots as of the last acquisition: then all that helps is to try."""
        self._known: dict[str, tuple[float, bool]] = {}
        self._reading = asyncio.Lock()

    async def connect(self) -> _Connection:
        """Return the connection, made unless another call was first."""
        made = _Connection()
        await made.open()
        if self.connection is None:
            self.connection = made
        else:
            close_now(made.close)
        return self.connection

    def note(self, name: str, *, exists: bool, trusted_seconds: float) -> None:
        """Record whether there is such a limit, and for how long that is trusted."""
        self._known[name] = (time.monotonic() + trusted_seconds, exists)

    def has(self, name: str) -> bool | None:
        """Return whether there is such a limit, `None` if that isn't known or was read too long ago."""
        trusted_until, exists = self._known.get(name, (0.0, False))
        return exists if time.monotonic() < trusted_until else None

    async def read_once(self, name: str) -> bool:
        """Return whether there is such a limit, read once for all tasks that ask at the same time.

        At the start of a campaign, hundreds do.
        """
        async with self._reading:
            if (known := self.has(name)) is not None:
                return known
            exists, trusted_seconds = True, _TRUSTED_SECONDS
            try:
                await _read(name)
            except ObjectNotFound:
                exists = False
            except Exception:  # noqa: BLE001 - an old server, a slow one, none: each process keeps its own limit
                exists, trusted_seconds = False, _RETRY_AFTER_SECONDS
            self.note(name, exists=exists, trusted_seconds=trusted_seconds)
            return exists


_servers = Registry[str, _Server]()


def _server() -> _Server:
    """Return what is known of the server that Prefect's settings name."""
    return _servers.get(str(PREFECT_API_URL.value()), _Server, owner=io_loop())


async def use_shared_limit(session: Session) -> None:
    """Let the session's requests share one rate limit with all other workers, if `prefect-veogen setup` was run."""
    name, log, server = session.settings.requests_limit_name, session.log, _server()
    # A process without a configured server has none that other workers use.
    is_shared = PREFECT_API_URL.value() is not None and await _exists(server, name)
    limiter = weakref.proxy(session.client.limiter)  # it must not keep itself alive through its callback

    async def acquire() -> None:
        try:
            await _acquire_slots(name)
        except Exception as error:  # noqa: BLE001 - a limit that can't be reached must not stop what is paid for
            log.warning("The concurrency limit %s can't be used: %s", name, str(error) or repr(error))
            server.note(name, exists=False, trusted_seconds=_RETRY_AFTER_SECONDS)
            limiter.acquire_shared = None

    session.client.limiter.acquire_shared = acquire if is_shared else None


async def create_limit(name: str, requests_per_minute: int) -> Literal["made", "changed", "exists"]:
    """Create or update the limit that all workers of one Prefect server share. Free, and safe to repeat."""
    slots, decay = size_of_limit(requests_per_minute)
    async with get_client() as client:
        try:
            limit = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            await client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=name, limit=slots, slot_decay_per_second=decay)
            )
            return "made"
        if limit.active and is_of_size(limit, requests_per_minute):
            return "exists"
        await client.update_global_concurrency_limit(
            name, GlobalConcurrencyLimitUpdate(limit=slots, slot_decay_per_second=decay, active=True)
        )
        return "changed"


def size_of_limit(requests_per_minute: int) -> tuple[int, float]:
    """Return the slots of a limit for so many requests, and how many of them decay per second."""
    burst, interval = burst_and_interval(requests_per_minute)
    return burst * _SLOTS_PER_REQUEST, _SLOTS_PER_REQUEST / interval


def is_of_size(limit: GlobalConcurrencyLimitResponse, requests_per_minute: int) -> bool:
    """Return whether a limit is the one that `create_limit` makes for so many requests."""
    slots, decay = size_of_limit(requests_per_minute)
    return limit.limit == slots and math.isclose(limit.slot_decay_per_second, decay, rel_tol=1e-6)


async def _acquire_slots(name: str) -> None:
    """Acquire the shared limit for one request, waiting for it.

    Prefect's own `rate_limit` retries until it acquires slots, and each refusal costs all workers what had decayed
    since the last request. Reading the number of active slots costs nothing.
    """
    slept, before = 0.0, None
    async with _borrow_connection() as (client, server):
        while True:
            async with asyncio.timeout(_RESPONSE_SECONDS):
                limit = await client.read_global_concurrency_limit_by_name(name)
                if before is not None and slept >= _DECAY_SHOWS_SECONDS and _is_unchanged(before, limit):
                    server.reports_no_decay = True
                # One that was made by hand counts whole requests.
                slots = _SLOTS_PER_REQUEST if limit.limit >= _SLOTS_PER_REQUEST else 1
                too_many = limit.active_slots + slots - limit.limit
                may_try = too_many <= 0 or server.reports_no_decay
                if not limit.active or (may_try and await _try_to_acquire(client, name, slots)):
                    return
            if not limit.slot_decay_per_second:
                raise ValueError("it is not a rate limit: its slots never decay")
            jitter = random.uniform(0, _JITTER * slots)
            slept, before = (max(too_many, 0) + jitter) / limit.slot_decay_per_second, limit
            await asyncio.sleep(slept)


def _is_unchanged(before: GlobalConcurrencyLimitResponse, now: GlobalConcurrencyLimitResponse) -> bool:
    """Tell whether nothing has changed where slots should have decayed: older servers report stale active slots."""
    return (before.updated, before.active_slots) == (now.updated, now.active_slots)


async def _try_to_acquire(client: PrefectClient, name: str, slots: int) -> bool:
    try:
        await client.increment_concurrency_slots([name], slots, "rate_limit")
    except PrefectHTTPStatusError as refused:
        if refused.response.status_code not in (HTTPStatus.LOCKED, HTTPStatus.SERVICE_UNAVAILABLE):
            raise
        return False
    return True


async def _retry_soon(response: Any) -> None:
    """Let Prefect's client retry at once what a locked database refused: by itself it would wait for two seconds."""
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers.setdefault("Retry-After", "0.05")


@contextlib.asynccontextmanager
async def _borrow_connection() -> AsyncIterator[tuple[PrefectClient, _Server]]:
    """Give the process's connection to the server, and the server; a new connection is made after a failure."""
    server = _server()
    connection = server.connection or await server.connect()
    connection.users += 1
    try:
        yield connection.client, server
    except BaseException:
        connection.has_failed = True
        if server.connection is connection:
            server.connection = None
        raise
    finally:
        connection.users -= 1
        # Another account's limiter may be using it still.
        if connection.has_failed and not connection.users:
            close_now(connection.close)


async def _read(name: str) -> None:
    """Raise if the server doesn't return the limit within some seconds."""
    async with asyncio.timeout(_RESPONSE_SECONDS), get_client() as client:
        await client.read_global_concurrency_limit_by_name(name)


async def _exists(server: _Server, name: str) -> bool:
    known = server.has(name)
    return await on_io(server.read_once(name)) if known is None else known
