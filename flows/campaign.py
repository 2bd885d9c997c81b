"""Make many pictures and clips from a manifest: priced before the first purchase, and every row on its own.

Run it as a script (`python flows/campaign.py rows.csv`), call it from Python, or deploy it. Running it again buys only
what is missing.
"""

from typing import Any, Literal

from prefect_veogen import CampaignReport, VeogenCredentials
from prefect_veogen.tasks.campaign import (
    TableParameter,
    campaign_flow,
    campaign_name,
    check_campaign,
    keep_results,
    make_campaign,
    publish_campaign,
    read_manifest,
)
from prefect_veogen.tasks.maintenance import ON_STOP
from prefect_veogen.tasks.run_again import run_again_for_rows
from prefect_veogen.tasks.runs import KEEP_RESULT
from prefect_veogen.tasks.stores import StoreParameter


@campaign_flow(name="campaign", **KEEP_RESULT, **ON_STOP)
async def campaign(
    manifest: TableParameter,
    *,
    budget_usd: float | None = None,
    take: int | str = 1,
    name: str | None = None,
    carry: list[str] | str = [],  # noqa: B006 - Prefect shows it in the form; it is never changed
    labels: dict[str, str] | None = None,
    prompt_template: str | None = None,
    motion_template: str | None = None,
    variants: int = 1,
    only: Literal["failed"] | None = None,
    at_once: int = 300,
    timeout_seconds: float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> CampaignReport:
    """Return how all rows of `manifest` ended, a table: a list of dicts, a DataFrame, or the path or link of a file.

    The file is CSV, JSON, JSONL, YAML, Parquet or Arrow. Columns in `carry` ("*": all) come along into the results,
    a table, too: `campaigns/<name>/results.jsonl` in the store (and `results.parquet` where pyarrow is installed),
    written last and whole; `report.records()` and `report.to_frame()` give its rows. `prompt_template` makes prompts
    from columns, `labels` mark the purchases, `variants` makes each row in several takes. With `only="failed"`, what
    ended well in the last run of that name is left out.

    COSTS MONEY: what the rows come to, at most `budget_usd` over all runs of the campaign called `name` (unset: a name
    made from its rows). All rows are checked and priced first, and nothing is bought if one is wrong or if the money
    would not do. Then at most `at_once` rows are in the making; the failure of one stops no other.

    Of a list of more than 256 KB, and of a DataFrame, the run's record keeps only the length: to start such a run again
    from Prefect's UI, give a file or a link.

    Args:
        manifest: The path or link of a table (CSV, JSON, YAML, Parquet …), or its rows: each with an id, a model, a
            prompt and, where the picture is to move, a motion_prompt.
        budget_usd: What all runs of the campaign of this name may spend at most, in USD; unset, no cap but those of
            the environment.
        take: Which version, for rows without a take of their own: another take is bought anew.
        name: Under which name its results and its budget are kept; unset, a name made from the rows.
        carry: Names of columns that come along into the results, or "*" for all.
        labels: Your own words on all purchases, such as {"project": "spring"}, for caps and costs.
        prompt_template: Makes the prompt of rows without one from their columns, such as "A {color} {name}".
        motion_template: Makes their motion_prompt likewise.
        variants: In how many takes each row is made.
        only: With "failed", what ended well in the last run of this name is left out.
        at_once: How many rows are in the making at the same time, at most.
        timeout_seconds: How long to wait for one picture or clip at most; unset, 10 minutes and 30.
        credentials: The name of a saved Veogen Credentials block; unset, the environment's token.
        store: Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE.
    """
    columns: dict[str, Any] = {"carry": carry, "labels": labels, "variants": variants}
    templates: dict[str, Any] = {"prompt_template": prompt_template, "motion_template": motion_template}
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    rows = await read_manifest(manifest, take, **columns, **templates, **where)
    name = name or campaign_name(rows)
    money: dict[str, Any] = {"name": name, "budget_usd": budget_usd}
    await keep_results(rows, only, name=name, **where)
    await check_campaign(rows, **money, **where)
    report = await make_campaign(rows, at_once=at_once, timeout_seconds=timeout_seconds, **money, **where)
    await publish_campaign(report, run_again=True, **where)
    await run_again_for_rows(report)
    return report


if __name__ == "__main__":
    import asyncio
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python flows/campaign.py MANIFEST")
    print(asyncio.run(campaign(sys.argv[1])))
