"""One rate limit over many processes and machines, through a Prefect global concurrency limit where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import weakref
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from prefect_veogen.api.rate_limit import burst_and_interval
from prefect_veogen.process.io_loop import close_at_end, close_now, on_io

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

    from prefect_veogen.session import Session

_LOOKED_UP_EVERY_SECONDS = 300.0
# A server that doesn't answer is asked again sooner.
_TRIED_AGAIN_AFTER_SECONDS = 60.0
# So long does the first request wait for a Prefect server that says nothing, and one that was answered before: a busy
# server (SQLite under load) takes some seconds now and then, and whoever gives up leaves the others' limit.
_ANSWER_SECONDS = 3.0
_BUSY_SECONDS = 10.0
# Prefect lets slots decay whole, and forgets the fraction at each request: of thousandths that is hardly anything.
_SLOTS_PER_TURN = 1000
_SPREAD_OF_A_TURN = 0.2
# In so long, some of the slots must have decayed where a server tells of it.
_NOTICED_AFTER_SECONDS = 0.1
_known: dict[tuple[str, str], tuple[float, bool]] = {}
"""Whether there is such a limit, and until when that is believed."""
_forgetful: set[str] = set()
"""Servers which tell what was taken when somebody last asked, not what is left of it: all that helps is to try."""
_asking: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()
_connections: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Connection]]
_connections = weakref.WeakKeyDictionary()


class _Connection:
    """A connection to a Prefect server, on the I/O loop; closed when it has failed and its last user is done."""

    def __init__(self) -> None:
        # Making one takes more than 20 ms of processor time, too much for each turn.
        self.client = get_client(httpx_settings={"event_hooks": {"response": [_soon_again]}})
        self.users = 0
        self.has_failed = False

    async def open(self) -> None:
        await self.client.__aenter__()
        close_at_end(self.close)

    async def close(self) -> None:
        await self.client.__aexit__(None, None, None)


async def joined_limit(session: Session) -> None:
    """Let the session's requests take turns with all other workers', if `prefect-veogen setup` was run."""
    server = PREFECT_API_URL.value()
    # Without a server that others share there is nobody to take turns with.
    name, log = session.settings.requests_limit_name, session.log
    joined = server is not None and await _exists(server, name)
    limiter = weakref.proxy(session.client.limiter)  # which must not keep itself, by what it is told to call

    async def take_turns() -> None:
        try:
            await _turn_among_all(name)
        except Exception as error:  # noqa: BLE001 - a limit that can't be asked must not stop what is paid for
            log.warning("The concurrency limit %s can't be used: %s", name, str(error) or repr(error))
            _known[str(server), name] = (time.monotonic() + _TRIED_AGAIN_AFTER_SECONDS, False)
            limiter.acquire_shared = None

    session.client.limiter.acquire_shared = take_turns if joined else None


async def create_limit(name: str, requests_per_minute: int) -> None:
    """Create or update the limit which joins all workers of one Prefect server; free, and safe to repeat."""
    burst, interval = burst_and_interval(requests_per_minute)
    slots, decay = burst * _SLOTS_PER_TURN, _SLOTS_PER_TURN / interval
    async with get_client() as client:
        try:
            await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            await client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=name, limit=slots, slot_decay_per_second=decay)
            )
        else:
            await client.update_global_concurrency_limit(
                name, GlobalConcurrencyLimitUpdate(limit=slots, slot_decay_per_second=decay, active=True)
            )


async def _turn_among_all(name: str) -> None:
    """Return when this process may send a request.

    Prefect's own `rate_limit` asks for slots until it gets some, and each refusal costs all workers what had decayed
    since the last request. Asking how many are taken costs nothing.
    """
    slept, before = 0.0, None
    async with _connected() as (client, server):
        while True:
            async with asyncio.timeout(_BUSY_SECONDS):
                limit = await client.read_global_concurrency_limit_by_name(name)
                if before is not None and slept >= _NOTICED_AFTER_SECONDS and _same(before, limit):
                    _forgetful.add(server)
                # One that was made by hand counts requests.
                slots = _SLOTS_PER_TURN if limit.limit >= _SLOTS_PER_TURN else 1
                too_many = limit.active_slots + slots - limit.limit
                may_try = too_many <= 0 or server in _forgetful
                if not limit.active or (may_try and await _taken(client, name, slots)):
                    return
            if not limit.slot_decay_per_second:
                raise ValueError("it is no rate limit: its slots never decay")
            # Not all who wait at once: all but one would be refused.
            soon = random.uniform(0, _SPREAD_OF_A_TURN * slots)
            slept, before = (max(too_many, 0) + soon) / limit.slot_decay_per_second, limit
            await asyncio.sleep(slept)


def _same(before: GlobalConcurrencyLimitResponse, now: GlobalConcurrencyLimitResponse) -> bool:
    """Tell whether nothing has changed, where something should have decayed: older servers tell what was taken once."""
    return (before.updated, before.active_slots) == (now.updated, now.active_slots)


async def _taken(client: PrefectClient, name: str, slots: int) -> bool:
    try:
        await client.increment_concurrency_slots([name], slots, "rate_limit")
    except PrefectHTTPStatusError as refused:
        if refused.response.status_code not in (HTTPStatus.LOCKED, HTTPStatus.SERVICE_UNAVAILABLE):
            raise
        return False
    return True


async def _soon_again(answer: Any) -> None:
    """Let Prefect's client repeat at once what a locked database refused: by itself it would wait for two seconds."""
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        answer.headers.setdefault("Retry-After", "0.05")


@contextlib.asynccontextmanager
async def _connected() -> AsyncIterator[tuple[PrefectClient, str]]:
    """Hand out the process's connection to the server and its address; it is made anew after a failure."""
    connections = _connections.setdefault(asyncio.get_running_loop(), {})
    server = str(PREFECT_API_URL.value())
    if server not in connections:
        made = _Connection()
        await made.open()
        if connections.setdefault(server, made) is not made:
            close_now(made.close)
    connection = connections[server]
    connection.users += 1
    try:
        yield connection.client, server
    except BaseException:
        connection.has_failed = True
        if connections.get(server) is connection:
            del connections[server]
        raise
    finally:
        connection.users -= 1
        # Another account's limiter may be using it still.
        if connection.has_failed and not connection.users:
            close_now(connection.close)


async def _read(name: str) -> None:
    """Raise whatever keeps the server from telling of the limit within some seconds."""
    async with asyncio.timeout(_ANSWER_SECONDS), get_client() as client:
        await client.read_global_concurrency_limit_by_name(name)


async def _exists(server: str, name: str) -> bool:
    if (known := _still_known(server, name)) is not None:
        return known
    return await on_io(_asked_once(server, name))


async def _asked_once(server: str, name: str) -> bool:
    """Ask for all who want to know at the same time: at the start of a campaign, hundreds do."""
    async with _asking.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        if (known := _still_known(server, name)) is not None:
            return known
        exists, believed_seconds = True, _LOOKED_UP_EVERY_SECONDS
        try:
            await _read(name)
        except ObjectNotFound:
            exists = False
        except Exception:  # noqa: BLE001 - an old server, a slow one, none: each process keeps the limit for itself
            exists, believed_seconds = False, _TRIED_AGAIN_AFTER_SECONDS
        _known[server, name] = (time.monotonic() + believed_seconds, exists)
        return exists


def _still_known(server: str, name: str) -> bool | None:
    believed_until, exists = _known.get((server, name), (0.0, False))
    return exists if time.monotonic() < believed_until else None
