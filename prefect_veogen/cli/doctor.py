"""`doctor`: what is wrong, on which side, and what to do about it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from prefect_veogen.cli.terminal import say, table, write_json
from prefect_veogen.errors import ServiceUnavailable, VeogenError
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.settings import Settings
from prefect_veogen.store import Store, names_block
from prefect_veogen.upkeep.health import (
    CHECK_SECONDS,
    NO_RESPONSE,
    Check,
    check_service,
    check_store,
    failed,
    not_asked,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from pydantic import SecretStr


def doctor(options: Namespace) -> int:
    """Check everything and write what was found; return 1 if anything is wrong. Buys nothing."""
    checks = asyncio.run(_examine(Settings(), options))
    if options.json:
        write_json({"checks": checks})
    else:
        _write(checks)
    code = 0 if all(check.ok for check in checks) else 1
    if any(check.name == "store" and check.detail.endswith(NO_RESPONSE) for check in checks):
        # A thread that waits for a silent bucket or disk can't be stopped, and the interpreter would wait for it.
        sys.stdout.flush()
        os._exit(code)
    return code


async def _examine(settings: Settings, options: Namespace) -> list[Check]:
    from prefect_veogen.tasks.diagnosis import check_server

    groups = await asyncio.gather(
        _examine_service(settings, options),
        _examine_store(settings, options),
        check_server(settings),
    )
    return [check for group in groups for check in group]


async def _examine_service(settings: Settings, options: Namespace) -> list[Check]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            token, base_url = await _resolve_account(settings, options)
    except TimeoutError:
        return not_asked(ServiceUnavailable("The Prefect server did not return the block with the token in time"))
    except VeogenError as error:
        return not_asked(error)
    return await on_io(check_service(token, base_url, settings))


async def _examine_store(settings: Settings, options: Namespace) -> list[Check]:
    from prefect_veogen.tasks.stores import resolve_store

    place: str | Store = settings.store if options.store is None else options.store
    if names_block(place):
        try:
            place = await resolve_store(options.store, "--store")
        except VeogenError as error:
            return [failed("store", "This machine", error)]
    return await on_io(check_store(place))


async def _resolve_account(settings: Settings, options: Namespace) -> tuple[SecretStr | None, str]:
    from prefect_veogen.tasks.credentials import resolve_credentials

    block = await resolve_credentials(options.credentials, "--credentials")
    token = block.api_token if block and block.api_token else settings.api_token
    base_url = options.base_url or (block.base_url if block else None) or settings.base_url
    return token, base_url


def _write(checks: Sequence[Check]) -> None:
    table(("", "", ""), [(_mark(check), check.name, check.detail) for check in checks])
    wrong = [check for check in checks if not check.ok]
    if not wrong:
        say("", "All is well. Nothing was bought.")
        return
    say("", "What to do", style="bold")
    say(*(f"  {check.name}: {check.advice}" for check in wrong if check.advice))


def _mark(check: Check) -> str:
    return "ok" if check.ok else "?" if check.is_unchecked else "WRONG"
