"""Where a Prefect server's flows store their results by default."""

from __future__ import annotations

from http import HTTPStatus

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.tasks.block_documents import find_block, name_of


async def read_default_results() -> str | None:
    """Return the block in which the server's flows store their results by default, as Prefect names it. Free.

    None where none was chosen, or where the server has no such setting.
    """
    async with get_client() as client:
        try:
            chosen = (await client.read_server_default_result_storage()).default_result_storage_block_id
            return None if chosen is None else name_of(await client.read_block_document(chosen, include_secrets=False))
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
        block = await find_block(
            client,
            name,
            capability="write-path",
            example="s3-bucket/NAME (of prefect-aws) or local-file-system/NAME",
            refused="can't store results: {kind} is not a file system",
        )
        try:
            await client.update_server_default_result_storage(block.id)
        except ObjectNotFound:
            raise _no_such_setting(name) from None
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
                raise
            raise _no_such_setting(name) from error
        return name_of(block)


def _no_such_setting(name: str) -> ConfigurationError:
    return ConfigurationError(
        "This Prefect server has no setting for where results are stored",
        next_step=f"Nothing was changed. Set PREFECT_DEFAULT_RESULT_STORAGE_BLOCK={name} wherever flows run or their "
        "results are read.",
    )
