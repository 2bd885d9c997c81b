"""The credentials block passes Prefect's own suite, and keeps its token to itself."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

from prefect_veogen import VeogenCredentials
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.sandbox import Sandbox

TOKEN = "vg-secret-4711"

# Prefect's suite without its fixture and without the test which fetches the logo from the network.
CHECKS = [name for name in dir(BlockStandardTestSuite) if name.startswith("test_") and "image" not in name]


@pytest.mark.parametrize("check", CHECKS)
def test_the_block_passes_prefects_suite(check: str) -> None:
    getattr(BlockStandardTestSuite, check)(None, VeogenCredentials)


def test_prefects_suite_still_checks_something() -> None:
    assert "test_has_a_description" in CHECKS
    assert len(CHECKS) >= 4


def test_the_slug_under_which_servers_know_the_block_never_changes() -> None:
    assert (VeogenCredentials.get_block_type_slug(), VeogenCredentials.get_block_type_name()) == (
        "veogen-credentials",
        "Veogen Credentials",
    )
    # The checksum of the schema depends on their order: append only.
    assert list(VeogenCredentials.model_fields) == ["api_token", "base_url"]


def test_the_token_is_masked_wherever_the_block_is_shown() -> None:
    block = VeogenCredentials(api_token=SecretStr(TOKEN))
    document = block._to_block_document(name="x", block_schema_id=uuid4(), block_type_id=uuid4())
    shown = (
        f"{block} {block!r} {block.model_dump()} {block.model_dump_json()} {document!r} {document.model_dump_json()}"
    )
    assert TOKEN not in shown
    assert "api_token" in VeogenCredentials._to_block_schema(block_type_id=uuid4()).fields["secret_fields"]


def test_the_client_of_a_block_is_its_accounts(sandbox: Sandbox) -> None:
    block = VeogenCredentials(api_token=SecretStr(sandbox.token), base_url=f"{sandbox.base_url}/")
    client = block.get_client()
    assert client.base_url == sandbox.base_url
    assert block.get_client() is client
    assert VeogenCredentials(api_token=SecretStr("other")).get_client() is not client
    assert asyncio.run(client.get_account()).remaining_usd == 100


def test_what_the_block_leaves_out_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_API_TOKEN", "from-the-environment")
    monkeypatch.setenv("VEOGEN_BASE_URL", "https://environment.example/api/v1")
    same = VeogenCredentials(
        api_token=SecretStr("from-the-environment"), base_url="https://environment.example/api/v1"
    ).get_client()
    assert VeogenCredentials().get_client() is same
    assert VeogenCredentials(api_token=SecretStr(TOKEN)).get_client().base_url == same.base_url
    assert VeogenCredentials(base_url="https://block.example/api").get_client().base_url == "https://block.example/api"


@pytest.mark.parametrize("token", [None, SecretStr(""), SecretStr("  ")])
def test_without_any_token_the_error_says_what_to_set(token: SecretStr | None) -> None:
    with pytest.raises(ConfigurationError, match="VEOGEN_API_TOKEN"):
        VeogenCredentials(api_token=token).get_client()


@pytest.mark.server
def test_a_stored_block_gives_back_its_token_and_the_server_shows_stars(prefect_server: None) -> None:
    async def story() -> None:
        name = "test-blocks"
        await VeogenCredentials(api_token=SecretStr(TOKEN), base_url="https://x/api").save(name, overwrite=True)
        loaded = await VeogenCredentials.load(name)
        assert isinstance(loaded, VeogenCredentials)
        assert loaded.api_token == SecretStr(TOKEN)
        assert loaded.base_url == "https://x/api"
        async with get_client() as server:
            document = await server.read_block_document_by_name(name, "veogen-credentials", include_secrets=False)
        assert set(document.data["api_token"]) == {"*"}

    asyncio.run(story())
