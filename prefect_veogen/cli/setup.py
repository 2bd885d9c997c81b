"""`setup`: prepare a Prefect server, as often as you like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.cli.prefect_server import on_server, write_steps
from prefect_veogen.cli.terminal import say, write_json
from prefect_veogen.masking import masked
from prefect_veogen.settings import Settings

if TYPE_CHECKING:
    from argparse import Namespace

    from prefect_veogen.tasks.provision import Step


def setup(options: Namespace) -> int:
    """Make what a Prefect server lacks, and say what was there and what was done; `--remove` takes it away."""
    limit = options.requests_per_minute
    settings = Settings() if limit is None else Settings(requests_per_minute=limit)
    server, (before, results, steps) = on_server("the setup", lambda: _set_up(settings, options))
    if options.json:
        per_minute = settings.requests_per_minute
        shared = {"limit": settings.requests_limit_name, "requests_per_minute": per_minute, "results": results}
        write_json({"server": server, **shared, "steps": steps})
        return 0
    say(f"The Prefect server at {masked(server)}", "")
    write_steps(steps)
    if not options.remove:
        say("", f"Results: {_describe_results(results, before)}", "Next: `prefect-veogen doctor` checks all of it.")
    return 0


async def _set_up(settings: Settings, options: Namespace) -> tuple[str | None, str | None, list[Step]]:
    from prefect_veogen.tasks.provision import provision, withdraw
    from prefect_veogen.tasks.result_storage import read_default_results, store_results_in

    before = await read_default_results()
    if options.remove:
        return before, before, await withdraw(settings)
    results = before if options.results is None else await store_results_in(options.results)
    return before, results, await provision(settings, options.alerts)


def _describe_results(results: str | None, before: str | None) -> str:
    if results is None:
        return "no shared storage: each machine stores its own (--results s3-bucket/NAME changes it)"
    replaced = "" if before in (None, results) else f", instead of {before}"
    return (
        f"{results} as the default result storage of all its flows{replaced}: workers that run flows and callers that "
        "read their results need the package and the credentials of this block"
    )
