"""The tasks inside Prefect, on a real server: every way to call them, what the UI shows, what is retried."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect import flow, get_client, unmapped
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import LogSort
from prefect.runtime import flow_run
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from pydantic import SecretStr

from prefect_veogen import (
    Asset,
    Generation,
    GenerationRequest,
    VeogenCredentials,
    download_asset,
    generate,
    submit_generation,
    wait_for_generation,
)
from prefect_veogen.errors import (
    BudgetExceeded,
    ConfigurationError,
    ContentRejected,
    InsufficientBalance,
    InvalidRequest,
    MediaRejected,
    ServiceUnavailable,
    StillRunning,
    VeogenError,
)
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.campaign import make_campaign
from tests.support.runs import task_runs

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")
PICTURES = [GenerationRequest(model="gpt-4o-image", prompt=f"picture {number}") for number in range(3)]
PATIENCE_SECONDS = 60.0

submit_at_once = submit_generation.with_options(retry_delay_seconds=0)
wait_at_once = wait_for_generation.with_options(retry_delay_seconds=0)
download_at_once = download_asset.with_options(retry_delay_seconds=0)


def stored(asset: Asset) -> bytes:
    return Path(asset.uri.removeprefix("file://")).read_bytes()


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def log_lines(run_id: UUID, containing: str) -> list[str]:
    """Return what a flow run logged, once a line which contains a text has arrived at the server."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    async with get_client() as client:
        while True:
            lines = [log.message for log in await client.read_logs(wanted, sort=LogSort.TIMESTAMP_ASC)]
            if any(containing in line for line in lines):
                return lines
            assert time.monotonic() < deadline, lines
            await asyncio.sleep(0.1)


# ---------------------------------------------------------------- every way to call them


async def test_an_async_flow_awaits_the_three_in_a_row(sandbox: Sandbox) -> None:
    @flow
    async def three_steps() -> Asset:
        generation = await submit_generation(CAT)
        return await download_asset(await wait_for_generation(generation))

    asset = await three_steps()
    assert (asset.size, asset.price_usd) == (len(stored(asset)), Decimal("0.02"))
    assert len(sandbox.bill) == 1


def test_a_sync_flow_submits_and_chains_futures(sandbox: Sandbox) -> None:
    @flow
    def chained() -> Asset:
        bought = submit_generation.submit(CAT)
        finished = wait_for_generation.submit(bought)  # type: ignore[call-overload]
        asset: Any = download_asset.submit(finished).result()
        return cast("Asset", asset)

    assert stored(chained()).startswith(b"\x89PNG")
    assert len(sandbox.bill) == 1


def test_a_sync_flow_maps_a_list_through_all_three(sandbox: Sandbox, tmp_path: Path) -> None:
    @flow
    def mapped(store: str) -> list[Asset]:
        bought = submit_generation.map(PICTURES, store=unmapped(store))
        finished = wait_for_generation.map(bought, store=unmapped(store))
        futures: Any = download_asset.map(finished, store=unmapped(store))
        return [future.result() for future in futures]

    assets = mapped(str(tmp_path / "elsewhere"))
    assert [asset.uri.count("/elsewhere/assets/gpt-4o-image/") for asset in assets] == [1, 1, 1]
    assert len({asset.uri for asset in assets}) == len(sandbox.bill) == 3


def test_a_sync_flow_maps_and_submits_generate(sandbox: Sandbox) -> None:
    @flow
    def pictures() -> list[Asset]:
        first: Any = generate.submit(PICTURES[0])
        rest: Any = generate.map(PICTURES)
        return [first.result(), *rest.result()]

    assets = pictures()
    assert assets[0] == assets[1]
    assert len(set(assets)) == len(sandbox.bill) == 3


def test_without_any_flow_asyncio_run_is_enough(sandbox: Sandbox) -> None:
    assert stored(asyncio.run(generate(CAT))).startswith(b"\x89PNG")
    assert asyncio.run(submit_generation(CAT)).id == sandbox.bill.purchases[0].id


async def test_many_at_once_in_one_flow_are_one_purchase_each(sandbox: Sandbox) -> None:
    @flow
    async def crowded() -> list[Asset]:
        return await asyncio.gather(*(generate(request) for request in [*PICTURES, *PICTURES]))

    assert len(set(await crowded())) == len(sandbox.bill) == 3


# ---------------------------------------------------------------- what the UI shows


async def test_task_runs_read_submit_wait_download_and_cached_when_nothing_was_paid(sandbox: Sandbox) -> None:
    @flow
    async def one_picture() -> tuple[UUID, Asset]:
        asset = await generate(CAT)
        return UUID(flow_run.id), asset

    (first, asset), (second, again) = await one_picture(), await one_picture()
    names = [f"{step} gpt-4o-image {asset.generation_id:.8}: a cat" for step in ("wait for", "download")]
    names = ["submit gpt-4o-image (take 1): a cat", *names]
    bought, reused = await task_runs(first, 3), await task_runs(second, 3)
    assert [run.name for run in bought] == [run.name for run in reused] == names
    assert [run.state_name for run in bought] == ["Completed"] * 3
    assert [run.state_name for run in reused] == ["Cached"] * 3
    assert [run.state.message for run in reused if run.state] == [
        f"Reused: generation {asset.generation_id} was bought before for $0.02; nothing to pay",
        "Reused: its asset is stored, nothing to wait for",
        f"Reused: already stored at {asset.uri}",
    ]
    assert again == asset
    assert len(sandbox.bill) == 1


def test_a_submitted_generate_is_a_task_run_around_its_three_steps(sandbox: Sandbox) -> None:
    @flow
    def one_picture() -> tuple[UUID, Asset]:
        asset: Any = generate.submit(CAT).result()
        return UUID(flow_run.id), asset

    (run_id, asset), (_, again) = one_picture(), one_picture()
    assert again == asset
    names = [run.name.replace(asset.generation_id[:8], "ID") for run in asyncio.run(task_runs(run_id, 4))]
    steps = ["submit gpt-4o-image (take 1)", "wait for gpt-4o-image ID", "download gpt-4o-image ID"]
    assert names == [f"{name}: a cat" for name in ("generate gpt-4o-image (take 1)", *steps)]


async def test_the_log_says_what_was_bought_for_how_much_and_where_it_is(sandbox: Sandbox) -> None:
    @flow
    async def one_picture() -> tuple[UUID, Asset]:
        return UUID(flow_run.id), await generate(CAT)

    run_id, asset = await one_picture()
    lines = await log_lines(run_id, f"Stored {asset.uri}")
    assert f"Bought generation {asset.generation_id} for $0.02" in lines


# ---------------------------------------------------------------- what is retried


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address at which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/api/v1"


async def attempts(task: Any, *arguments: Any, **options: Any) -> tuple[int, Any]:
    """Return how often a task ran, and its result or error."""

    @flow
    async def attempted() -> tuple[UUID, Any]:
        try:
            return UUID(flow_run.id), await task(*arguments, **options)
        except VeogenError as error:
            return UUID(flow_run.id), error

    run_id, result = await attempted()
    (run,) = await task_runs(run_id)
    return run.run_count, result


async def test_a_refused_connection_is_tried_five_times(sandbox: Sandbox, closed_port: str) -> None:
    elsewhere = VeogenCredentials(base_url=closed_port)
    count, error = await attempts(submit_at_once, CAT, credentials=elsewhere)
    assert (count, type(error)) == (5, ServiceUnavailable)


async def test_a_catalogue_that_fails_once_is_asked_again(sandbox: Sandbox) -> None:
    sandbox.fault("model-500")
    count, generation = await attempts(submit_at_once, CAT)
    assert (count, generation.price_usd, len(sandbox.bill)) == (2, Decimal("0.02"), 1)


@pytest.mark.parametrize(("fault", "count"), [("media-html", 2), ("media-wrong-type", 2), ("media-truncated", 1)])
async def test_broken_media_are_fetched_again_and_never_bought_again(sandbox: Sandbox, fault: str, count: int) -> None:
    generation = await wait_for_generation(await submit_generation(CAT))
    sandbox.fault(fault)
    tried, asset = await attempts(download_at_once, generation)
    assert (tried, stored(asset)[:4], len(sandbox.bill)) == (count, b"\x89PNG", 1)


async def test_media_that_stay_wrong_are_given_up_and_kept_aside(sandbox: Sandbox) -> None:
    generation = await wait_for_generation(await submit_generation(CAT))
    sandbox.fault("media-html", times=None)
    count, error = await attempts(download_at_once, generation)
    assert (count, type(error), len(sandbox.bill)) == (6, MediaRejected, 1)


@pytest.mark.parametrize(
    ("setting", "value"), [("VEOGEN_ALLOW_PRIVATE_MEDIA", "false"), ("VEOGEN_MAX_ASSET_BYTES", "10")]
)
async def test_media_that_only_a_setting_lets_in_are_asked_for_once(
    sandbox: Sandbox, setting: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = await wait_for_generation(await submit_generation(CAT))
    monkeypatch.setenv(setting, value)
    count, error = await attempts(download_at_once, generation)
    assert (count, type(error), error.setting) == (1, MediaRejected, setting)
    assert setting in str(error)
    monkeypatch.delenv(setting)
    count, asset = await attempts(download_at_once, generation)
    assert (count, stored(asset)[:4]) == (1, b"\x89PNG")


@pytest.mark.parametrize(("fault", "kind"), [("422", InvalidRequest), ("402", InsufficientBalance)])
async def test_a_refusal_is_final(sandbox: Sandbox, fault: str, kind: type[VeogenError]) -> None:
    sandbox.fault(fault, times=None)
    count, error = await attempts(submit_at_once, CAT)
    assert (count, type(error), len(sandbox.bill)) == (1, kind, 0)


async def test_a_broken_cap_is_final(sandbox: Sandbox) -> None:
    count, error = await attempts(submit_at_once, CAT, budget_usd=0.01)
    assert (count, type(error), error.cap_usd) == (1, BudgetExceeded, Decimal("0.01"))
    assert len(sandbox.generations) == 0


async def test_a_generation_refused_by_moderation_is_final_and_costs_nothing(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    count, error = await attempts(wait_at_once, await submit_generation(CAT))
    assert (count, type(error), len(sandbox.bill)) == (1, ContentRejected, 0)


async def test_a_wait_that_takes_too_long_names_the_generation_and_the_next_run_attaches_to_it(
    sandbox: Sandbox,
) -> None:
    sandbox.speed = 0
    with pytest.raises(StillRunning) as caught:
        await generate(CAT, timeout_seconds=0.2)
    assert caught.value.generation_id == sandbox.bill.purchases[0].id
    sandbox.speed = 100
    assert (await generate(CAT)).generation_id == caught.value.generation_id
    assert len(sandbox.bill) == 1


# ---------------------------------------------------------------- caps


async def test_budget_usd_caps_one_flow_run_and_the_next_has_its_own(sandbox: Sandbox) -> None:
    @flow
    async def capped(prompt: str) -> list[Any]:
        requests = [request.model_copy(update={"prompt": f"{prompt} {request.prompt}"}) for request in PICTURES]
        results: list[Awaitable[Any]] = [generate(request, budget_usd=Decimal("0.05")) for request in requests]
        return await asyncio.gather(*results, return_exceptions=True)

    for runs, prompt in enumerate(("oil", "ink"), 1):
        results = await capped(prompt)
        assert sorted(type(result).__name__ for result in results) == ["Asset", "Asset", "BudgetExceeded"]
        assert len(sandbox.bill) == 2 * runs


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize("seconds", ["60", Decimal(5), float("nan"), -1, 0], ids=repr)
async def test_a_time_that_is_not_valid_is_refused_before_anything_is_bought(sandbox: Sandbox, seconds: Any) -> None:
    for wait in (generate(CAT, timeout_seconds=seconds), wait_at_once(Generation(id="x"), timeout_seconds=seconds)):
        with pytest.raises(ConfigurationError, match="more than 0 seconds"):
            await wait
    with pytest.raises(ConfigurationError, match="more than 0 seconds"):
        await make_campaign([], name="x", timeout_seconds=seconds)
    assert len(sandbox.bill) == 0


@pytest.mark.parametrize(
    ("call", "needed"),
    [
        (generate, "A GenerationRequest is needed, not a dict"),
        (submit_at_once, "A GenerationRequest is needed, not a dict"),
        (wait_at_once, "A Generation is needed, not a dict"),
        (download_at_once, "A Generation is needed, not a dict"),
        (lambda wrong: submit_at_once(CAT, credentials=wrong), "A VeogenCredentials is needed, not a dict"),
        (lambda wrong: submit_at_once(CAT, store=wrong), "A dict is not a valid store"),
    ],
)
async def test_an_argument_of_another_kind_is_named_and_nothing_bought(
    sandbox: Sandbox, call: Callable[[Any], Awaitable[Any]], needed: str
) -> None:
    with pytest.raises(ConfigurationError, match=needed) as caught:
        await call({"model": "gpt-4o-image", "api_token": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert len(sandbox.bill) == 0


@pytest.mark.parametrize("empty", [{"store": ""}, {"credentials": VeogenCredentials(base_url="")}], ids=str)
async def test_an_empty_argument_is_not_an_unset_one(sandbox: Sandbox, empty: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"store=|base_url="):
        await submit_at_once(CAT, **empty)
    assert len(sandbox.bill) == 0


async def test_a_path_is_a_store_too(sandbox: Sandbox, tmp_path: Path) -> None:
    asset = await generate(CAT, store=tmp_path / "by path")
    assert asset.uri.startswith((tmp_path / "by path" / "assets").as_uri())


# ---------------------------------------------------------------- what passes through Prefect


async def test_requests_and_assets_pass_as_parameters_of_flows(sandbox: Sandbox) -> None:
    @flow
    async def animated(request: GenerationRequest, first_frame: Asset) -> GenerationRequest:
        return request.model_copy(update={"image_urls": (first_frame,)})

    picture = await generate(CAT)
    clip = GenerationRequest(model="veo-3.1-fast", prompt="it purrs", take="2026-11-24", image_urls=[picture])
    wanted = clip.model_copy(update={"image_urls": (picture,)})
    assert await animated(clip, picture) == wanted
    # The UI and the API hand parameters over as JSON.
    from_json = await animated(clip.model_dump(mode="json"), picture.model_dump(mode="json"))  # type: ignore[call-overload]
    assert from_json == wanted
    assert from_json.receipt_key("https://api") == clip.receipt_key("https://api")


def test_errors_keep_their_facts_on_the_way_out_of_a_future(sandbox: Sandbox) -> None:
    @flow
    def refused() -> VeogenError:
        try:
            future: Any = submit_generation.submit(CAT, budget_usd=0.01)
            future.result()
        except VeogenError as error:
            return error
        raise AssertionError("nothing was refused")

    error = refused()
    assert isinstance(error, BudgetExceeded)
    assert (error.wanted_usd, error.cap_usd) == (Decimal("0.02"), Decimal("0.01"))
    assert "What to do:" in str(error)


async def test_the_token_is_in_no_parameter_no_log_line_and_no_result_file(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VEOGEN_API_TOKEN")
    token = "vg-very-secret-token"

    @flow(persist_result=True, log_prints=True)
    async def with_credentials(credentials: VeogenCredentials) -> tuple[str, Asset]:
        print(credentials)
        generation = await submit_generation.with_options(persist_result=True)(CAT, credentials=credentials)
        generation = await wait_for_generation(generation, credentials=credentials)
        return flow_run.id, await download_asset.with_options(persist_result=True)(generation, credentials=credentials)

    with (
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}),
        Sandbox(token=token, speed=100, tiny_media=True) as own,
    ):
        run_id, asset = await with_credentials(VeogenCredentials(api_token=SecretStr(token), base_url=own.base_url))
    runs = await task_runs(UUID(run_id), 3)
    async with get_client() as client:
        recorded: FlowRun = await client.read_flow_run(UUID(run_id))
    lines = await log_lines(UUID(run_id), asset.uri)
    written = everything_below(tmp_path)
    assert b"gpt-4o-image" in written
    assert token not in f"{recorded.parameters} {[run.model_dump_json() for run in runs]} {lines}"
    assert token.encode() not in written
    assert "credentials" in recorded.parameters


async def test_a_stored_block_is_enough_to_buy_with(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VEOGEN_API_TOKEN", "VEOGEN_BASE_URL"):
        monkeypatch.delenv(name)
    block = VeogenCredentials(api_token=SecretStr(sandbox.token), base_url=sandbox.base_url)
    await block.save("studio", overwrite=True)
    loaded = await VeogenCredentials.load("studio")
    assert isinstance(await submit_generation(CAT, credentials=loaded), Generation)
    assert len(sandbox.bill) == 1
