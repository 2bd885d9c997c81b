"""Make some pictures cheaply, let a person choose, and animate only those that were approved.

Deployed, the run is suspended while it waits; as a script, or called from Python, it waits in place: in either case the
form is in Prefect's UI, at the run, under Resume. It may be killed anywhere and run again: nothing is bought twice.
"""

from typing import Any

from prefect import flow

from prefect_veogen import Approved, GenerationRequest, VeogenCredentials
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.tasks.approval import Approval, PictureRounds, TimeoutSeconds, Variants, ask_for_approval, clips_of
from prefect_veogen.tasks.maintenance import ON_STOP
from prefect_veogen.tasks.requests import check_requests, generate_all, placeholder_of
from prefect_veogen.tasks.runs import KEEP_RESULT, name_flow_run
from prefect_veogen.tasks.stores import StoreParameter


@flow(flow_run_name=name_flow_run("{image_prompt} → {motion_prompt} (take {take})"), **KEEP_RESULT, **ON_STOP)
async def approve_then_animate(
    image_prompt: str,
    motion_prompt: str,
    *,
    variants: Variants = 4,
    image_model: str = "gpt-4o-image",
    video_model: str = "veo-3.1-fast",
    aspect_ratio: str = "16:9",
    resolution: str | None = None,
    take: int | str = 1,
    approval_timeout_seconds: TimeoutSeconds = 7 * 24 * 3600,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: float | None = None,
) -> Approved:
    """Return the pictures that were shown last, and clips of those that a person approved.

    COSTS MONEY: `variants` images and as many again each time the person wants others, then a video for each approved
    image. Images and videos are checked before the first purchase; the form shows what each choice costs. With "stop",
    or when nobody has decided in time, nothing more is spent.

    Args:
        image_prompt: What is to be seen.
        motion_prompt: How it is to move.
        variants: How many pictures there are to choose from, at most 24.
        image_model: The model of the pictures; a cheap one.
        video_model: The model of the clips; it decides most of the price.
        aspect_ratio: Width to height of all, such as 16:9; both models have to offer it.
        resolution: The clips', such as 1080p; it may change the price.
        take: The first picture's take; the others have the next numbers (of a text such as a date: T, T.2, T.3 …).
            On a schedule {scheduled:%Y-%m-%d} makes a set a day.
        approval_timeout_seconds: How long to wait for each decision. Then a suspended run is failed by Prefect; a
            run by hand ends well, with the pictures alone.
        credentials: The name of a saved Veogen Credentials block; unset, the environment's token.
        store: Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE.
        budget_usd: What this run may spend at most, in USD, pictures included; unset, no cap but those of the
            environment.
    """
    money: dict[str, Any] = {"budget_usd": budget_usd, "credentials": credentials, "store": store}
    shared: dict[str, Any] = {"aspect_ratio": aspect_ratio, "take": take_of_slot(take)}
    motion = GenerationRequest(model=video_model, prompt=motion_prompt, resolution=resolution, **shared)
    pictures = PictureRounds(GenerationRequest(model=image_model, prompt=image_prompt, **shared), variants)
    said = Approval(decision="again")
    while said.decision == "again":
        shown = pictures.next_round(said.new_prompt)
        clips = clips_of(motion, shown, map(placeholder_of, shown))
        await check_requests(*shown, later=clips, animates=True, **money)
        images = await generate_all(*shown, **money)
        clips = clips_of(motion, shown, images)
        options: dict[str, Any] = {"timeout_seconds": approval_timeout_seconds, **money}
        said = await ask_for_approval(images, clips=clips, rounds=pictures, **options)
    videos = await generate_all(*(clips[number - 1] for number in said.approved), **money)
    return Approved(images=images, videos=videos, approved=tuple(said.approved))


if __name__ == "__main__":
    import asyncio
    import sys

    if len(sys.argv) != 3:
        sys.exit("usage: python flows/approve_then_animate.py IMAGE_PROMPT MOTION_PROMPT")
    made = asyncio.run(approve_then_animate(*sys.argv[1:3]))
    print(*(asset.uri for asset in (*made.images, *made.videos)), sep="\n")
