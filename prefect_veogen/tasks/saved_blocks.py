"""Saved blocks by name: read on the I/O loop, once per flow run and minute; secrets that were exposed are refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar, cast

from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from prefect_veogen.errors import ConfigurationError, ServiceUnavailable
from prefect_veogen.masking import masked
from prefect_veogen.process.io_loop import io_loop, on_io
from prefect_veogen.process.registry import Registry

_TRUSTED_SECONDS = 60.0
_FORGOTTEN_SECONDS = 3600.0
_RESPONSE_SECONDS = 30.0
# Longer names are cut in messages: a token passed by mistake may look like a name.
_MAX_SHOWN = 32
# A shorter token (of a sandbox) may be in a prompt by chance.
_MIN_SECRET = 8

SomeBlock = TypeVar("SomeBlock", bound=Block)


class BlockKind(NamedTuple, Generic[SomeBlock]):
    """A type of blocks, and what errors say about making one."""

    type: type[SomeBlock]
    registered_by: str
    """The command after which Prefect's UI offers it."""
    example: str
    """How one is made in Python."""


class Blocks:
    """Saved blocks by name, each read once per flow run and minute, for any number of tasks; loaded on the I/O loop.

    A later run reads its block anew, and a long one notices within a minute that the token was changed. Outside of
    flow runs nothing is kept.
    """

    def __init__(self, trusted_seconds: float = _TRUSTED_SECONDS) -> None:
        self._trusted_seconds = trusted_seconds
        self._known: dict[_Key, tuple[float, Block]] = {}
        self._loading = asyncio.Lock()

    async def load(self, kind: BlockKind[SomeBlock], name: str, named_by: str) -> SomeBlock:
        """Return the block of a name, from the Prefect server if need be; `named_by` says where the name was given.

        Raises:
            ConfigurationError: there is no such block, or it can't be used.
            ServiceUnavailable: the Prefect server did not respond; nothing was bought.
        """
        run_id: str | None = flow_run.id
        if run_id is None:
            return await on_io(_read(kind, name, named_by))
        key = (str(PREFECT_API_URL.value()), kind.type.get_block_type_slug(), name, run_id)
        block = self._trusted(key) or await on_io(self._load_once(kind, key, named_by))
        return cast("SomeBlock", block)

    async def _load_once(self, kind: BlockKind[Any], key: _Key, named_by: str) -> Block:
        async with self._loading:
            if trusted := self._trusted(key):
                return trusted
            try:
                block: Block = await _read(kind, key[2], named_by)
            except ServiceUnavailable:
                # A run that has begun goes on with what it has: a silent Prefect server must not fail paid work.
                if key not in self._known:
                    raise
                block = self._known[key][1]
            now = time.monotonic()
            self._known = {old: entry for old, entry in self._known.items() if entry[0] + _FORGOTTEN_SECONDS > now}
            self._known[key] = (now + self._trusted_seconds, block)
            return block

    def _trusted(self, key: _Key) -> Block | None:
        until, block = self._known.get(key, (0.0, None))
        return block if time.monotonic() < until else None


_Key = tuple[str, str, str, str]  # server, type, name, flow run
_blocks = Registry[None, Blocks]()


def saved_blocks() -> Blocks:
    """Return the saved blocks that the tasks of this process share."""
    return _blocks.get(None, Blocks, owner=io_loop())


async def _read(kind: BlockKind[SomeBlock], name: str, named_by: str) -> SomeBlock:
    shown = name if len(name) <= _MAX_SHOWN else f"{name[:4]}…"
    server = masked(PREFECT_API_URL.value() or "this machine's own Prefect server")
    try:
        client = get_client()  # outside of the timeout: it may have to start Prefect's temporary server
        async with asyncio.timeout(_RESPONSE_SECONDS), client:
            return await kind.type.aload(name, client=client)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises whatever its libraries do
        if isinstance(error.__cause__, ObjectNotFound):
            raise ConfigurationError(
                f"{server} has no {kind.type.__name__} block named {shown!r} ({named_by})",
                next_step=f"Nothing was bought. Make it in Prefect's UI (Blocks → {kind.type.get_block_type_name()}, "
                f'there after `{kind.registered_by}`) or in Python: {kind.example}.save("{shown}").',
            ) from None
        if isinstance(error.__cause__, ValidationError):
            # Neither Prefect's words nor pydantic's, which may quote what is stored.
            raise ConfigurationError(
                f"The block {shown!r} ({named_by}) does not hold what this version's {kind.type.__name__} does",
                next_step=f"Nothing was bought. Save it again, or update {kind.type.__module__.partition('.')[0]}.",
            ) from None
        if _is_unauthorized(error):
            raise ConfigurationError(
                f"{server} does not let this process read the block {shown!r} ({named_by})",
                next_step="Nothing was bought. Check PREFECT_API_KEY or PREFECT_API_AUTH_STRING, and what it may read.",
            ) from None
        raise ServiceUnavailable(
            f"The block {shown!r} ({named_by}) can't be read, for {server} does not respond as Prefect does: "
            f"{type(error).__name__}",
            next_step="Nothing was bought. Check PREFECT_API_URL and that the server runs, then run it again.",
        ) from None


def _is_unauthorized(error: Exception) -> bool:
    unauthorized = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    return isinstance(error, PrefectHTTPStatusError) and error.response.status_code in unauthorized


# ---------------------------------------------------------------- by value


async def is_exposed(secret: str) -> bool:
    """Return whether Prefect has recorded a secret in plain text on its way here."""
    run = FlowRunContext.get()
    recorded: list[Any] = []
    if run is not None and run.flow_run is not None:
        recorded.append(run.flow_run.parameters)
        if run.flow_run.parent_task_run_id is not None:
            # In a flow called by a deployment's flow; in a thread: elsewhere Prefect requests it from its server.
            recorded.append(await asyncio.to_thread(lambda: deployment.parameters))
    return any(text == secret or (len(secret) >= _MIN_SECRET and secret in text) for text in _texts(recorded))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
