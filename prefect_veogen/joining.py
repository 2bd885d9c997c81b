"""One rate limit over many processes and machines, through a Prefect global concurrency limit where there is one."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.concurrency.asyncio import rate_limit
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from prefect_veogen.iothread import on_io
from prefect_veogen.limiter import pace

if TYPE_CHECKING:
    from prefect_veogen.session import Session

_LOOKED_UP_EVERY_SECONDS = 300.0
# A server that doesn't answer is asked again sooner.
_TRIED_AGAIN_AFTER_SECONDS = 60.0
# So long does a request wait for a Prefect server that says nothing.
_ANSWER_SECONDS = 3.0
# A turn may take long, where many workers want one; then it is worth asking whether the server answers at all.
_LONG_TURN_SECONDS = 10.0
_LONGEST_TURN_SECONDS = 120.0
_known: dict[tuple[str, str], tuple[float, bool]] = {}
"""Whether there is such a limit, and until when that is believed."""
_asking: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()


async def joined_limit(session: Session) -> None:
    """Let the session's requests take turns with all other workers', if `prefect-veogen setup` was run."""
    server = PREFECT_API_URL.value()
    # Without a server that others share there is nobody to take turns with.
    name = session.settings.requests_limit_name
    joined = server is not None and await _exists(server, name)

    async def take_turns() -> None:
        try:
            await _turn_among_all(name)
        except Exception as error:  # noqa: BLE001 - a limit that can't be asked must not stop what is paid for
            session.log.warning("The concurrency limit %s can't be used: %s", name, str(error) or repr(error))
            _known[str(server), name] = (time.monotonic() + _TRIED_AGAIN_AFTER_SECONDS, False)
            session.client.limiter.join = None

    session.client.limiter.join = take_turns if joined else None


async def create_limit(name: str, requests_per_minute: int) -> None:
    """Create or update the limit which joins all workers of one Prefect server; free, and safe to repeat."""
    burst, interval = pace(requests_per_minute)
    async with get_client() as client:
        try:
            await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            await client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=name, limit=burst, slot_decay_per_second=1 / interval)
            )
        else:
            await client.update_global_concurrency_limit(
                name, GlobalConcurrencyLimitUpdate(limit=burst, slot_decay_per_second=1 / interval, active=True)
            )


async def _turn_among_all(name: str) -> None:
    async with asyncio.timeout(_LONGEST_TURN_SECONDS):
        while True:
            try:
                return await rate_limit(name, timeout_seconds=_LONG_TURN_SECONDS)
            except TimeoutError:
                await _read(name)


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
