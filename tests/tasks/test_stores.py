"""A block as the store where prefect-aws isn't installed: refused with what to do, and nothing is bought."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled
from pydantic import SecretStr

from flows.campaign import campaign
from flows.generate_media import generate_media
from flows.sweep import sweep
from prefect_veogen import GenerationRequest, generate, submit_generation
from prefect_veogen.cli import main
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.tasks.maintenance import report_unfinished, sweep_store
from prefect_veogen.tasks.stores import resolve_store, store_name

pytestmark = [
    pytest.mark.server,
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.skipif(importlib.util.find_spec("prefect_aws") is not None, reason="prefect-aws is installed"),
]

CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")
MISSING = r"The store is a block of prefect-aws \(store=\), which can't be imported here"


async def test_every_door_refuses_it_and_says_what_to_install(sandbox: Sandbox, tmp_path: Path) -> None:
    name = "s3-bucket/media"
    calls = (
        lambda: generate(CAT, store=name),
        lambda: sweep_store(store=name),
        lambda: sweep(store=name),
        lambda: generate_media("a cat", store=name),
        lambda: campaign([{"id": "a", "model": "gpt-4o-image", "prompt": "a cat"}], store=name),
        lambda: campaign("s3://bucket/rows.csv", store=name),
    )
    for call in calls:
        with pytest.raises(ConfigurationError, match=MISSING) as caught:
            await call()
        assert "pip install prefect-aws" in caught.value.next_step
    assert len(sandbox.requests) == 0
    assert not (tmp_path / "s3-bucket").exists()


async def test_a_name_in_the_environment_does_as_well(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_STORE", "s3-bucket/media")
    with pytest.raises(ConfigurationError, match=r"prefect-aws \(VEOGEN_STORE\)"):
        await submit_generation(CAT)
    assert len(sandbox.requests) == 0


@pytest.mark.parametrize("words", ["receipts", "costs", "sweep", "reconcile", "balance"])
def test_a_command_refuses_it_too(words: str, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    if words != "balance":
        assert main([words, "--store", "s3-bucket/media"]) == 1
        assert "block of prefect-aws (--store), which can't be imported here" in capsys.readouterr().err
    else:
        assert main([words]) == 0


def test_doctor_says_so_of_the_store_and_goes_on_with_the_rest(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--store", "s3-bucket/media", "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "block of prefect-aws" in checks["store"]["detail"]
    assert "pip install prefect-aws" in checks["store"]["advice"]
    assert checks["service"]["ok"]


@pytest.mark.parametrize("kind", ["aws-credentials", "minio-credentials", "local-file-system", "gcs-bucket"])
async def test_the_name_of_another_type_of_block_is_no_folder(kind: str, sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"'{kind}/media' .* names a block that is not a store") as caught:
        await submit_generation(CAT, store=f"{kind}/media")
    assert 'store="s3-bucket/NAME"' in caught.value.next_step
    assert not (tmp_path / kind).exists()


async def test_a_folder_that_is_called_like_a_block_is_named_by_its_path(sandbox: Sandbox, tmp_path: Path) -> None:
    for store in ("./s3-bucket/media", Path("s3-bucket/media")):
        asset = await generate(CAT, store=store)
        assert asset.uri.startswith((tmp_path / "s3-bucket/media").as_uri())
    assert len(sandbox.bill) == 1


async def test_a_block_that_is_no_bucket_is_refused_by_its_type(sandbox: Sandbox) -> None:
    with pytest.raises(ConfigurationError, match="A block of type Secret is not a store"):
        await submit_generation(CAT, store=Secret(value=SecretStr("x")))
    assert len(sandbox.requests) == 0


def test_below_prefect_a_name_of_a_block_opens_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="names a block of Prefect's, which was not loaded"):
        open_session(store="s3-bucket/media")
    assert not (tmp_path / "s3-bucket").exists()


async def test_the_name_of_a_run_shows_no_block() -> None:
    assert store_name(Secret(value=SecretStr("hidden"))) == "a Secret"
    assert (store_name(None), store_name(Path("/x")), store_name("s3://b/p")) == (
        "the default store",
        "/x",
        "s3://b/p",
    )


async def test_a_stopped_run_whose_store_was_a_block_by_value_says_why_nothing_is_reported(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    run = FlowRun(flow_id=uuid4(), parameters={"store": {"bucket_name": "b", "credentials": {}}})
    await report_unfinished(sweep, run, Cancelled())
    assert "Can't report what this run left running: A dict is not a valid store" in caplog.text


async def test_a_location_is_opened_as_it_is(sandbox: Sandbox, tmp_path: Path) -> None:
    assert (await resolve_store(None)).uri("x") == (tmp_path / "store/x").as_uri()
    assert (await resolve_store("s3://bucket/media/")).uri("x") == "s3://bucket/media/x"
