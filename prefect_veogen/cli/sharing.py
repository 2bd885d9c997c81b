"""The limit that a command's requests share with all workers of a Prefect server, if there is a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_veogen.session import Session

# Where Prefect reads its settings, and what they contain if a server is configured. A false positive only costs a slow
# start.
_VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILES_PATH")
_PROFILES = "profiles.toml"
_FILES = {
    _PROFILES: "PREFECT_API_URL",
    "prefect.toml": "api|profiles_path",
    "pyproject.toml": r"tool\.prefect",
    ".env": "PREFECT_API_URL|PREFECT_PROFILES_PATH|PREFECT_HOME",
}


def share_limit(session: Session) -> None:
    """Let the session's requests share all workers' rate limit, if `prefect-veogen setup` was run."""
    if not may_have_server():
        return
    # Only now, for Prefect's import takes seconds.
    from prefect_veogen.tasks.shared_limit import use_shared_limit

    asyncio.run(use_shared_limit(session))


def may_have_server() -> bool:
    """Return whether a Prefect server may be configured here, without importing Prefect."""
    return any(map(os.environ.get, _VARIABLES)) or any(_names_server(*file) for file in _FILES.items())


def _names_server(name: str, pattern: str) -> bool:
    folder = os.environ.get("PREFECT_HOME") or "~/.prefect" if name == _PROFILES else "."
    with contextlib.suppress(OSError, RuntimeError):  # unreadable, or no home directory
        return re.search(pattern, (Path(folder).expanduser() / name).read_text(errors="replace")) is not None
    return False
