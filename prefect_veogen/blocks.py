"""The credentials block: where the account's token lives in Prefect."""

from __future__ import annotations

from prefect.blocks.abstract import CredentialsBlock
from pydantic import Field, HttpUrl, SecretStr

from prefect_veogen.client import VeogenClient
from prefect_veogen.session import open_session


class VeogenCredentials(CredentialsBlock):
    """The token of a Veogen Studio account, and where its API is.

    What isn't set comes from `VEOGEN_API_TOKEN` and `VEOGEN_BASE_URL`.

    Example:
        Load stored credentials:
        ```python
        from prefect_veogen import VeogenCredentials

        credentials = VeogenCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Veogen Credentials"
    _block_type_slug = "veogen-credentials"
    _logo_url = HttpUrl("https://veogen.studio/favicon.ico")
    _documentation_url = HttpUrl("https://veogenstudio.mintlify.app/authentication")
    _description = "The token of a Veogen Studio account, and where its API is."

    api_token: SecretStr | None = Field(
        default=None, description="The bearer token of the account; unset: the environment's VEOGEN_API_TOKEN."
    )
    base_url: str | None = Field(
        default=None, description="The base URL of the API; unset: the environment's VEOGEN_BASE_URL."
    )

    def get_client(self) -> VeogenClient:
        """Return the process's client for this account; it shares the rate limit with all tasks."""
        return open_session(token=self.api_token, base_url=self.base_url).client
