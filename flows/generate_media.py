"""Make one picture or clip of any model: a request's fields as a form, a verified asset in the store.

Run it as a script, call it from Python, or deploy it. It may be killed anywhere and run again: nothing is bought twice.
"""

from typing import Any

from prefect import flow

from prefect_veogen import Asset, GenerationRequest, VeogenCredentials
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.tasks.fallback import fallbacks_of, generate_with_fallbacks
from prefect_veogen.tasks.maintenance import ON_STOP
from prefect_veogen.tasks.requests import InputsParameter
from prefect_veogen.tasks.runs import KEEP_RESULT, name_flow_run
from prefect_veogen.tasks.stores import StoreParameter


@flow(name="generate-media", flow_run_name=name_flow_run("{model}: {prompt} (take {take})"), **KEEP_RESULT, **ON_STOP)
async def generate_media(
    prompt: str,
    *,
    model: str = "gpt-4o-image",
    aspect_ratio: str | None = None,
    resolution: str | None = None,
    duration: int | None = None,
    mode: str | None = None,
    style: str | None = None,
    image_urls: InputsParameter | None = None,
    video_urls: InputsParameter | None = None,
    audio_urls: InputsParameter | None = None,
    watermark: bool | None = None,
    private: bool | None = None,
    fallback_models: list[str] | None = None,
    softened_prompt: str | None = None,
    take: int | str = 1,
    labels: dict[str, str] | None = None,
    budget_usd: float | None = None,
    timeout_seconds: float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> Asset:
    """Return the picture or clip of one request to any model, in the store and verified.

    COSTS MONEY: what the catalogue quotes for the request, once per equal request and `take`. Fields that are not set
    are not sent; what a model offers, and its price, says `prefect-veogen models`. It is checked before it is bought,
    and so is what is to be made if its generation fails.

    Args:
        prompt: What is to be seen, and of a clip what happens.
        model: The name of the model, such as gpt-4o-image or veo-3.1-fast; it decides whether a picture or a clip
            is made, and what that costs.
        aspect_ratio: Width to height, such as 16:9.
        resolution: Such as 1080p, where the model offers several; it may change the price.
        duration: The clip's length in seconds, where the model offers several; it may change the price.
        mode: One of the model's modes, where it has any.
        style: One of the model's styles, where it has any.
        image_urls: Pictures to work from, as links, s3://bucket/key or files that the worker can read.
        video_urls: Clips to work from, likewise.
        audio_urls: Sounds to work from, likewise.
        watermark: The service's option of that name, where the model has it; unset, the service decides.
        private: The service's option of that name, where the model has it; unset, the service decides.
        fallback_models: Models to make it with instead, in this order, if its generation fails, which is not charged.
        softened_prompt: A milder prompt for the case that it fails: tried with the same model first.
        take: Which version: the same request with another take is another purchase. On a schedule
            {scheduled:%Y-%m-%d} makes one a day.
        labels: Your own words on the purchase, such as {"project": "spring"}, for caps and costs.
        budget_usd: What this run may spend at most, in USD; unset, no cap but those of the environment.
        timeout_seconds: How long to wait at most; unset, 10 minutes for a picture and 30 for a clip.
        credentials: The name of a saved Veogen Credentials block; unset, the environment's token.
        store: Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE.
    """
    look: dict[str, Any] = {"aspect_ratio": aspect_ratio, "resolution": resolution, "mode": mode, "style": style}
    inputs: dict[str, Any] = {"image_urls": image_urls, "video_urls": video_urls, "audio_urls": audio_urls}
    others: dict[str, Any] = {"duration": duration, "watermark": watermark, "private": private}
    options: dict[str, Any] = {"labels": labels, "budget_usd": budget_usd, "timeout_seconds": timeout_seconds}
    request = GenerationRequest(model=model, prompt=prompt, take=take_of_slot(take), **look, **inputs, **others)
    fallbacks = fallbacks_of(request, fallback_models, softened_prompt)
    return await generate_with_fallbacks(request, *fallbacks, credentials=credentials, store=store, **options)


if __name__ == "__main__":
    import asyncio
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python flows/generate_media.py PROMPT")
    print(asyncio.run(generate_media(sys.argv[1])).uri)
