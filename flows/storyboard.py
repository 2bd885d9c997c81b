"""Make the shots of a storyboard and one film of them: a keyframe each, or each beginning where the one before ended.

Run it as a script (`python flows/storyboard.py shots.csv`), call it from Python, or deploy it. Running it again buys
only what is missing.
"""

from typing import Any

from prefect_veogen import Storyboard, VeogenCredentials
from prefect_veogen.tasks.campaign import TableParameter, campaign_flow, campaign_name, publish_campaign
from prefect_veogen.tasks.maintenance import ON_STOP
from prefect_veogen.tasks.requests import InputsParameter
from prefect_veogen.tasks.runs import KEEP_RESULT
from prefect_veogen.tasks.stores import StoreParameter
from prefect_veogen.tasks.storyboard import Chain, check_storyboard, join_film, make_shots, read_shots


@campaign_flow(name="storyboard", **KEEP_RESULT, **ON_STOP)
async def storyboard(
    shots: TableParameter,
    *,
    chain: Chain = "none",
    join: bool = False,
    reference_images: InputsParameter | None = None,
    image_model: str = "gpt-4o-image",
    video_model: str = "veo-3.1-fast",
    aspect_ratio: str = "16:9",
    resolution: str | None = None,
    take: int | str = 1,
    name: str | None = None,
    carry: list[str] | str = [],  # noqa: B006 - Prefect shows it in the form; it is never changed
    labels: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: float | None = None,
) -> Storyboard:
    """Return how the shots of a manifest ended, `.items`, and the film of their clips, `.film`, if it was asked for.

    The shots are a campaign: its results and its gallery are in the store at `campaigns/<name>/`. What is finished
    stays when another shot fails, which is reported as its item's status; then there is no film. Running it again
    makes only what is missing.

    COSTS MONEY: a picture and a clip per shot; with `chain="last_frame"` a picture for the first one only, because each
    other clip begins with the last frame of the one before. All shots are checked and priced first, and nothing is
    bought if one is wrong or if the money would not do; after each stage the price of the rest is logged. The film is
    free.

    Args:
        shots: The path or link of a table (CSV, JSON, YAML, Parquet …), or its rows: each with an id, a prompt for its
            picture and a motion_prompt for its clip; in the order of the film.
        chain: With "last_frame", each clip but the first begins with the last frame of the one before. Only the first
            shot's prompt is used then, and the store has to be a bucket.
        join: Whether the clips are joined into one film. They are not encoded again, so they all have to be of one
            model and resolution.
        reference_images: Pictures from which each shot's picture is made, before its own image_urls, so that
            characters stay the same: links, s3://bucket/key, or files that the worker can read.
        image_model: The model of the pictures, for shots without a model.
        video_model: The model of the clips, for shots without a motion_model; it decides most of the price.
        aspect_ratio: Width to height of all, such as 16:9, for shots without their own.
        resolution: The clips', such as 1080p, for shots without a motion_resolution; it may change the price.
        take: Which version, for shots without a take of their own: another take is bought anew.
        name: Under which name its results and its budget are kept; unset, a name made from the shots.
        carry: Names of columns that come along into the results, or "*" for all.
        labels: Your own words on all purchases, such as {"project": "spring"}, for caps and costs.
        timeout_seconds: How long to wait for one picture or clip at most; unset, 10 minutes and 30.
        credentials: The name of a saved Veogen Credentials block; unset, the environment's token.
        store: Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE.
        budget_usd: What all runs of the storyboard of this name may spend at most, in USD; unset, no cap but those of
            the environment.
    """
    look: dict[str, Any] = {
        "aspect_ratio": aspect_ratio,
        "resolution": resolution,
        "reference_images": reference_images,
    }
    models: dict[str, Any] = {"image_model": image_model, "video_model": video_model}
    wanted = await read_shots(shots, chain, take=take, carry=carry, labels=labels, store=store, **models, **look)
    name = name or campaign_name(wanted.rows)
    where: dict[str, Any] = {"credentials": credentials, "store": store}
    money: dict[str, Any] = {"name": name, "budget_usd": budget_usd, **where}
    await check_storyboard(wanted, join=join, **money)
    report = await make_shots(wanted, timeout_seconds=timeout_seconds, **money)
    await publish_campaign(report, **where)
    film = await join_film(report, **where) if join else None
    return Storyboard(report=report, film=film)


if __name__ == "__main__":
    import asyncio
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python flows/storyboard.py SHOTS")
    made = asyncio.run(storyboard(sys.argv[1], join=True))
    print(made.report, made.film and made.film.uri, sep="\n")
