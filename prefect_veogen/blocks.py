"""The credentials block: where the account's token lives in Prefect; and what all blocks of ours have in common."""

from __future__ import annotations

import re
from typing import Any

from prefect.blocks.abstract import CredentialsBlock
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, GetJsonSchemaHandler, HttpUrl, SecretStr, model_validator
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema

from prefect_veogen.api.client import VeogenClient
from prefect_veogen.session import open_client
from prefect_veogen.settings import Settings

# What Prefect adds to a block's fields when it dumps one.
_PREFECTS_OWN = ("block_type_slug", "_block_document_id", "_block_document_name", "_is_anonymous")


def optional_field(description: str) -> Any:
    """Return a block's field that may be left out; the form opens with it to type into, not with "none" chosen."""
    return Field(default=None, description=description, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def is_block_name(text: str) -> bool:
    """Return whether Prefect would take a text for the name of a saved block."""
    return re.fullmatch("[a-z0-9-]+", text) is not None


def without_prefects_own(block: type[Block], values: Any) -> Any:
    """Return the values of a block that forbids other fields, without those that Prefect adds when it dumps one."""
    slug = block.get_block_type_slug()
    if not isinstance(values, dict) or values.get("block_type_slug", slug) != slug:
        return values
    return {name: value for name, value in values.items() if name not in _PREFECTS_OWN}


def allow_prefects_own(core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """Return the JSON schema of such a block, which lets what Prefect adds pass."""
    schema = handler(core_schema)
    handler.resolve_ref_schema(schema)["patternProperties"] = {f"^({'|'.join(_PREFECTS_OWN)})$": {}}
    return schema


class VeogenCredentials(CredentialsBlock):
    """The token of a Veogen Studio account, and where its API is.

    What isn't set comes from `VEOGEN_API_TOKEN` and `VEOGEN_BASE_URL`. Wherever `credentials` are taken, so is the name
    of a saved block. For the parameters of a deployment that is the safe form: a block by value, or by a template in
    prefect.yaml, would show its token to everyone who sees the Prefect server.

    Example:
        Load stored credentials:
        ```python
        from prefect_veogen import VeogenCredentials

        credentials = VeogenCredentials.load("BLOCK_NAME")
        ```
    """

    # All fields are optional: unless others are forbidden, a reference to a block passes as a block, too, and Prefect
    # refuses a parameter that is valid in two ways. Errors must not quote their input, which may be the token.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    _block_type_name = "Veogen Credentials"
    _block_type_slug = "veogen-credentials"
    _logo_url = HttpUrl("https://veogen.studio/favicon.ico")
    _documentation_url = HttpUrl("https://veogenstudio.mintlify.app/authentication")
    _description = "The token of a Veogen Studio account, and where its API is."

    api_token: SecretStr | SkipJsonSchema[None] = optional_field(
        "The bearer token of the account; unset: the environment's VEOGEN_API_TOKEN."
    )
    base_url: str | SkipJsonSchema[None] = optional_field(
        "The base URL of the API; unset: the environment's VEOGEN_BASE_URL."
    )

    def get_client(self) -> VeogenClient:
        """Return the process's client for this account; it shares the rate limit with all tasks."""
        return open_client(self.api_token, self.base_url, Settings())

    @model_validator(mode="before")
    @classmethod
    def _without_prefects_own(cls, values: Any) -> Any:
        return without_prefects_own(cls, values)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # So that a block passed masked reaches its run, which reports why it can't be used.
        return allow_prefects_own(core_schema, handler)
