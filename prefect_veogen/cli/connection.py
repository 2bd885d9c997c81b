"""Which account a command talks to, and in turn with whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.cli.sharing import share_limit
from prefect_veogen.session import Session, open_session

if TYPE_CHECKING:
    from argparse import Namespace

    from prefect_veogen.budgets import Cap


def connect(options: Namespace, caps: tuple[Cap, ...] = ()) -> Session:
    """Return the session of a command's options; its requests take turns with those of all other workers."""
    session = open_session(base_url=options.base_url, store=options.store, caps=caps)
    share_limit(session)
    return session
