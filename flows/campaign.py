"""Make many pictures and clips from a manifest: priced before the first purchase, and every row on its own.

Run it as a script (`python flows/campaign.py rows.csv`), call it from Python, or deploy it. Running it again buys only
what is missing.
"""

from typing import Any

from prefect_veogen import CampaignReport, VeogenCredentials
from prefect_veogen.tasks.campaign import (
    LocalPath,
    campaign_flow,
    campaign_name,
    check_campaign,
    make_campaign,
    publish_campaign,
    read_manifest,
)
from prefect_veogen.tasks.maintenance import ON_STOP
from prefect_veogen.tasks.runs import KEEP_RESULT


@campaign_flow(name="campaign", **KEEP_RESULT, **ON_STOP)
async def campaign(
    manifest: list[dict[str, Any]] | str | LocalPath,
    *,
    budget_usd: float | None = None,
    take: int | str = 1,
    name: str | None = None,
    at_once: int = 300,
    timeout_seconds: float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: str | LocalPath | None = None,
) -> CampaignReport:
    """Return how all rows of `manifest` ended: a list of dicts, or the path or link of a CSV, JSON, JSONL or YAML file.

    COSTS MONEY: what the rows come to, at most `budget_usd` over all runs of the campaign called `name` (unset: a name
    made from its rows). All rows are checked and priced first, and nothing is bought if one is wrong or if the money
    would not do. Then at most `at_once` rows are in the making; the failure of one stops no other.

    Of a list of more than 256 KB the run's record keeps only the length: to start such a run again from Prefect's UI,
    give a file or a link.
    """
    rows = await read_manifest(manifest, take)
    name = name or campaign_name(rows)
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    money: dict[str, Any] = {"name": name, "budget_usd": budget_usd}
    await check_campaign(rows, **money, **where)
    report = await make_campaign(rows, at_once=at_once, timeout_seconds=timeout_seconds, **money, **where)
    await publish_campaign(report, **where)
    return report


if __name__ == "__main__":
    import asyncio
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python flows/campaign.py MANIFEST")
    print(asyncio.run(campaign(sys.argv[1])))
