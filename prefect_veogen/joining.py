"""One rate limit over many processes and machines, through a Prefect global concurrency limit where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_veogen.session import Session


async def joined_limit(session: Session) -> None:
    """Let the session's requests wait for the other workers' too, if `prefect-veogen setup` was run."""
