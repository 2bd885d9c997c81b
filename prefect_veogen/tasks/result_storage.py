"""Where a Prefect server's flows store their results by default."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_veogen.errors import ConfigurationError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import BlockDocument

_CAN_BE_WRITTEN = "write-path"


async def default_results() -> str | None:
    """Return the block in which the server's flows store their results by default, as Prefect names it. Free.

    None where none was chosen, or where the server has no such setting.
    """
    async with get_client() as client:
        try:
            chosen = (await client.read_server_default_result_storage()).default_result_storage_block_id
            return None if chosen is None else _name(await client.read_block_document(chosen, include_secrets=False))
        except (ObjectNotFound, PrefectHTTPStatusError) as error:
            if isinstance(error, PrefectHTTPStatusError) and error.response.status_code != HTTPStatus.NOT_FOUND:
                raise
            return None


async def store_results_in(name: str) -> str:
    """Make a saved block, such as `s3-bucket/NAME`, the place where the server's flows store their results by default.

    Free, and safe to repeat. Results that were stored before stay where they are, and readable.

    Raises:
        ConfigurationError: there is no such block, it can't store files, or the server has no such setting.
    """
    async with get_client() as client:
        block = await _saved_block(client, name)
        if _CAN_BE_WRITTEN not in (block.block_schema.capabilities if block.block_schema else ()):
            raise ConfigurationError(
                f"{name} can't store results: {_type_name(block)} is not a file system",
                next_step="Nothing was changed. Give a block such as s3-bucket/NAME (of prefect-aws) or "
                "local-file-system/NAME; `prefect block ls` lists what there is.",
            )
        try:
            await client.update_server_default_result_storage(block.id)
        except ObjectNotFound:
            raise _no_such_setting(name) from None
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
                raise
            raise _no_such_setting(name) from error
        return _name(block)


async def _saved_block(client: PrefectClient, name: str) -> BlockDocument:
    kind, slash, rest = name.partition("/")
    if not (kind and slash and rest):
        raise ConfigurationError(
            f"{name!r} is not a valid name of a block",
            next_step="Nothing was changed. Give its type and its name, as `prefect block ls` shows them: "
            "s3-bucket/NAME.",
        )
    try:
        return await client.read_block_document_by_name(rest, kind, include_secrets=False)
    except ObjectNotFound:
        raise ConfigurationError(
            f"The Prefect server has no block {name}",
            next_step="Nothing was changed. Save it first (in the UI: Blocks → Add Block; in Python: `.save(NAME)`), "
            "then run this again; `prefect block ls` lists what there is.",
        ) from None


def _no_such_setting(name: str) -> ConfigurationError:
    return ConfigurationError(
        "This Prefect server has no setting for where results are stored",
        next_step=f"Nothing was changed. Set PREFECT_DEFAULT_RESULT_STORAGE_BLOCK={name} wherever flows run or their "
        "results are read.",
    )


def _name(block: BlockDocument) -> str:
    return f"{block.block_type.slug if block.block_type else '?'}/{block.name}"


def _type_name(block: BlockDocument) -> str:
    return block.block_type.name if block.block_type else "it"
