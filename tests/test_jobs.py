"""A generation as a job block: saved, triggered from sync and async code, and bought once."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
from PIL import Image
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import HttpUrl, SecretStr, ValidationError

from prefect_veogen import Asset, GenerationRun, VeogenCredentials, VeogenGeneration
from prefect_veogen.errors import BudgetExceeded, ConfigurationError, GenerationFailed, InvalidRequest, StillRunning
from prefect_veogen.ledger import State
from prefect_veogen.ledger.budgets import Budgets
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.runs import task_runs
from tests.support.servers import Reply, serving
from tests.support.upkeep import all_receipts

pytestmark = pytest.mark.prefect

CHECKS = [name for name in dir(BlockStandardTestSuite) if name.startswith("test_")]


def cat(**fields: Any) -> VeogenGeneration:
    return VeogenGeneration(model="gpt-4o-image", prompt="a cat", **fields)


@pytest.fixture
def logo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The logo, served by this machine: there is no network in tests."""
    picture = io.BytesIO()
    Image.new("RGB", (96, 96)).save(picture, "PNG")
    with serving(lambda _: Reply(200, {"Content-Type": "image/png"}, picture.getvalue())) as url:
        monkeypatch.setattr(VeogenGeneration, "_logo_url", HttpUrl(f"{url}/logo.png"))
        yield


# ---------------------------------------------------------------- the block


@pytest.mark.parametrize("check", CHECKS)
def test_the_block_passes_prefects_suite(check: str, logo: None) -> None:
    getattr(BlockStandardTestSuite, check)(None, VeogenGeneration)


def test_what_servers_know_the_block_by_never_changes() -> None:
    assert VeogenGeneration.get_block_type_slug() == "veogen-generation"
    # The checksum of the schema depends on their order: append only.
    assert list(VeogenGeneration.model_fields) == [
        *("model", "prompt", "aspect_ratio", "resolution", "duration", "mode", "style"),
        *("image_urls", "video_urls", "audio_urls", "watermark", "private", "take"),
        *("labels", "budget_usd", "timeout_seconds", "credentials", "store"),
    ]


def test_the_form_asks_for_two_fields_and_opens_the_others_empty() -> None:
    schema = VeogenGeneration.model_json_schema()
    assert schema["required"] == ["model", "prompt"]
    for name, field in schema["properties"].items():
        assert name == "take" or not {"anyOf", "default"} & {*field}, name
    assert VeogenGeneration._to_block_schema().fields["secret_fields"] == []


def test_a_misspelt_field_is_refused_for_something_else_would_be_bought() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        cat(aspect_ration="16:9")


SECRET = "sk-4711-secret"
AWS = "X-Amz-Credential=key&X-Amz-Signature"


@pytest.mark.parametrize("field", ["api_token", "credential", "duration"])
def test_what_is_refused_is_not_quoted_for_it_may_be_a_token(field: str) -> None:
    with pytest.raises(ValidationError, match=field) as caught:
        cat(**{field: SECRET})
    assert SECRET not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("token", ["vg_secret", "Secret", "a secret", "other-block/name", "jobs\n", ""])
def test_what_can_not_be_a_name_of_credentials_is_refused_for_it_would_be_stored(token: str) -> None:
    with pytest.raises(ValidationError, match="must be the name of a saved VeogenCredentials block") as caught:
        cat(credentials=token)
    assert not token or f"{token!r}" not in str(caught.value)


@pytest.mark.parametrize("name", [None, "jobs", "account-2", "veogen-credentials/jobs"])
def test_a_name_of_credentials_is_kept_as_it_is(name: str | None) -> None:
    assert cat(credentials=name).credentials == name


@pytest.mark.parametrize("field", ["image_urls", "video_urls", "audio_urls"])
@pytest.mark.parametrize(
    "link",
    [
        f"https://bucket.s3.amazonaws.com/a.png?{AWS}=secret",
        f"https://storage.googleapis.com/b/a.png?{AWS.replace('Amz', 'Goog')}=secret",
        "https://x.blob.core.windows.net/b/a.png?sv=1&sr=b&se=2&sig=secret",
        "https://user:secret@example.com/a.png",
    ],
)
def test_a_link_with_a_secret_is_refused_for_it_would_be_stored(field: str, link: str) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\n.*at position 1 has a signature.*s3://bucket/key") as caught:
        cat(**{field: ["s3://bucket/a.png", link]})
    assert "secret" not in str(caught.value)


def test_links_without_secrets_are_kept_as_they_are() -> None:
    links = ["https://example.com/a@2x.png?width=4&sig=3", "s3://bucket/key", "/data/a.png"]
    assert cat(image_urls=links).image_urls == links


@pytest.mark.slow
def test_prefect_learns_both_blocks_by_the_entry_point_without_the_tasks() -> None:
    (found,) = entry_points(group="prefect.collections", name="prefect_veogen")
    story = f"""
import sys, {found.value}
from prefect.blocks.core import Block
from prefect.utilities.dispatch import get_registry_for_type
print(sorted(name for name in get_registry_for_type(Block) if "veogen" in name), "prefect_veogen.tasks" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout == "['veogen-credentials', 'veogen-generation'] False\n"


# ---------------------------------------------------------------- triggered

server = pytest.mark.server


def made(block: VeogenGeneration) -> Asset:
    """Trigger, wait and fetch as sync code does."""
    run: Any = block.trigger()
    run.wait_for_completion()
    asset: Asset = run.fetch_result()
    return asset


async def amade(block: VeogenGeneration) -> Asset:
    """Trigger, wait and fetch as async code does."""
    triggered: Any = block.trigger()
    run = await triggered
    await run.wait_for_completion()
    asset: Asset = await run.fetch_result()
    return asset


@flow
def sync_flow(block: VeogenGeneration) -> Asset:
    return made(block)


@flow
async def async_flow(block: VeogenGeneration) -> Asset:
    return await amade(block)


@flow
def flow_with_a_sync_task(block: VeogenGeneration) -> Asset:
    return task(made)(block)


@flow
async def flow_with_an_async_task(block: VeogenGeneration) -> Asset:
    return await task(amade)(block)


@server
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("way", ["sync", "async", "explicit"])
def test_it_is_bought_once_wherever_it_is_triggered(way: str, sandbox: Sandbox) -> None:
    block = cat()
    match way:
        case "sync":
            assets = [made(block), sync_flow(block), flow_with_a_sync_task(block)]
        case "async":
            assets = [asyncio.run(one(block)) for one in (amade, async_flow, flow_with_an_async_task)]
        case _:

            async def story() -> Asset:
                run = await block.atrigger()
                await run.await_for_completion()
                return await run.afetch_result()

            assets = [asyncio.run(story()), made(block)]
    assert len({asset.uri for asset in assets}) == 1
    assert len(sandbox.bill) == 1
    assert assets[0].generation_id == sandbox.generations[0].id


@server
@pytest.mark.usefixtures("prefect_server")
async def test_in_a_flow_its_steps_are_the_flows_own(sandbox: Sandbox) -> None:
    state: Any = await async_flow(cat(), return_state=True)
    runs = await task_runs(state.state_details.flow_run_id, 3)
    assert [run.name.partition(" ")[0] for run in runs] == ["submit", "wait", "download"]


@server
@pytest.mark.usefixtures("prefect_server")
async def test_a_saved_one_keeps_its_request_and_takes_its_account_by_name(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    await VeogenCredentials(api_token=SecretStr(sandbox.token), base_url=sandbox.base_url).asave("jobs", overwrite=True)
    monkeypatch.setenv("VEOGEN_API_TOKEN", "not-this-one")
    monkeypatch.setenv("VEOGEN_BASE_URL", "http://127.0.0.1:9/api/v1")
    store = str(tmp_path / "its-own")
    block = cat(aspect_ratio="1:1", take="spring", labels={"project": "x"}, credentials="jobs", store=store)
    await block.asave("cat", overwrite=True)
    loaded: VeogenGeneration = await VeogenGeneration.aload("cat")
    assert loaded.model_dump() == block.model_dump()
    asset = await amade(loaded)
    assert asset.uri.startswith(f"file://{store}/")
    assert sandbox.generations[0].parameters["aspect_ratio"] == "1:1"
    async with get_client() as client:
        document = await client.read_block_document_by_name("cat", "veogen-generation", include_secrets=True)
    assert sandbox.token not in json.dumps(document.data)


@server
@pytest.mark.usefixtures("prefect_server")
async def test_fields_can_differ_from_call_to_call(sandbox: Sandbox) -> None:
    block = cat()
    runs = [await block.atrigger(), await block.atrigger(take=2), await block.atrigger(prompt="a dog")]
    assert len({run.id for run in runs}) == 3
    assert (await block.atrigger(take=2)).id == runs[1].id
    with pytest.raises(InvalidRequest, match="aspect_ration"):
        await block.atrigger(aspect_ration="16:9")
    assert len(sandbox.bill) == 3


@server
@pytest.mark.usefixtures("prefect_server")
async def test_a_run_is_found_again_by_its_id_and_fetched_without_waiting_first(sandbox: Sandbox) -> None:
    run = await cat().atrigger()
    again = GenerationRun.attach(run.id)
    asset = await again.afetch_result()
    assert asset.generation_id == run.id == again.id
    assert (await run.afetch_result()).sha256 == asset.sha256
    assert len(sandbox.bill) == 1


@server
@pytest.mark.usefixtures("prefect_server")
async def test_what_becomes_of_a_run_found_again_by_its_id_is_noted_in_its_receipt(sandbox: Sandbox) -> None:
    run = await cat().atrigger()
    asset = await GenerationRun.attach(run.id).afetch_result()
    assert "/a-cat-" in asset.uri
    sandbox.fault("failed")
    failing = await cat(take=2, budget_usd=1).atrigger()
    with pytest.raises(GenerationFailed):
        await GenerationRun.attach(failing.id).await_for_completion()
    session = open_session()
    receipts = {receipt.take: receipt for receipt in (await all_receipts(session)).readable}
    assert {take: receipt.state for take, receipt in receipts.items()} == {"1": State.STORED, "2": State.FAILED}
    assert receipts["1"].asset == asset
    account = await on_io(Budgets(session.store).read_account(receipts["2"].budgets[0]))
    assert account.committed_usd == 0


@server
@pytest.mark.usefixtures("prefect_server")
async def test_what_it_refuses_and_gives_up_is_as_with_the_tasks(sandbox: Sandbox) -> None:
    with pytest.raises(BudgetExceeded):
        await cat(budget_usd=0.001).atrigger()
    with pytest.raises(ConfigurationError, match="needs a flow run"):
        await cat(take="{scheduled:%Y-%m-%d}").atrigger()
    assert len(sandbox.bill) == 0
    run = await cat(timeout_seconds=0.001).atrigger()
    with pytest.raises(StillRunning) as caught:
        await run.await_for_completion()
    assert run.id in str(caught.value)
