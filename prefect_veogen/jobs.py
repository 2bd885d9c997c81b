"""A generation as a job block: saved once with its request, triggered from anywhere, sync or async.

Prefect imports this module to know the blocks, whatever it does; the tasks are imported only where one is used.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

# Not public, and yet what Prefect's own collections use: there is no other way to be called from sync and async code.
from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.blocks.abstract import JobBlock, JobRun
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import ConfigDict, Field, GetJsonSchemaHandler, HttpUrl, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema

from prefect_veogen.blocks import allow_prefects_own, is_block_name, optional_field, without_prefects_own
from prefect_veogen.models import Asset, Generation, GenerationRequest
from prefect_veogen.models.signed_links import without_signature
from prefect_veogen.schedule import take_of_slot

if TYPE_CHECKING:
    from prefect_veogen.blocks import VeogenCredentials
    from prefect_veogen.tasks.stores import StoreParameter


class GenerationRun(JobRun[Asset]):
    """A generation that was bought: wait for it, then fetch its asset. Both are free, and safe to repeat."""

    def __init__(
        self,
        generation: Generation,
        *,
        credentials: VeogenCredentials | str | None = None,
        store: StoreParameter | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        """Take what a generation was bought with, and for how long to wait for it at most."""
        self.generation = generation
        """How far it was when it was looked at last."""
        self._where: dict[str, Any] = {"credentials": credentials, "store": store}
        self._timeout_seconds = timeout_seconds

    @classmethod
    def attach(
        cls,
        generation_id: str,
        *,
        credentials: VeogenCredentials | str | None = None,
        store: StoreParameter | None = None,
        timeout_seconds: float | None = None,
    ) -> Self:
        """Return the run of a generation whose id is known, wherever it was bought. Free: requests nothing."""
        where: dict[str, Any] = {"credentials": credentials, "store": store}
        return cls(Generation(id=generation_id), timeout_seconds=timeout_seconds, **where)

    @property
    def id(self) -> str:
        """The generation's id at the service, by which `attach` finds it again."""
        return self.generation.id

    async def await_for_completion(self) -> None:
        """Return when the generation is completed. Free, and safe to repeat.

        Raises:
            StillRunning, GenerationFailed, ContentRejected, PersonNeeded: as `wait_for_generation`.
        """
        from prefect_veogen.tasks.generation import wait_for_generation

        self.generation = await wait_for_generation(
            self.generation, timeout_seconds=self._timeout_seconds, **self._where
        )

    @async_dispatch(await_for_completion)
    def wait_for_completion(self) -> None:  # type: ignore[override] # awaited or not, as the caller's context is
        """Return when the generation is completed; in async code it is awaited. Free: see `await_for_completion`."""
        run_coro_as_sync(self.await_for_completion())

    async def afetch_result(self) -> Asset:
        """Return the generation's asset, in the store and verified; waits first if nothing has yet.

        Free, and safe to repeat: an asset that is already there is returned as it is.

        Raises:
            DownloadBroken, MediaRejected, OutputMissing: as `download_asset`.
            StillRunning, GenerationFailed, ContentRejected, PersonNeeded: as `wait_for_generation`, where it waits.
        """
        from prefect_veogen.tasks.generation import download_asset

        if self.generation.output is None:
            await self.await_for_completion()
        asset: Asset = await download_asset(self.generation, **self._where)
        return asset

    @async_dispatch(afetch_result)
    def fetch_result(self) -> Asset:  # type: ignore[override] # as above
        """Return the generation's asset; in async code it is awaited. Free: see `afetch_result`."""
        asset: Asset = run_coro_as_sync(self.afetch_result())
        return asset


class VeogenGeneration(JobBlock):  # type: ignore[type-arg] # JobBlock[…] would be a type of blocks of its own
    """A request for a picture or a clip, saved with its account, its store and its cap.

    Triggering it buys what it asks for, at most once: triggered again it finds the same generation, and pays nothing.
    Another take is another purchase. In a flow it shows as the tasks submit, wait and download.

    Its fields are those of a `GenerationRequest`, and `labels`, `budget_usd`, `timeout_seconds`, `store` and
    `credentials`, which is the name of a saved block. Saving and loading it is free.

    Example:
        Load a stored generation, buy it and fetch its asset:
        ```python
        from prefect_veogen import VeogenGeneration

        generation = VeogenGeneration.load("BLOCK_NAME")
        run = generation.trigger()
        run.wait_for_completion()
        asset = run.fetch_result()
        ```
    """

    # A misspelt option of what is paid for must not be kept as something else. Errors must not quote their input, which
    # may be a token.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    _block_type_name = "Veogen Generation"
    _block_type_slug = "veogen-generation"
    _logo_url = HttpUrl("https://veogen.studio/favicon.ico")
    _documentation_url = HttpUrl("https://veogenstudio.mintlify.app/api-reference/generations/create")
    _description = "A request for a picture or a clip, which is bought once however often it is triggered."

    # Their order is part of the schema's checksum: append only.
    model: str = Field(description="The model, such as gpt-4o-image or veo-3.1-fast; it decides most of the price.")
    prompt: str = Field(description="What is to be seen, and of a clip what happens.")
    aspect_ratio: str | SkipJsonSchema[None] = optional_field("Width to height, such as 16:9.")
    resolution: str | SkipJsonSchema[None] = optional_field(
        "Such as 1080p, where the model offers several; it may change the price."
    )
    duration: int | SkipJsonSchema[None] = optional_field(
        "The clip's length in seconds, where the model offers several; it may change the price."
    )
    mode: str | SkipJsonSchema[None] = optional_field("One of the model's modes, where it has any.")
    style: str | SkipJsonSchema[None] = optional_field("One of the model's styles, where it has any.")
    image_urls: list[str] | SkipJsonSchema[None] = optional_field(
        "Pictures to work from, as links, s3://bucket/key or files."
    )
    video_urls: list[str] | SkipJsonSchema[None] = optional_field("Clips to work from, likewise.")
    audio_urls: list[str] | SkipJsonSchema[None] = optional_field("Sounds to work from, likewise.")
    watermark: bool | SkipJsonSchema[None] = optional_field(
        "The service's option of that name, where the model has it; unset, the service decides."
    )
    private: bool | SkipJsonSchema[None] = optional_field(
        "The service's option of that name, where the model has it; unset, the service decides."
    )
    take: int | str = Field(
        default=1,
        description="Which version: another take is another purchase; {scheduled:%Y-%m-%d} makes one a day in a "
        "scheduled flow.",
    )
    labels: dict[str, str] | SkipJsonSchema[None] = optional_field(
        'Your own words on the purchase, such as {"project": "spring"}, for caps and costs.'
    )
    budget_usd: float | SkipJsonSchema[None] = optional_field(
        "What a flow run may spend at most, in USD; unset, no cap but those of the settings."
    )
    timeout_seconds: float | SkipJsonSchema[None] = optional_field(
        "How long to wait at most; unset, 10 minutes for a picture and 30 for a clip."
    )
    # Names, not blocks: both are read when it is triggered, so that no secret is stored here.
    credentials: str | SkipJsonSchema[None] = optional_field(
        "The name of a saved Veogen Credentials block; unset, the environment's token."
    )
    store: str | SkipJsonSchema[None] = optional_field(
        "Where all is kept: s3://bucket/prefix, s3-bucket/NAME (a block) or an absolute path; unset, VEOGEN_STORE."
    )

    async def atrigger(self, **changes: Any) -> GenerationRun:
        """Buy what the block asks for, at most once, and return its run.

        COSTS MONEY as `submit_generation` does; safe to repeat: what was bought before is found, and costs nothing.
        `changes` are fields of the request which differ this time, such as `prompt` or `take`.

        Raises:
            ChangeTheRequest, ChangeTheSetup, TryAgainLater, UnknownSubmission: as `submit_generation`.
        """
        from prefect_veogen.tasks.generation import submit_generation

        where: dict[str, Any] = {"credentials": self.credentials, "store": self.store}
        generation: Generation = await submit_generation(
            self._request(changes), budget_usd=self.budget_usd, labels=self.labels, **where
        )
        return GenerationRun(generation, timeout_seconds=self.timeout_seconds, **where)

    @async_dispatch(atrigger)
    def trigger(self, **changes: Any) -> GenerationRun:  # type: ignore[override] # as above
        """Buy what the block asks for; in async code it is awaited. COSTS MONEY: see `atrigger`."""
        run: GenerationRun = run_coro_as_sync(self.atrigger(**changes))
        return run

    def _request(self, changes: dict[str, Any]) -> GenerationRequest:
        saved = {name: getattr(self, name) for name in GenerationRequest.model_fields}
        fields = {**saved, **changes}
        return GenerationRequest(**{**fields, "take": take_of_slot(fields["take"])})

    @field_validator("credentials")
    @classmethod
    def _is_name(cls, credentials: str | None) -> str | None:
        # What isn't a name may well be a token, and all of this block is stored in plain text.
        if credentials is not None and not is_block_name(credentials.removeprefix("veogen-credentials/")):
            raise ValueError(
                "must be the name of a saved VeogenCredentials block: only lowercase letters, digits and dashes. If it "
                "was a token, save that in a VeogenCredentials block, and give the block's name here"
            )
        return credentials

    @field_validator("image_urls", "video_urls", "audio_urls")
    @classmethod
    def _holds_no_secrets(cls, links: list[str] | None) -> list[str] | None:
        for position, link in enumerate(links or ()):
            if without_signature(link) != link or re.match("https?://[^/?#]*@", link, re.IGNORECASE):
                raise ValueError(
                    f"the link at position {position} has a signature or a password, which would be stored in plain "
                    "text, and a signature expires. Give s3://bucket/key: it is signed when it is bought"
                )
        return links

    @model_validator(mode="before")
    @classmethod
    def _without_prefects_own(cls, values: Any) -> Any:
        return without_prefects_own(cls, values)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return allow_prefects_own(core_schema, handler)
