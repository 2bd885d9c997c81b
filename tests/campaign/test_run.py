"""A row that could not be made says truly what is paid for it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from prefect_veogen.campaign.report import ItemStatus
from prefect_veogen.campaign.rows import Row
from prefect_veogen.campaign.run import item_of_failure
from prefect_veogen.errors import StoreUnavailable, UnexpectedAnswer, UnknownSubmission, VeogenError
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session

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
    item = await on_io(item_of_failure(open_session(), ROW, {}, error))
    assert (item.status, item.price_usd, item.undelivered_usd) == (status, Decimal(0), {})


@pytest.mark.parametrize("kind", [UnexpectedAnswer, StoreUnavailable])
async def test_a_transient_failure_after_the_purchase_leaves_the_row_unsettled_with_its_price(
    sandbox: Sandbox, kind: type[VeogenError]
) -> None:
    session = open_session()
    bought = (await on_io(buy(session, ROW.request))).generation
    item = await on_io(item_of_failure(session, ROW, {}, kind("It happened while waiting")))
    assert (item.status, item.price_usd) == (ItemStatus.UNSETTLED, Decimal("0.02"))
    assert item.undelivered_usd == {bought.id: Decimal("0.02")}
    assert "nothing was bought" not in str(item.error).lower()
