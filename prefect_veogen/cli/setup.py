"""`setup`: prepare a Prefect server, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prefect_veogen.cli.terminal import say, write_json
from prefect_veogen.errors import ConfigurationError, ServiceUnavailable, VeogenError
from prefect_veogen.settings import Settings

if TYPE_CHECKING:
    from argparse import Namespace


def setup(options: Namespace) -> int:
    """Create the limit that all workers share, register the block and, with `--results`, set the result storage."""
    from prefect.settings import PREFECT_API_URL

    from prefect_veogen.blocks import VeogenCredentials
    from prefect_veogen.tasks.result_storage import default_results, store_results_in
    from prefect_veogen.tasks.shared_limit import create_limit

    limit = options.requests_per_minute
    settings = Settings() if limit is None else Settings(requests_per_minute=limit)
    per_minute = settings.requests_per_minute
    server = PREFECT_API_URL.value()
    if server is None:
        raise ConfigurationError(
            "There is no Prefect server that workers could share",
            next_step="Start one (`prefect server start`), configure this machine for it (`prefect config set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api`), then run this again.",
        )
    try:
        before = asyncio.run(default_results())
        results = before if options.results is None else asyncio.run(store_results_in(options.results))
        asyncio.run(create_limit(settings.requests_limit_name, per_minute))
        VeogenCredentials.register_type_and_schema()
    except VeogenError:
        raise
    except Exception as error:
        raise ServiceUnavailable(
            f"The Prefect server at {server} did not complete the setup: {type(error).__name__}: {error}",
            next_step="Check that it runs (`prefect version`), then run this again: it is idempotent.",
        ) from error
    if options.json:
        shared = {"limit": settings.requests_limit_name, "requests_per_minute": per_minute}
        write_json({"server": server, **shared, "results": results})
        return 0
    say(
        f"The Prefect server at {server} now has",
        f"  the global concurrency limit {settings.requests_limit_name}: all its workers together send at most "
        f"{per_minute} requests a minute",
        "  the block type Veogen Credentials: store the token there (Blocks → Add Block), or in VEOGEN_API_TOKEN",
        f"  {_describe_results(results, before)}",
    )
    return 0


def _describe_results(results: str | None, before: str | None) -> str:
    if results is None:
        return "no shared result storage: each machine stores its own results (--results s3-bucket/NAME changes it)"
    replaced = "" if before in (None, results) else f", instead of {before}"
    return (
        f"{results} as the default result storage of all its flows{replaced}: workers that run flows and callers that "
        "read their results need the package and the credentials of this block"
    )
