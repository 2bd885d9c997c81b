"""The credentials block passes Prefect's own suite, and keeps its token to itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import HttpUrl, SecretStr, ValidationError

from prefect_veogen import VeogenCredentials
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.sandbox import Sandbox
from tests.support.servers import Reply, serving

pytestmark = pytest.mark.prefect

TOKEN = "vg-secret-4711"

CHECKS = [name for name in dir(BlockStandardTestSuite) if name.startswith("test_")]


@pytest.fixture
def logo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The logo, served by this machine: there is no network in tests."""
    picture = io.BytesIO()
    Image.new("RGB", (96, 96)).save(picture, "PNG")
    with serving(lambda _: Reply(200, {"Content-Type": "image/png"}, picture.getvalue())) as url:
        monkeypatch.setattr(VeogenCredentials, "_logo_url", HttpUrl(f"{url}/logo.png"))
        yield


@pytest.mark.parametrize("check", CHECKS)
def test_the_block_passes_prefects_suite(check: str, logo: None) -> None:
    getattr(BlockStandardTestSuite, check)(None, VeogenCredentials)


def test_prefects_suite_still_checks_something() -> None:
    assert {"test_has_a_description", "test_has_a_valid_image"} < {*CHECKS}
    assert len(CHECKS) >= 5


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


def test_the_forms_open_with_a_password_to_type_and_an_address() -> None:
    fields = VeogenCredentials.model_json_schema()["properties"]
    token, address = fields["api_token"], fields["base_url"]
    assert (token["type"], token["format"], token["writeOnly"]) == ("string", "password", True)
    assert address["type"] == "string"
    # With a default of none, or none for a choice, Prefect's form shows that instead of a field.
    assert not {"anyOf", "default"} & {*token, *address}


@pytest.mark.parametrize("field", ["apitoken", "$ref", "_logo_url"])
def test_another_field_is_refused_and_its_value_not_quoted(field: str) -> None:
    given: dict[str, Any] = {field: TOKEN}
    with pytest.raises(ValidationError, match="Extra inputs are not permitted") as caught:
        VeogenCredentials(**given)
    assert TOKEN not in str(caught.value)


def test_what_prefect_writes_beside_the_fields_is_no_other_field() -> None:
    block = VeogenCredentials(api_token=SecretStr(TOKEN), base_url="https://x/api")
    dumped: dict[str, Any] = {
        **block.model_dump(),
        "_block_document_id": uuid4(),
        "_block_document_name": "x",
        "_is_anonymous": False,
    }
    assert dumped["block_type_slug"] == "veogen-credentials"
    assert VeogenCredentials(**dumped) == block
    with pytest.raises(ValidationError, match="expected 'veogen-credentials', got 'secret'"):
        VeogenCredentials(**{**dumped, "block_type_slug": "secret"})


@pytest.mark.parametrize("token", ["*", "**********"])
def test_asterisks_are_no_token_and_the_error_says_where_they_come_from(token: str) -> None:
    with pytest.raises(ConfigurationError, match="consists of asterisks") as caught:
        VeogenCredentials(api_token=SecretStr(token)).get_client()
    assert "run_deployment" in caught.value.next_step


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


def test_the_client_needs_no_store(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    client = VeogenCredentials().get_client()
    monkeypatch.setenv("VEOGEN_STORE", "s3-bucket/media")
    assert VeogenCredentials().get_client() is client


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
