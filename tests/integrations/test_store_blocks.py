"""A bucket by a block of prefect-aws: reached with the block's credentials alone, wherever a store is taken."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from prefect import Flow, flow, get_client
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import State
from prefect.flow_engine import run_flow
from prefect_aws import AwsCredentials, MinIOCredentials, S3Bucket
from prefect_aws.client_parameters import AwsClientParameters
from pydantic import SecretStr

from flows.campaign import campaign
from flows.image_then_animate import image_then_animate
from flows.sweep import sweep
from prefect_veogen import GenerationRequest, generate, submit_generation
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.cli import main
from prefect_veogen.errors import ConfigurationError, StoreRefused
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.stores import StoreParameter, read_report, resolve_store
from tests.support.media import png
from tests.support.servers import serving
from tests.support.stores import refusing

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

KEY_ID = "AKIABLOCKBLOCK"
SECRET = "the-secret-of-the-block-4711"
CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")
PROMPTS: dict[str, Any] = {"image_prompt": "a lighthouse at dusk", "motion_prompt": "the beam turns"}


@pytest.fixture
def client(s3_server: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=s3_server, aws_access_key_id="t", aws_secret_access_key="t", region_name="us-east-1"
    )


@pytest.fixture
def block(bucket: str, s3_server: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """A block of a bucket and a folder in it, while the environment leads to no bucket at all."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    return S3Bucket(bucket_name=bucket, bucket_folder="some/folder/", credentials=aws(s3_server))


def aws(endpoint: str, **fields: Any) -> AwsCredentials:
    return AwsCredentials(
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SecretStr(SECRET),
        region_name="eu-central-1",
        aws_client_parameters=AwsClientParameters(endpoint_url=endpoint, config={"retries": {"max_attempts": 1}}),
        **fields,
    )


@pytest.fixture
async def saved(block: S3Bucket) -> str:
    """The name under which the block is saved."""
    await block.credentials.asave("keys", overwrite=True)
    await block.asave("media", overwrite=True)
    return "s3-bucket/media"


def keys(client: Any, bucket: str) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", ())]


async def run_of_a_deployment(deployed: Flow[Any, Any], parameters: dict[str, Any]) -> State[Any]:
    """Run a flow as a worker would, with parameters that the server has checked and recorded."""
    deployment_id = await (await deployed.ato_deployment("stores")).aapply()
    async with get_client() as server:
        run = await server.create_flow_run_from_deployment(deployment_id, parameters=parameters)
    running: Any = run_flow(deployed, flow_run=run, return_type="state")
    state: State[Any] = await running
    return state


# ---------------------------------------------------------------- what it does


async def test_assets_and_receipts_are_in_the_blocks_folder_and_nothing_is_bought_twice(
    saved: str, bucket: str, client: Any, sandbox: Sandbox
) -> None:
    asset = await generate(CAT, store=saved)
    assert asset == await generate(CAT, store=saved)
    assert len(sandbox.bill) == 1
    assert asset.uri.startswith(f"s3://{bucket}/some/folder/assets/")
    stored = keys(client, bucket)
    assert all(key.startswith("some/folder/") for key in stored)
    assert {key.split("/")[2] for key in stored} >= {"assets", "receipts", "claims"}
    bodies = [client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in stored]
    assert not [body for body in bodies if SECRET.encode() in body or KEY_ID.encode() in body]


@pytest.mark.parametrize("by", ["name", "value", "VEOGEN_STORE"])
async def test_a_deployments_run_and_a_flow_called_in_code_take_it(
    by: str, saved: str, block: S3Bucket, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "value":
        made = await image_then_animate(**PROMPTS, store=block)
        assert made.video.uri.startswith(f"s3://{block.bucket_name}/some/folder/")
    else:
        if by == "VEOGEN_STORE":
            monkeypatch.setenv("VEOGEN_STORE", saved)
        state = await run_of_a_deployment(image_then_animate, {**PROMPTS, "store": saved} if by == "name" else PROMPTS)
        assert state.is_completed(), state
    assert len(sandbox.bill) == 2


async def test_its_secret_is_in_no_record_of_the_run(
    block: S3Bucket, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[Any] = []

    @flow(persist_result=True, result_serializer="json")
    async def by_value(store: S3Bucket) -> str:
        made: Any = generate.with_options(name="made")(CAT, store=store, return_state=True)
        states.append(await made)
        await sweep(store=store)
        return "done"

    state = await by_value(block, return_state=True)
    assert state.is_completed()
    assert state.state_details.flow_run_id is not None
    async with get_client() as server:
        run = await server.read_flow_run(state.state_details.flow_run_id)
    shown = f"{run.model_dump_json()} {state!r} {states!r} {caplog.text}"
    assert "**********" in shown
    assert SECRET not in shown


async def test_inputs_in_its_bucket_are_read_and_presigned_with_its_credentials(
    saved: str, bucket: str, client: Any, s3_server: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    client.put_object(Bucket=bucket, Key="elsewhere/in.png", Body=png())
    (tmp_path / "local.png").write_bytes(png("red"))
    inputs = [f"s3://{bucket}/elsewhere/in.png", tmp_path / "local.png"]
    await submit_generation(
        GenerationRequest(model="gpt-4o-image", prompt="like these", image_urls=inputs), store=saved
    )
    links = [urlsplit(link) for link in sandbox.generations[0].parameters["image_urls"]]
    assert [f"{link.scheme}://{link.netloc}" for link in links] == [s3_server] * 2
    assert all(parse_qs(link.query)["X-Amz-Credential"][0].startswith(f"{KEY_ID}/") for link in links)
    assert links[1].path.startswith(f"/{bucket}/some/folder/inputs/")


async def test_a_campaign_reads_its_manifest_from_there_and_leaves_its_results_there(
    saved: str, bucket: str, client: Any, sandbox: Sandbox
) -> None:
    rows = [{"id": name, "model": "gpt-4o-image", "prompt": name} for name in ("cat", "dog")]
    client.put_object(Bucket=bucket, Key="rows.json", Body=json.dumps(rows).encode())
    report = await campaign(f"s3://{bucket}/rows.json", store=saved, name="spring")
    assert [item.id for item in report.items] == ["cat", "dog"]
    assert f"some/folder/{report.results_uri.partition('/some/folder/')[2]}" in keys(client, bucket)
    again = await campaign(f"s3://{bucket}/rows.json", store=saved, name="spring", only="failed")
    assert again.counts == report.counts
    assert len(sandbox.bill) == 2


async def test_the_rows_of_a_report_are_read_from_there_in_another_process(saved: str, sandbox: Sandbox) -> None:
    rows = [{"id": name, "model": "gpt-4o-image", "prompt": name} for name in ("cat", "dog")]
    stored = (await campaign(rows, store=saved, name="spring")).model_dump_json()
    report = await read_report(CampaignReport.model_validate_json(stored), saved)
    assert [item.id for item in report.items] == [record["id"] for record in report.records()] == ["cat", "dog"]
    with pytest.raises(ConfigurationError, match=r"s3://.*results.jsonl is not in the store file:///elsewhere"):
        await read_report(CampaignReport.model_validate_json(stored), "/elsewhere")


async def test_keys_of_minio_and_a_bucket_without_a_folder_do_as_well(
    block: S3Bucket, s3_server: str, sandbox: Sandbox
) -> None:
    minio = MinIOCredentials(
        minio_root_user="root",
        minio_root_password=SecretStr(SECRET),
        region_name="us-east-1",
        aws_client_parameters=AwsClientParameters(endpoint_url=s3_server),
    )
    asset = await generate(CAT, store=S3Bucket(bucket_name=block.bucket_name, credentials=minio))
    assert asset.uri.startswith(f"s3://{block.bucket_name}/assets/")


def test_the_command_line_takes_it(
    saved: str, bucket: str, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(generate(CAT, store=saved))
    assert main(["receipts", "--store", saved, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    monkeypatch.setenv("VEOGEN_STORE", saved)
    assert main(["reconcile"]) == 0
    capsys.readouterr()
    main(["doctor", "--json"])
    store = next(check for check in json.loads(capsys.readouterr().out)["checks"] if check["name"] == "store")
    assert store["ok"], store
    assert f"s3://{bucket}/some/folder/" in store["detail"]
    assert main(["costs", "--store", "s3-bucket/nobodys"]) == 1
    assert "no S3Bucket block named 'nobodys' (--store)" in capsys.readouterr().err


# ---------------------------------------------------------------- which stores are the same


async def test_equal_blocks_are_the_same_store_and_other_keys_another(saved: str, block: S3Bucket) -> None:
    store = await resolve_store(saved)
    assert await resolve_store(saved) is store
    assert await resolve_store(block) is not store  # errors name another block
    assert await resolve_store(block) is await resolve_store(block)
    block.credentials.aws_secret_access_key = SecretStr("another")
    other = await resolve_store(block)
    assert other is await resolve_store(block)
    assert SECRET not in f"{vars(store)} {vars(other)}"


async def test_a_bucket_of_the_same_name_elsewhere_is_another_store(
    saved: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = await resolve_store(saved)
    plain: Any = await resolve_store(f"s3://{bucket}/some/folder")
    assert (store.uri(""), plain is store) == (plain.uri(""), False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    clients = [await asyncio.to_thread(one.client) for one in (store, plain)]
    assert [client.meta.endpoint_url for client in clients] == [s3_server, "http://127.0.0.1:9"]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("s3-bucket/nobodys", r"no S3Bucket block named 'nobodys' \(store=\)"),
        ("s3-bucket/Not a name", "is not the name of a block"),
        ("aws-credentials/keys", "names a block that is not a store"),
        (AwsCredentials(), "A block of type AwsCredentials is not a store"),
        (Secret(value=SecretStr("x")), "A block of type Secret is not a store"),
        (S3Bucket(bucket_name="one", credentials=aws("http://127.0.0.1:9", aws_session_token="a\nb")), "line break"),
        (S3Bucket(bucket_name="no bucket"), "is not a valid store"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_what_is_no_bucket_is_refused_before_anything_is_bought(
    store: StoreParameter, told: str, saved: str, sandbox: Sandbox
) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        await submit_generation(CAT, store=store)
    assert "s3-bucket/NAME" in caught.value.next_step or "block" in caught.value.next_step
    assert len(sandbox.requests) == 0


async def test_a_block_handed_over_masked_is_refused_with_the_reason(block: S3Bucket, sandbox: Sandbox) -> None:
    @flow(name="masked-store")
    async def bought(store: S3Bucket) -> None:
        await submit_generation(CAT, store=store)

    state = await run_of_a_deployment(bought, {"store": json.loads(block.model_dump_json())})
    assert state.is_failed()
    assert "consists of asterisks" in str(state.message)
    assert 'store="s3-bucket/NAME"' in str(state.message)
    assert len(sandbox.requests) == 0


async def test_a_secret_among_a_runs_parameters_is_refused(block: S3Bucket, sandbox: Sandbox) -> None:
    @flow(name="exposed-store")
    async def bought(secret: str) -> None:
        block.credentials.aws_secret_access_key = SecretStr(secret)
        await submit_generation(CAT, store=block)

    state = await run_of_a_deployment(bought, {"secret": SECRET})
    assert "is in plain text in this flow run's parameters" in str(state.message)
    assert SECRET not in str(state.message)
    assert len(sandbox.requests) == 0


async def test_refused_keys_are_the_blocks_in_the_error(saved: str, bucket: str, sandbox: Sandbox) -> None:
    with serving(refusing(403, "InvalidAccessKeyId")) as endpoint:
        await S3Bucket(bucket_name=bucket, credentials=aws(endpoint)).asave("refused", overwrite=True)
        with pytest.raises(StoreRefused, match="refuses the credentials") as caught:
            await submit_generation(CAT, store="s3-bucket/refused")
    assert "the credentials of the block s3-bucket/refused" in caught.value.next_step
    assert len(sandbox.bill) == 0


async def test_a_role_that_can_not_be_assumed_is_refused_and_the_role_is_assumed_again_in_time(
    bucket: str, s3_server: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = {"assume_role_arn": "arn:aws:iam::123456789012:role/media"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server)
    store: Any = await resolve_store(S3Bucket(bucket_name=bucket, credentials=aws(s3_server, **role)))
    await generate(CAT, store=S3Bucket(bucket_name=bucket, credentials=aws(s3_server, **role)))
    assert store.access.lifetime_seconds == 1800
    with serving(refusing(403, "AccessDenied")) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
        with pytest.raises(StoreRefused, match="can't be obtained: AssumeRole"):
            await generate(CAT, store=S3Bucket(bucket_name=bucket, credentials=aws(s3_server, **role)))
    with closing(boto3.client("s3")) as client:
        assert keys(client, bucket)
