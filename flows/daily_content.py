"""Make everything in a manifest once per slot of a schedule, and publish it where consumers look for it.

Deploy it on a schedule, run it as a script (`python flows/daily_content.py rows.csv`), or call it from Python. However
often a slot is run, it is bought once.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any, Literal

from prefect_veogen import CampaignReport, VeogenCredentials
from prefect_veogen.tasks.campaign import TableParameter, campaign_flow, check_campaign
from prefect_veogen.tasks.daily import is_late, make_slots, read_slots
from prefect_veogen.tasks.maintenance import ON_STOP, sweep_store
from prefect_veogen.tasks.runs import KEEP_RESULT
from prefect_veogen.tasks.stores import StoreParameter


@campaign_flow(name="daily-content", **KEEP_RESULT, **ON_STOP)
async def daily_content(
    manifest: TableParameter,
    *,
    take: int | str = "{scheduled:%Y-%m-%d}",
    name: str = "daily",
    budget_usd: float | None = None,
    publish_as: str | None = None,
    latest: str | None = None,
    late: Literal["catch_up", "skip"] = "catch_up",
    late_after_seconds: float = 6 * 3600,
    start: date | None = None,
    end: date | None = None,
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
) -> Sequence[CampaignReport]:
    """Return how the rows of `manifest` ended in the run's slot, or in each from `start` to `end`: a report per slot.

    First what dead runs left behind is finished. Then each slot is a campaign with the slot's take, its own results and
    its own budget: `campaigns/<name>-<take>/results.jsonl` in the store. A backfill, `start` to `end`, makes a slot of
    each day; all of them are priced first, and share one budget.

    COSTS MONEY: what the rows come to, once per slot, at most `budget_usd`. All rows are checked and priced first, and
    nothing is bought if one is wrong or if the money would not do.

    Args:
        manifest: The path or link of a table (CSV, JSON, YAML, Parquet …), or its rows: each with an id, a model, a
            prompt and, where the picture is to move, a motion_prompt.
        take: Which version: as it is, one a day (UTC).
        name: What the slots' campaigns are called, each followed by its take.
        budget_usd: What all runs of a slot may spend at most, in USD; of a backfill, all its slots together. Unset, no
            cap but those of the environment.
        publish_as: Where in the store each asset is copied to, such as daily/{scheduled:%F}{ext}; {ext} is .png, .mp4
            or whatever it is; of several rows with {id}, of variants with {take}.
        latest: Where the newest slot's asset is copied to, such as daily/latest.mp4; it is replaced whole.
        late: What a worker does that comes back after its slot: "catch_up" makes it then, "skip" makes nothing.
        late_after_seconds: How long after its scheduled start a run is late.
        start: The first day (UTC) of a backfill.
        end: Its last day; the same as the first, to make one day again.
        carry: Names of columns that come along into the results, or "*" for all.
        labels: Your own words on all purchases, such as {"project": "spring"}, for caps and costs.
        prompt_template: Makes the prompt of rows without one from their columns, such as "A {color} {name}".
        motion_template: Makes their motion_prompt likewise.
        variants: In how many takes each row is made.
        only: With "failed", what ended well in the last run of a slot is left out.
        at_once: How many rows are in the making at the same time, at most.
        timeout_seconds: How long to wait for one picture or clip at most; unset, 10 minutes and 30.
        credentials: The name of a saved Veogen Credentials block; unset, the environment's token.
        store: Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE.
    """
    if late == "skip" and start is None and is_late(late_after_seconds):
        return []
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    columns: dict[str, Any] = {"carry": carry, "labels": labels, "variants": variants}
    templates: dict[str, Any] = {"prompt_template": prompt_template, "motion_template": motion_template}
    places: dict[str, Any] = {"publish_as": publish_as, "latest": latest, "start": start, "end": end, "only": only}
    await sweep_store(**where)
    slots = await read_slots(manifest, take, name=name, **places, **columns, **templates, **where)
    budget = slots[0].name if len(slots) == 1 else f"{name}-{start}-to-{end}"
    money: dict[str, Any] = {"budget_usd": budget_usd, **where}
    await check_campaign(*(slot.rows for slot in slots), name=budget, **money)
    limits: dict[str, Any] = {"at_once": at_once, "timeout_seconds": timeout_seconds, "budget": budget}
    return await make_slots(slots, **limits, **money)


if __name__ == "__main__":
    import asyncio
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python flows/daily_content.py MANIFEST")
    print(*asyncio.run(daily_content(sys.argv[1])), sep="\n")
