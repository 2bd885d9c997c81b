"""`setup`: what a Prefect server needs to know, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prefect_veogen.cli.terminal import say, write_json
from prefect_veogen.errors import ConfigurationError, ServiceUnavailable, VeogenError
from prefect_veogen.settings import Settings

if TYPE_CHECKING:
    from argparse import Namespace


def setup(options: Namespace) -> int:
    """Create the limit that joins all workers, register the block and, if asked to, choose where results are stored."""
    from prefect.settings import PREFECT_API_URL

    from prefect_veogen.blocks import VeogenCredentials
    from prefect_veogen.tasks.result_storage import default_results, store_results_in
    from prefect_veogen.tasks.shared_limit import create_limit

    given = options.requests_per_minute
    settings = Settings() if given is None else Settings(requests_per_minute=given)
    per_minute = settings.requests_per_minute
    server = PREFECT_API_URL.value()
    if server is None:
        raise ConfigurationError(
            "There is no Prefect server which workers could share",
            next_step="Start one (`prefect server start`), tell it to this machine (`prefect config set "
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
            f"Prefect's server at {server} did not take it: {type(error).__name__}: {error}",
            next_step="Check that it runs (`prefect version`), then run this again; what is done already stays.",
        ) from error
    if options.json:
        limit = {"limit": settings.requests_limit_name, "requests_per_minute": per_minute}
        write_json({"server": server, **limit, "results": results})
        return 0
    say(
        f"The Prefect server at {server} now has",
        f"  the global concurrency limit {settings.requests_limit_name}: all its workers together send at most "
        f"{per_minute} requests a minute",
        "  the block type Veogen Credentials: keep the token there (Blocks → Add Block), or in VEOGEN_API_TOKEN",
        f"  {_told_of_results(results, before)}",
    )
    return 0


def _told_of_results(results: str | None, before: str | None) -> str:
    if results is None:
        return (
            "no place for results that others share: each machine keeps its own (--results s3-bucket/NAME changes it)"
        )
    replaced = "" if before in (None, results) else f", instead of {before}"
    return (
        f"{results} as the place where all its flows store their results by default{replaced}: whoever runs flows or "
        "reads their results needs the package and the credentials that this block takes"
    )
