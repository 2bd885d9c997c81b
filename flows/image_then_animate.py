"""Make a picture, then animate it: two purchases, two verified assets in the store.

Run it as a script, call it from Python, or deploy it. It may be killed anywhere and run again: nothing is bought twice.
"""

from typing import Any

from prefect import flow

from prefect_veogen import Animated, GenerationRequest, VeogenCredentials, generate
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.tasks.maintenance import ON_STOP
from prefect_veogen.tasks.requests import check_requests, placeholder_of
from prefect_veogen.tasks.runs import KEEP_RESULT, name_flow_run
from prefect_veogen.tasks.stores import StoreParameter


@flow(
    name="image-then-animate",
    flow_run_name=name_flow_run("{image_prompt} → {motion_prompt} (take {take})"),
    **KEEP_RESULT,
    **ON_STOP,
)
async def image_then_animate(
    image_prompt: str,
    motion_prompt: str,
    *,
    image_model: str = "gpt-4o-image",
    video_model: str = "veo-3.1-fast",
    aspect_ratio: str = "16:9",
    resolution: str | None = None,
    take: int | str = 1,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
    budget_usd: float | None = None,
) -> Animated:
    """Return the picture of `image_prompt`, and that picture moving as `motion_prompt` says.

    COSTS MONEY: one image and one video, once per equal arguments; another `take` is another pair. Both are checked and
    priced first, and nothing is bought if the money would not do for both.
    The image asset itself is the video's input, under a link that the service can reach.

    Args:
        image_prompt: What is to be seen.
        motion_prompt: How it is to move.
        image_model: The model of the picture.
        video_model: The model of the clip; it decides most of the price.
        aspect_ratio: Width to height of both, such as 16:9; both models have to offer it.
        resolution: The clip's, such as 1080p; it may change the price.
        take: Which version: another take is another pair, and is bought anew. On a schedule {scheduled:%Y-%m-%d}
            makes one a day.
        credentials: The name of a saved Veogen Credentials block; unset, the environment's token.
        store: Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE.
        budget_usd: What this run may spend at most, in USD; unset, no cap but those of the environment.
    """
    money: dict[str, Any] = {"budget_usd": budget_usd, "credentials": credentials, "store": store}
    shared: dict[str, Any] = {"aspect_ratio": aspect_ratio, "take": take_of_slot(take)}
    picture = GenerationRequest(model=image_model, prompt=image_prompt, **shared)
    motion: dict[str, Any] = {"model": video_model, "prompt": motion_prompt, "resolution": resolution, **shared}
    clip = GenerationRequest(image_urls=[placeholder_of(picture)], **motion)
    await check_requests(picture, clip, animates=True, **money)
    image = await generate(picture, **money)
    video = await generate(GenerationRequest(image_urls=[image], **motion), **money)
    return Animated(image=image, video=video)


if __name__ == "__main__":
    import asyncio
    import sys

    if len(sys.argv) != 3:
        sys.exit("usage: python flows/image_then_animate.py IMAGE_PROMPT MOTION_PROMPT")
    animated = asyncio.run(image_then_animate(*sys.argv[1:3]))
    print(animated.image.uri, animated.video.uri, sep="\n")
