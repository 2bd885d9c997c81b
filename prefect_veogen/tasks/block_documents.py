"""Blocks of a Prefect server by the names that Prefect gives them: `slack-webhook/NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.exceptions import ObjectNotFound

from prefect_veogen.errors import ConfigurationError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import BlockDocument


async def find_block(client: PrefectClient, name: str, *, capability: str, example: str, refused: str) -> BlockDocument:
    """Return a saved block which is able to do what it is wanted for, without its secrets.

    Raises:
        ConfigurationError: the name is none, there is no such block, or it lacks the capability.
    """
    kind, slash, rest = name.partition("/")
    if not (kind and slash and rest):
        raise ConfigurationError(
            f"{name!r} is not a valid name of a block",
            next_step="Nothing was changed. Give its type and its name, as `prefect block ls` shows them, such as "
            f"{example}.",
        )
    try:
        block = await client.read_block_document_by_name(rest, kind, include_secrets=False)
    except ObjectNotFound:
        raise ConfigurationError(
            f"The Prefect server has no block {name}",
            next_step="Nothing was changed. Save it first (in the UI: Blocks → Add Block; in Python: `.save(NAME)`), "
            "then run this again; `prefect block ls` lists what there is.",
        ) from None
    if capability not in (block.block_schema.capabilities if block.block_schema else ()):
        kind = block.block_type.name if block.block_type else "it"
        raise ConfigurationError(
            f"{name} {refused.format(kind=kind)}",
            next_step=f"Nothing was changed. Give a block such as {example}; `prefect block ls` lists what there is.",
        )
    return block


def name_of(block: BlockDocument) -> str:
    """Return a block's name with its type, as Prefect writes it."""
    return f"{block.block_type.slug if block.block_type else '?'}/{block.name}"
