"""`deploy`: put the package's flows on a Prefect server, from wherever the package is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.cli.prefect_server import on_server, write_steps
from prefect_veogen.cli.terminal import say, write_json
from prefect_veogen.masking import masked

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from prefect_veogen.tasks.provision import Step


def deploy(options: Namespace) -> int:
    """Deploy the named flows, or all of them, and say what was there; nothing is bought, and no schedule is on."""

    async def deploy_named() -> Sequence[Step]:
        from prefect_veogen.tasks.deploy import deploy_flows

        return await deploy_flows(
            options.names, pool=options.pool, store=options.store, credentials=options.credentials
        )

    server, steps = on_server("the deployment", deploy_named)
    if options.json:
        write_json({"server": server, "pool": options.pool, "steps": steps})
        return 0
    say(f"The Prefect server at {masked(server)}", "")
    write_steps(steps)
    say("")
    if options.store is None or options.credentials is None:
        say(
            "Deployments without a store or credentials of their own (--store, --credentials) take them from their "
            "worker's environment: VEOGEN_STORE, s3://… or an absolute path, and VEOGEN_API_TOKEN or "
            "VEOGEN_CREDENTIALS; without either of these the token from the block default."
        )
    say(
        f"Next: `prefect worker start --pool {options.pool}` wherever this package is installed. Then run one in the "
        "UI, which has a form for it, or by `prefect deployment run NAME -p prompt=…`.",
    )
    return 0
