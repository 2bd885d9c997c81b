"""A row that could not be made says truly what is paid for it."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal
from pathlib import Path

import boto3
import pytest

from prefect_veogen.campaign.items import ItemStatus
from prefect_veogen.campaign.rows import Row
from prefect_veogen.campaign.run import check_rows, describe_failure, make_assets
from prefect_veogen.errors import InvalidManifest, StoreUnavailable, UnexpectedAnswer, UnknownSubmission, VeogenError
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.media import png

ROW = Row("a", GenerationRequest(model="gpt-4o-image", prompt="a red fox"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnexpectedAnswer("The response is HTML"), ItemStatus.FAILED),
        (StoreUnavailable("The bucket is away"), ItemStatus.FAILED),
        (UnknownSubmission("It may have been bought"), ItemStatus.UNSETTLED),
    ],
)
async def test_only_a_purchase_in_doubt_leaves_a_row_unsettled_without_a_price(
    sandbox: Sandbox, error: VeogenError, status: ItemStatus
) -> None:
    item = await on_io(describe_failure(open_session(), ROW, {}, error))
    assert (item.status, item.price_usd, item.undelivered_usd) == (status, Decimal(0), {})


@pytest.mark.parametrize("kind", [UnexpectedAnswer, StoreUnavailable])
async def test_a_transient_failure_after_the_purchase_leaves_the_row_unsettled_with_its_price(
    sandbox: Sandbox, kind: type[VeogenError]
) -> None:
    session = open_session()
    bought = (await on_io(buy(session, ROW.request))).generation
    item = await on_io(describe_failure(session, ROW, {}, kind("It happened while waiting")))
    assert (item.status, item.price_usd) == (ItemStatus.UNSETTLED, Decimal("0.02"))
    assert item.undelivered_usd == {bought.id: Decimal("0.02")}
    assert "nothing was bought" not in str(item.error).lower()


async def test_inputs_that_cannot_be_read_are_named_with_their_rows_before_anything_is_bought(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    wrong = [
        Row(name, ROW.request.model_copy(update={"image_urls": (f"file:///{name}.png",)})) for name in ("none", "nor")
    ]
    with pytest.raises(InvalidManifest) as caught:
        await check_rows(open_session(), [ROW, *wrong])
    assert [problem.partition(" does")[0] for problem in caught.value.problems] == [
        "row 2 (none): image_urls: item 0: file:///none.png",
        "row 3 (nor): image_urls: item 0: file:///nor.png",
    ]
    assert len(sandbox.bill) == 0


async def test_a_row_whose_input_moves_into_a_bucket_stays_paid(
    sandbox: Sandbox, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    (tmp_path / "fox.png").write_bytes(png())
    with closing(boto3.client("s3")) as client:
        client.put_object(Bucket=bucket, Key="fox.png", Body=png())
    motion = {"model": "veo-3.1-fast", "prompt": "it runs"}
    rows = [
        Row(str(place), GenerationRequest(model="gpt-4o-image", prompt="a fox", image_urls=[place]), motion)
        for place in (tmp_path / "fox.png", f"s3://{bucket}/fox.png")
    ]
    sandbox.advance(600)
    assert await check_rows(open_session(), rows) == Decimal("0.32")
    made = await make_assets(open_session(), rows[0], {})
    assert made.price_usd == Decimal("0.32")
    assert await check_rows(open_session(), rows) == 0
    assert (await make_assets(open_session(), rows[1], {})).assets == made.assets
    assert len(sandbox.bill) == 2
