"""Which account work is done for: a credentials block, the name of one, or the environment alone."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.errors import ConfigurationError, ServiceUnavailable
from prefect_veogen.masking import masked
from prefect_veogen.process.io_loop import io_loop, on_io
from prefect_veogen.process.registry import Registry
from prefect_veogen.settings import Settings

_TRUSTED_SECONDS = 60.0
_FORGOTTEN_SECONDS = 3600.0
_RESPONSE_SECONDS = 30.0
_SLUG = VeogenCredentials.get_block_type_slug()
# Longer names are cut in messages: a token passed by mistake may look like a name.
_MAX_SHOWN = 32
# A shorter token (of a sandbox) may be in a prompt by chance.
_MIN_SECRET = 8


class Blocks:
    """Saved blocks by name, each read once per flow run and minute, for any number of tasks; loaded on the I/O loop.

    A later run reads its block anew, and a long one notices within a minute that the token was changed. Outside of
    flow runs nothing is kept.
    """

    def __init__(self, trusted_seconds: float = _TRUSTED_SECONDS) -> None:
        self._trusted_seconds = trusted_seconds
        self._known: dict[_Key, tuple[float, VeogenCredentials]] = {}
        self._loading = asyncio.Lock()

    async def load(self, name: str, named_by: str) -> VeogenCredentials:
        """Return the block of a name, from the Prefect server if need be; `named_by` says where the name was given."""
        run_id: str | None = flow_run.id
        if run_id is None:
            return await on_io(_read(name, named_by))
        key = (str(PREFECT_API_URL.value()), name, run_id)
        trusted = self._trusted(key)
        return await on_io(self._load_once(key, named_by)) if trusted is None else trusted

    async def _load_once(self, key: _Key, named_by: str) -> VeogenCredentials:
        async with self._loading:
            if trusted := self._trusted(key):
                return trusted
            try:
                block = await _read(key[1], named_by)
            except ServiceUnavailable:
                # A run that has begun goes on with what it has: a silent Prefect server must not fail paid work.
                if key not in self._known:
                    raise
                block = self._known[key][1]
            now = time.monotonic()
            self._known = {old: entry for old, entry in self._known.items() if entry[0] + _FORGOTTEN_SECONDS > now}
            self._known[key] = (now + self._trusted_seconds, block)
            return block

    def _trusted(self, key: _Key) -> VeogenCredentials | None:
        until, block = self._known.get(key, (0.0, None))
        return block if time.monotonic() < until else None


_Key = tuple[str, str, str]  # server, name, flow run
_blocks = Registry[None, Blocks]()


async def resolve_credentials(
    credentials: VeogenCredentials | str | None, named_by: str = "credentials="
) -> VeogenCredentials | None:
    """Return the block to work with: the given one, the one of that name, or the one that `VEOGEN_CREDENTIALS` names.

    `None` means that the token comes from the environment alone. Free: one request to the Prefect server per named
    block, flow run and minute.

    Raises:
        ConfigurationError: there is no such block, or the token of the given one has been exposed.
        ServiceUnavailable: the Prefect server did not respond; nothing was bought.
    """
    if credentials is None:
        credentials, named_by = Settings().credentials, "VEOGEN_CREDENTIALS"
    if credentials is None:
        return None
    if isinstance(credentials, str):
        blocks = _blocks.get(None, Blocks, owner=io_loop())
        return await blocks.load(_name_of(credentials, named_by), named_by)
    if not isinstance(credentials, VeogenCredentials):
        raise ConfigurationError(
            f"A VeogenCredentials is needed, not a {type(credentials).__name__}",
            next_step="Nothing was bought. Give the name of a saved block, or the block itself "
            '(VeogenCredentials.load("NAME"), awaited in async code).',
        )
    secret = credentials.api_token.get_secret_value() if credentials.api_token else ""
    # A masked one is exposed as well, and refused as masked.
    if secret.strip("*"):
        await _refuse_exposed(secret)
    return credentials


# ---------------------------------------------------------------- by name


def _name_of(text: str, named_by: str) -> str:
    name = text.removeprefix(f"{_SLUG}/")
    if not re.fullmatch(r"[a-z0-9-]+", name):
        # Not quoted: what isn't a name may well be a token.
        raise ConfigurationError(
            f"{named_by} is not the name of a block: that has only lowercase letters, digits and dashes",
            next_step="Nothing was bought. Give the name of a saved VeogenCredentials block. If it was a token, it "
            "is in plain text where it was written: make a new one at the service, and save that in a block.",
        )
    return name


async def _read(name: str, named_by: str) -> VeogenCredentials:
    shown = name if len(name) <= _MAX_SHOWN else f"{name[:4]}…"
    server = masked(PREFECT_API_URL.value() or "this machine's own Prefect server")
    try:
        client = get_client()  # outside of the timeout: it may have to start Prefect's temporary server
        async with asyncio.timeout(_RESPONSE_SECONDS), client:
            return await VeogenCredentials.aload(name, client=client)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises whatever its libraries do
        if isinstance(error.__cause__, ObjectNotFound):
            raise ConfigurationError(
                f"{server} has no VeogenCredentials block named {shown!r} ({named_by})",
                next_step="Nothing was bought. Make it in Prefect's UI (Blocks → Veogen Credentials, there after "
                f'`prefect-veogen setup`) or in Python: VeogenCredentials(api_token=…).save("{shown}").',
            ) from None
        if isinstance(error.__cause__, ValidationError):
            # Neither Prefect's words nor pydantic's, which may quote what is stored.
            raise ConfigurationError(
                f"The block {shown!r} ({named_by}) does not hold what this version's VeogenCredentials does",
                next_step="Nothing was bought. Save it again, or update prefect-veogen.",
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


async def _refuse_exposed(secret: str) -> None:
    """Refuse a token that Prefect has recorded in plain text on its way here."""
    run = FlowRunContext.get()
    recorded: list[Any] = []
    if run is not None and run.flow_run is not None:
        recorded.append(run.flow_run.parameters)
        if run.flow_run.parent_task_run_id is not None:
            # In a flow called by a deployment's flow; in a thread: elsewhere Prefect requests it from its server.
            recorded.append(await asyncio.to_thread(lambda: deployment.parameters))
    if any(text == secret or (len(secret) >= _MIN_SECRET and secret in text) for text in _texts(recorded)):
        raise ConfigurationError(
            "The token is in plain text in this flow run's parameters, for everyone who sees the Prefect server",
            next_step="Nothing was bought. Make a new token at the service, for this one is exposed. Save it in a "
            'VeogenCredentials block and give the block\'s name: credentials="NAME". So in prefect.yaml, too, where a '
            "template or a $ref of a block is filled in while deploying.",
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
