"""Finish what dead or cancelled runs left behind, then compare the ledger with the account's statement.

Deploy it on a schedule (see deployments/prefect.yaml), or run it as a script: `python flows/sweep.py`. It buys nothing.
"""

from collections.abc import Sequence

from prefect import flow

from prefect_veogen import Swept, VeogenCredentials
from prefect_veogen.tasks.maintenance import compare_with_statement, sweep_store
from prefect_veogen.tasks.runs import KEEP_RESULT, name_flow_run
from prefect_veogen.tasks.stores import StoreParameter


@flow(name="sweep", flow_run_name=name_flow_run("sweep of {scheduled:%Y-%m-%d %H:%M}"), **KEEP_RESULT)
async def sweep(
    *, days: int = 30, credentials: VeogenCredentials | str | None = None, store: StoreParameter | None = None
) -> Sequence[Swept]:
    """Return what was done about each unfinished receipt, after logging how the last `days` add up. Free.

    Args:
        days: Of how many days the ledger is compared with the account's statement.
        credentials: The name of a saved Veogen Credentials block; unset, the environment's token.
        store: Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE.
    """
    swept = await sweep_store(credentials=credentials, store=store)
    await compare_with_statement(days, credentials=credentials, store=store)
    return swept


if __name__ == "__main__":
    import asyncio

    for item in asyncio.run(sweep()):
        print(f"{item.key}: {item.note}")
