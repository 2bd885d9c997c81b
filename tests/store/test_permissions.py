"""The documented policy is all that a bucket needs; what is missing of it is named before anything is bought."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest

from prefect_veogen.download.deliver import deliver
from prefect_veogen.errors import StoreRefused
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store.s3_writer import PART_BYTES
from tests.support.upkeep import all_receipts, sweep

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = GenerationRequest(model="gpt-4o-image", prompt="A red fox, ink on paper")
PERMISSIONS = [
    action
    for statement in json.loads((DOCS / "s3-policy.json").read_text())["Statement"]
    for action in statement["Action"]
]

SERVER = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(600)
"""


@dataclass
class Guarded:
    """An S3 server which lets a user do only what its policy says."""

    endpoint: str
    admin: dict[str, str]

    def client(self, service: str) -> Any:
        client_of: Any = boto3.client
        return client_of(service, endpoint_url=self.endpoint, region_name="us-east-1", **self.admin)

    def user_with(self, policy: str) -> dict[str, str]:
        """Return the environment of a new user with this policy."""
        iam, name = self.client("iam"), f"user-{uuid.uuid4().hex}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="store", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    # In a process of its own: that requests are checked holds for all servers of a process.
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = next(line.strip() for line in server.stdout if line.strip().isdigit())
            administrator = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
            unchecked = Guarded(f"http://127.0.0.1:{port}", administrator)
            everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
            admin = unchecked.user_with(json.dumps({"Version": "2012-10-17", "Statement": [everything]}))
            text = {"Content-Type": "text/plain"}
            check = urllib.request.Request(f"{unchecked.endpoint}/moto-api/reset-auth", b"0", text, method="POST")
            with urllib.request.urlopen(check, timeout=60):
                pass
            yield Guarded(
                unchecked.endpoint,
                {
                    "aws_access_key_id": admin["AWS_ACCESS_KEY_ID"],
                    "aws_secret_access_key": admin["AWS_SECRET_ACCESS_KEY"],
                },
            )
        finally:
            server.kill()


@pytest.fixture
def bucket_name(guarded: Guarded, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    guarded.client("s3").create_bucket(Bucket=name)
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{name}/some/where")
    return name


def policy_without(*permissions: str, bucket: str, folder: str = "") -> str:
    """Return the documented policy for a bucket, without some of it."""
    text = (DOCS / "s3-policy.json").read_text().replace("MY-BUCKET", bucket).replace("MY-PREFIX", "some/where")
    policy = json.loads(text)
    for statement in policy["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action not in permissions]
    if folder:
        resource = f"arn:aws:s3:::{bucket}/some/where/{folder}/*"
        policy["Statement"].append({"Effect": "Deny", "Action": "s3:PutObject", "Resource": resource})
    return json.dumps(policy)


def work_as(user: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in user.items():
        monkeypatch.setenv(name, value)


async def bought_and_stored(sandbox: Sandbox) -> None:
    session = open_session(caps=(Cap("flow-run/of-this-test", Decimal(5)),))
    generation = (await on_io(buy(session, PICTURE))).generation
    sandbox.advance(600)
    await on_io(deliver(session, await on_io(wait(session, generation))))


async def test_the_documented_policy_is_enough(
    guarded: Guarded, bucket_name: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_as(guarded.user_with(policy_without(bucket=bucket_name)), monkeypatch)
    await bought_and_stored(sandbox)
    session = open_session()
    assert await sweep(session) == []
    assert [receipt.state for receipt in (await all_receipts(session)).readable] == ["stored"]
    for size in (10, PART_BYTES + 1):
        for end in ("commit", "abort"):
            writer = session.store.writer(f"assets/{size}-{end}.mp4", "video/mp4")
            await writer.write(bytes(size))
            await getattr(writer, end)()
    await session.store.put("campaigns/spring/gallery.html", b"<p>", "text/html")


@pytest.mark.parametrize("permission", PERMISSIONS[:-1])
async def test_a_permission_that_is_missing_is_named_and_nothing_is_bought(
    permission: str, guarded: Guarded, bucket_name: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_as(guarded.user_with(policy_without(permission, bucket=bucket_name)), monkeypatch)
    with pytest.raises(StoreRefused, match=f"Allow {permission} on arn:aws:s3:::{bucket_name}"):
        await bought_and_stored(sandbox)
    assert len(sandbox.bill) == 0


async def test_the_permission_that_only_cleaning_up_needs_stops_nothing_and_is_named(
    guarded: Guarded,
    bucket_name: str,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    work_as(guarded.user_with(policy_without(PERMISSIONS[-1], bucket=bucket_name)), monkeypatch)
    await bought_and_stored(sandbox)
    assert await sweep(open_session()) == []
    assert "s3:ListBucketMultipartUploads" in caplog.text


@pytest.mark.parametrize("folder", ["assets", "claims", "rejected"])
async def test_a_folder_denied_by_the_policy_is_named_and_nothing_is_bought(
    folder: str, guarded: Guarded, bucket_name: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_as(guarded.user_with(policy_without(bucket=bucket_name, folder=folder)), monkeypatch)
    with pytest.raises(StoreRefused, match=rf"s3:PutObject on arn:aws:s3:::{bucket_name}/some/where/{folder}/\*"):
        await bought_and_stored(sandbox)
    assert len(sandbox.bill) == 0


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "AKIANOBODYNOBODYNOBO", "InvalidAccessKeyId"),
        ("VEOGEN_STORE", "s3://nobodys-bucket/x", "nobodys-bucket"),
    ],
)
async def test_what_is_wrong_with_the_setup_is_reported_before_anything_is_bought(
    variable: str,
    value: str,
    says: str,
    guarded: Guarded,
    bucket_name: str,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work_as(guarded.user_with(policy_without(bucket=bucket_name)), monkeypatch)
    monkeypatch.setenv(variable, value)
    with pytest.raises(StoreRefused, match=says):
        await bought_and_stored(sandbox)
    assert len(sandbox.bill) == 0


def test_the_page_explains_every_permission_of_the_policy() -> None:
    page = (DOCS / "store.md").read_text()
    assert re.findall(r"^\| `(s3:\w+)`", page, re.MULTILINE) == PERMISSIONS
