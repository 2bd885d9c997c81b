"""Work on the Prefect server of this machine's settings, step by step, for the commands which need one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from prefect_veogen.cli.terminal import table
from prefect_veogen.errors import ConfigurationError, ServiceUnavailable, VeogenError
from prefect_veogen.masking import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from prefect_veogen.tasks.provision import Step

Result = TypeVar("Result")


def on_server(what: str, work: Callable[[], Coroutine[Any, Any, Result]]) -> tuple[str, Result]:
    """Do work on the server, and return its address and the result.

    Raises:
        ConfigurationError: there is none.
        ServiceUnavailable: it did not complete `what`.
    """
    from prefect.settings import PREFECT_API_URL

    server = PREFECT_API_URL.value()
    if server is None:
        raise ConfigurationError(
            "There is no Prefect server that workers could share",
            next_step="Start one (`prefect server start`), configure this machine for it (`prefect config set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api`), then run this again.",
        )
    try:
        return server, asyncio.run(work())
    except VeogenError:
        raise
    except Exception as error:
        raise ServiceUnavailable(
            f"The Prefect server at {masked(server)} did not complete {what}: {type(error).__name__}: {error}",
            next_step="Check PREFECT_API_URL (and PREFECT_API_KEY or PREFECT_API_AUTH_STRING), and that the server "
            "runs, then run this again: it is idempotent.",
        ) from error


def write_steps(steps: Sequence[Step]) -> None:
    """Write what was done about each thing."""
    table(("", "", ""), [(step.did, step.name, step.detail) for step in steps])
