"""Which account a command uses: `--credentials`, else `VEOGEN_CREDENTIALS`, else the environment's token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prefect_veogen.cli.sharing import share_limit
from prefect_veogen.session import Session, open_session
from prefect_veogen.settings import Settings

if TYPE_CHECKING:
    from argparse import Namespace

    from prefect_veogen.ledger.budgets import Cap


def connect(options: Namespace, caps: tuple[Cap, ...] = ()) -> Session:
    """Return the session of a command's options; its requests share the limit of all other workers.

    A named block is loaded from the Prefect server.
    """
    session = _open(options, caps)
    share_limit(session)
    return session


def _open(options: Namespace, caps: tuple[Cap, ...]) -> Session:
    if options.credentials is None and Settings().credentials is None:
        return open_session(base_url=options.base_url, store=options.store, caps=caps)
    # Imported only here, because importing Prefect takes seconds.
    from prefect_veogen.tasks.credentials import resolve_credentials

    block = asyncio.run(resolve_credentials(options.credentials, "--credentials"))
    assert block is not None  # one of the two names it
    return open_session(
        token=block.api_token,
        base_url=block.base_url if options.base_url is None else options.base_url,
        store=options.store,
        caps=caps,
    )
