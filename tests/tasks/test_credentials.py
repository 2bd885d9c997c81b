"""Credentials by the name of a block: where they are taken, how often it is read, what is refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow, flow, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from pydantic import SecretStr

from flows.campaign import campaign
from flows.image_then_animate import image_then_animate
from flows.sweep import sweep
from prefect_veogen import GenerationRequest, VeogenCredentials, generate, submit_generation
from prefect_veogen.cli import main
from prefect_veogen.errors import ConfigurationError, ServiceUnavailable, TryAgainLater
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.campaign import (
    CampaignReport,
    check_campaign,
    make_campaign,
    make_row,
    publish_campaign,
    read_manifest,
)
from prefect_veogen.tasks.credentials import KIND
from prefect_veogen.tasks.maintenance import compare_with_statement, sweep_store
from prefect_veogen.tasks.requests import check_requests
from prefect_veogen.tasks.saved_blocks import Blocks
from tests.support.servers import Reply, Request, relayed, serving

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

TOKEN = "vg-0123456789-secret"
CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")
PROMPTS: dict[str, Any] = {"image_prompt": "a lighthouse at dusk", "motion_prompt": "the beam turns"}

Served = tuple[str, list[str]]


@pytest.fixture
async def studio(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a saved block that leads to the sandbox, while the environment leads nowhere."""
    await saved("studio", sandbox)
    monkeypatch.setenv("VEOGEN_API_TOKEN", "not-this-one")
    monkeypatch.setenv("VEOGEN_BASE_URL", "http://127.0.0.1:9/api/v1")
    return "studio"


async def saved(name: str, sandbox: Sandbox, token: str | None = None) -> str:
    """Save a block which leads to the sandbox, and return the id of its document."""
    block = VeogenCredentials(api_token=SecretStr(token or sandbox.token), base_url=sandbox.base_url)
    return str(await block.asave(name, overwrite=True))


async def run_of_a_deployment(flow: Flow[Any, Any], parameters: dict[str, Any]) -> State[Any]:
    """Run a flow as a worker would, with parameters that the server has checked and recorded."""
    deployment_id = await (await flow.ato_deployment("credentials")).aapply()
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
    running: Any = run_flow(flow, flow_run=run, return_type="state")
    state: State[Any] = await running
    return state


# ---------------------------------------------------------------- by name, everywhere


@pytest.mark.parametrize("form", ["studio", "veogen-credentials/studio"])
async def test_every_task_takes_the_name_of_a_block(studio: str, form: str, sandbox: Sandbox) -> None:
    rows = await read_manifest([{"id": "a", "model": "gpt-4o-image", "prompt": "a cat"}])
    await check_campaign(rows, name="x", credentials=form)
    await check_requests(rows[0].request, credentials=form)
    await make_row(rows[0], name="x", credentials=form)
    asset = await generate(CAT, credentials=form)
    await publish_campaign(CampaignReport.of("x", ()), credentials=form)
    assert await sweep_store(credentials=form) == []
    assert (await compare_with_statement(credentials=form)).adds_up
    assert asset.generation_id == sandbox.generations[0].id
    assert len(sandbox.bill) == 1


@pytest.mark.parametrize(
    ("deployed", "parameters", "bought"),
    [
        (image_then_animate, PROMPTS, 2),
        (campaign, {"manifest": [{"id": "a", "model": "gpt-4o-image", "prompt": "a cat"}]}, 1),
        (sweep, {}, 0),
    ],
    ids=lambda value: value.name if isinstance(value, Flow) else None,
)
@pytest.mark.parametrize("by", ["name", "reference"])
async def test_a_deployment_takes_the_name_of_a_block_and_a_reference_to_one(
    deployed: Flow[Any, Any], parameters: dict[str, Any], bought: int, by: str, studio: str, sandbox: Sandbox
) -> None:
    reference = {"$ref": {"block_document_id": await saved(studio, sandbox)}}
    given = {**parameters, "credentials": studio if by == "name" else reference}
    state = await run_of_a_deployment(deployed, given)
    assert state.is_completed(), state
    assert len(sandbox.bill) == bought
    assert len(sandbox.requests) > 0


async def test_a_block_in_the_environment_comes_before_its_token_and_after_an_argument(
    sandbox: Sandbox, studio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_CREDENTIALS", studio)
    await submit_generation(CAT)
    assert len(sandbox.bill) == 1
    monkeypatch.setenv("VEOGEN_CREDENTIALS", "some-other")
    await submit_generation(CAT, credentials=studio)
    with pytest.raises(ConfigurationError, match=r"no .* block named 'some-other' \(VEOGEN_CREDENTIALS\)"):
        await submit_generation(CAT)


async def test_what_a_named_block_leaves_unset_comes_from_the_environment(sandbox: Sandbox) -> None:
    await VeogenCredentials(base_url=sandbox.base_url).asave("half", overwrite=True)
    await submit_generation(CAT, credentials="half")
    assert len(sandbox.bill) == 1


def test_the_command_line_takes_the_name_of_a_block(
    studio: str, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("store").mkdir()
    for words in ("models", "balance", "plan gpt-4o-image cat", "sweep", "reconcile"):
        assert main([*words.split(), "--credentials", studio]) == 0, capsys.readouterr()
    assert main(["balance", "--credentials", "nobodys"]) == 1
    assert "no VeogenCredentials block named 'nobodys' (--credentials)" in capsys.readouterr().err
    monkeypatch.setenv("VEOGEN_CREDENTIALS", studio)
    assert main(["balance", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remaining_usd"] == "100.0"


def test_the_command_line_does_without_prefect_as_long_as_no_block_is_named(sandbox: Sandbox) -> None:
    story = "import sys; from prefect_veogen.cli import main; main(['balance']); print('prefect' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("cleared", ["", "  "])
async def test_a_field_that_was_cleared_in_the_form_of_a_block_is_unset(
    cleared: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await VeogenCredentials(api_token=SecretStr(cleared), base_url=cleared).asave("cleared", overwrite=True)
    assert (await submit_generation(CAT, credentials="cleared")).id
    assert len(sandbox.bill) == 1
    monkeypatch.delenv("VEOGEN_API_TOKEN")
    with pytest.raises(ConfigurationError, match="There is no API token"):
        await submit_generation(CAT.model_copy(update={"take": 2}), credentials="cleared")


# ---------------------------------------------------------------- how often


async def counted(work: Callable[[], Awaitable[object]]) -> int:
    """Return how often the work reads a block of the Prefect server."""
    upstream, seen = str(PREFECT_API_URL.value()).removesuffix("/api"), list[str]()

    def respond(request: Request) -> Reply:
        seen.append(request.path)
        return relayed(upstream, request)

    with serving(respond) as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        await work()
    return len([path for path in seen if "/block_documents" in path])


# Prefect leaves connections to its server open; here these lead through a relay, whose port is not known beforehand.
async def test_a_campaign_reads_its_block_once(studio: str, sandbox: Sandbox) -> None:
    rows = await read_manifest([{"id": str(n), "model": "gpt-4o-image", "prompt": f"cat {n}"} for n in range(12)])

    @flow
    async def many() -> None:
        await make_campaign(rows, name="x", credentials=studio)

    assert await counted(many) == 1
    assert len(sandbox.bill) == 12


async def test_the_next_run_uses_what_the_block_holds_by_then(studio: str, sandbox: Sandbox) -> None:
    @flow
    async def bought(take: int) -> None:
        await submit_generation(CAT.model_copy(update={"take": take}), credentials=studio)

    await bought(1)
    with Sandbox(speed=100, tiny_media=True) as other:
        await saved(studio, other)
        await bought(2)
        assert (len(sandbox.bill), len(other.bill)) == (1, 1)


async def test_a_run_goes_on_with_its_block_while_the_prefect_server_is_silent(studio: str) -> None:
    blocks = Blocks(trusted_seconds=0)
    up, upstream = True, str(PREFECT_API_URL.value()).removesuffix("/api")

    def respond(request: Request) -> Reply | None:
        return relayed(upstream, request) if up else None

    @flow
    async def long() -> None:
        nonlocal up
        with (
            serving(respond) as url,
            temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        ):
            block = await blocks.load(KIND, studio, "credentials=")
            up = False
            assert await blocks.load(KIND, studio, "credentials=") == block
            with pytest.raises(ServiceUnavailable):
                await blocks.load(KIND, "another", "credentials=")

    await long()


# ---------------------------------------------------------------- refused


async def test_an_unknown_name_says_how_to_make_the_block(studio: str, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigurationError, match=r"no .* block named 'stduio' \(credentials=\)") as caught:
        await submit_generation(CAT, credentials="stduio")
    assert "prefect-veogen setup" in caught.value.next_step
    assert '.save("stduio")' in caught.value.next_step
    assert len(sandbox.requests) == 0


@pytest.mark.parametrize("text", ["", " studio", "12|Xy9-token", "secret/studio", '{"api_token": "vg-1"}'])
async def test_what_is_not_a_name_is_refused_and_not_quoted(sandbox: Sandbox, text: str) -> None:
    with pytest.raises(ConfigurationError, match="credentials= is not the name of a block") as caught:
        await submit_generation(CAT, credentials=text)
    assert not text.strip() or text not in str(caught.value)
    assert len(sandbox.requests) == 0


async def test_a_prefect_server_that_does_not_respond_is_asked_again_and_nothing_bought(
    studio: str, sandbox: Sandbox
) -> None:
    @flow
    async def bought() -> None:
        submit = submit_generation.with_options(retries=0)
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
            await submit(CAT, credentials=studio)

    with pytest.raises(ServiceUnavailable, match=r"The block 'studio'.*127\.0\.0\.1:9") as caught:
        await bought()
    assert isinstance(caught.value, TryAgainLater)
    assert len(sandbox.requests) == 0


@pytest.mark.parametrize(
    "given",
    [{"api_token": TOKEN}, {"api_token": TOKEN, "base_url": "https://x/api", "block_type_slug": "veogen-credentials"}],
)
async def test_a_token_among_a_runs_parameters_is_refused_before_it_is_used(
    given: dict[str, str], sandbox: Sandbox
) -> None:
    state = await run_of_a_deployment(image_then_animate, {**PROMPTS, "credentials": given})
    assert state.is_failed()
    assert "is in plain text in this flow run's parameters" in str(state.message)
    assert "Make a new token at the service" in str(state.message)
    assert TOKEN not in str(state.message)
    assert len(sandbox.requests) == 0


async def test_a_flow_that_is_called_by_a_deployments_flow_is_no_way_around_that(sandbox: Sandbox) -> None:
    @flow(name="around")
    async def around(token: str) -> None:
        await sweep(credentials=VeogenCredentials(api_token=SecretStr(token)))

    state = await run_of_a_deployment(around, {"token": TOKEN})
    assert "is in plain text" in str(state.message)
    assert len(sandbox.requests) == 0


async def test_a_block_handed_over_masked_is_refused_with_the_reason(sandbox: Sandbox) -> None:
    block = VeogenCredentials(api_token=SecretStr(TOKEN))
    await block.asave("masked", overwrite=True)
    for masked in (block, VeogenCredentials(api_token=SecretStr(TOKEN))):
        state = await run_of_a_deployment(sweep, {"credentials": masked})
        assert "consists of asterisks" in str(state.message)
        assert 'credentials="NAME"' in str(state.message)
    assert len(sandbox.requests) == 0


async def test_a_block_in_code_leaks_nothing_and_is_used(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VEOGEN_API_TOKEN")
    block = VeogenCredentials(api_token=SecretStr(sandbox.token), base_url=sandbox.base_url)

    @flow
    async def outer(credentials: VeogenCredentials) -> None:
        await image_then_animate(**PROMPTS, credentials=credentials)

    await outer(block)
    assert len(sandbox.bill) == 2


async def test_a_misspelt_field_of_a_block_is_refused_before_there_is_a_run(sandbox: Sandbox) -> None:
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        await run_of_a_deployment(sweep, {"credentials": {"apitoken": "vg-1"}})


# ---------------------------------------------------------------- nothing but a block on the server


@pytest.fixture
async def tokenless(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A worker's environment without any token, and a server without the block `default`, before and after."""
    monkeypatch.delenv("VEOGEN_API_TOKEN")
    await forget("default")
    yield
    await forget("default")


async def forget(name: str) -> None:
    with contextlib.suppress(ValueError):
        await VeogenCredentials.adelete(name)


async def test_a_deployments_run_without_any_token_uses_the_block_default(tokenless: None, sandbox: Sandbox) -> None:
    await saved("default", sandbox)
    state = await run_of_a_deployment(image_then_animate, PROMPTS)
    assert state.is_completed(), state
    assert len(sandbox.bill) == 2


async def test_without_that_block_it_says_how_to_get_along_and_buys_nothing(tokenless: None, sandbox: Sandbox) -> None:
    state = await run_of_a_deployment(image_then_animate, PROMPTS)
    assert state.is_failed()
    message = str(state.message)
    assert "There is no API token for this run of a deployment" in message
    assert "no VeogenCredentials block named 'default'" in message
    for way in ("`prefect-veogen setup`", "deploy --credentials NAME", "VEOGEN_API_TOKEN in the worker's environment"):
        assert way in message
    assert len(sandbox.requests) == 0


async def test_a_token_of_the_environment_comes_before_the_block_default(
    tokenless: None, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await saved("default", sandbox, token="some-other-account")
    monkeypatch.setenv("VEOGEN_API_TOKEN", sandbox.token)
    state = await run_of_a_deployment(image_then_animate, PROMPTS)
    assert state.is_completed(), state


async def test_by_hand_the_block_default_is_used_only_by_its_name(tokenless: None, sandbox: Sandbox) -> None:
    await saved("default", sandbox)
    with pytest.raises(ConfigurationError, match="There is no API token\nWhat to do: Set VEOGEN_API_TOKEN"):
        await submit_generation(CAT)
    await submit_generation(CAT, credentials="default")
    assert len(sandbox.bill) == 1
