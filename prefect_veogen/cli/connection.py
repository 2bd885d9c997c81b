"""Which account and store a command uses: `--credentials` and `--store`, else what the settings say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import SecretStr

from prefect_veogen.cli.sharing import share_limit
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.session import Session, open_session
from prefect_veogen.settings import Settings
from prefect_veogen.store import LocalStore, Store, names_block

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from prefect_veogen.ledger.budgets import Cap


def connect(options: Namespace, caps: tuple[Cap, ...] = ()) -> Session:
    """Return the session of a command's options; its requests share the limit of all other workers.

    A named block is loaded from the Prefect server.
    """
    session = _open(options, caps)
    share_limit(session)
    return session


def open_offline(options: Namespace) -> Session:
    """Return a session for commands that read the store alone: no request to the service, so no token needed."""
    token = Settings().api_token or SecretStr("none-needed")
    return check_store(open_session(token=token, store=store_of(options)))


def store_of(options: Namespace) -> str | Path | Store | None:
    """Return the store that a command's options name; `None` leaves it to the settings.

    A named block is loaded from the Prefect server.
    """
    if not names_block(Settings().store if options.store is None else options.store):
        return options.store  # type: ignore[no-any-return] # text, or None
    # Imported only here, because importing Prefect takes seconds.
    from prefect_veogen.tasks.stores import resolve_store

    return asyncio.run(resolve_store(options.store, "--store"))


def check_store(session: Session) -> Session:
    """Validate that the session's store exists: a misspelt one would look empty, and so in order."""
    store = session.store
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise ConfigurationError(
            f"There is no store at {store.root}",
            next_step="Check --store and VEOGEN_STORE; the first purchase creates a new one.",
        )
    return session


def _open(options: Namespace, caps: tuple[Cap, ...]) -> Session:
    if options.credentials is None and Settings().credentials is None:
        return open_session(base_url=options.base_url, store=store_of(options), caps=caps)
    # Imported only here, because importing Prefect takes seconds.
    from prefect_veogen.tasks.credentials import resolve_credentials

    block = asyncio.run(resolve_credentials(options.credentials, "--credentials"))
    assert block is not None  # one of the two names it
    return open_session(
        token=block.api_token,
        base_url=block.base_url if options.base_url is None else options.base_url,
        store=store_of(options),
        caps=caps,
    )
