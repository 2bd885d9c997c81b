"""Which account work is done for: a credentials block, the name of one, or the environment alone."""

from __future__ import annotations

from typing import Final

from prefect_veogen.blocks import VeogenCredentials, is_block_name
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.settings import Settings
from prefect_veogen.tasks.durability import belongs_to_a_deployment
from prefect_veogen.tasks.saved_blocks import BlockKind, is_exposed, saved_blocks

KIND: Final = BlockKind(VeogenCredentials, "prefect-veogen setup", "VeogenCredentials(api_token=…)")
DEFAULT_BLOCK: Final = "default"
"""The block that `prefect-veogen setup` makes, and that a deployment's run uses which is given no other token."""


async def resolve_credentials(
    credentials: VeogenCredentials | str | None, named_by: str = "credentials=", settings: Settings | None = None
) -> VeogenCredentials | None:
    """Return the block to work with: the given one, the one of that name, or the one that `VEOGEN_CREDENTIALS` names.

    A run of a deployment where neither these nor `VEOGEN_API_TOKEN` name an account works with the block `default`.
    Else `None` means that the token comes from the environment alone. Free: one request to the Prefect server per
    block, flow run and minute.

    Raises:
        ConfigurationError: there is no such block, or the token of the given one has been exposed.
        ServiceUnavailable: the Prefect server did not respond; nothing was bought.
    """
    if credentials is None:
        settings = settings or Settings()
        credentials, named_by = settings.credentials, "VEOGEN_CREDENTIALS"
        if credentials is None:
            tokenless = settings.api_token is None and await belongs_to_a_deployment()
            return await _load_default() if tokenless else None
    if isinstance(credentials, str):
        return await _load(_name_of(credentials, named_by), named_by)
    if not isinstance(credentials, VeogenCredentials):
        raise ConfigurationError(
            f"A VeogenCredentials is needed, not a {type(credentials).__name__}",
            next_step="Nothing was bought. Give the name of a saved block, or the block itself "
            '(VeogenCredentials.load("NAME"), awaited in async code).',
        )
    secret = credentials.api_token.get_secret_value() if credentials.api_token else ""
    # A masked one is exposed as well, and refused as masked.
    if secret.strip("*") and await is_exposed(secret):
        raise ConfigurationError(
            "The token is in plain text in this flow run's parameters, for everyone who sees the Prefect server",
            next_step="Nothing was bought. Make a new token at the service, for this one is exposed. Save it in a "
            'VeogenCredentials block and give the block\'s name: credentials="NAME". So in prefect.yaml, too, where a '
            "template or a $ref of a block is filled in while deploying.",
        )
    return credentials


async def _load(name: str, named_by: str) -> VeogenCredentials:
    """Return a saved block; a field that was cleared in its form, which leaves an empty text, is unset."""
    block = await saved_blocks().load(KIND, name, named_by)
    token = block.api_token.get_secret_value() if block.api_token else ""
    filled_in = {"api_token": token.strip(), "base_url": (block.base_url or "").strip()}
    return block.model_copy(update={field: None for field, text in filled_in.items() if not text})


async def _load_default() -> VeogenCredentials:
    try:
        return await _load(DEFAULT_BLOCK, "used where no other token is given")
    except ConfigurationError as error:
        raise ConfigurationError(
            f"There is no API token for this run of a deployment: {error.message}",
            next_step=f"Nothing was bought. Save the block {DEFAULT_BLOCK} (`prefect-veogen setup`, or Prefect's UI: "
            "Blocks → Veogen Credentials), or name another one in the deployment's parameter credentials "
            "(`prefect-veogen deploy --credentials NAME`), or set VEOGEN_API_TOKEN in the worker's environment. Then "
            "run it again.",
        ) from None


def _name_of(text: str, named_by: str) -> str:
    name = text.removeprefix(f"{VeogenCredentials.get_block_type_slug()}/")
    if not is_block_name(name):
        # Not quoted: what isn't a name may well be a token.
        raise ConfigurationError(
            f"{named_by} is not the name of a block: that has only lowercase letters, digits and dashes",
            next_step="Nothing was bought. Give the name of a saved VeogenCredentials block. If it was a token, it "
            "is in plain text where it was written: make a new one at the service, and save that in a block.",
        )
    return name
