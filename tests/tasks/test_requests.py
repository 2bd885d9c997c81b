"""The check for flows of your own: what can't be had stops a flow before its first purchase."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from prefect_veogen import Asset, GenerationRequest, generate
from prefect_veogen.errors import (
    BudgetExceeded,
    ChangeTheRequest,
    ConfigurationError,
    GenerationFailed,
    InsufficientBalance,
    UnknownSubmission,
)
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.requests import check_requests, generate_all, placeholder_of, plan_requests
from tests.support.media import png

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

PICTURE = GenerationRequest(model="gpt-4o-image", prompt="a lighthouse at dusk")


def clip_of(image: Asset, model: str = "veo-3.1-fast") -> GenerationRequest:
    return GenerationRequest(model=model, prompt="the beam turns", image_urls=[image])


async def test_one_that_cannot_be_had_among_many_is_refused_before_anything_is_bought(sandbox: Sandbox) -> None:
    await check_requests(PICTURE, clip_of(placeholder_of(PICTURE)))
    with pytest.raises(ChangeTheRequest, match="nope"):
        await check_requests(PICTURE, clip_of(placeholder_of(PICTURE), model="nope"))
    assert sandbox.bill.purchases == ()


async def test_requests_whose_money_would_run_out_half_way_are_refused_before_anything_is_bought(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = PICTURE, clip_of(placeholder_of(PICTURE))
    await check_requests(*both, budget_usd=0.32)
    with pytest.raises(BudgetExceeded, match=r"That would cost \$0.32 more"):
        await check_requests(*both, budget_usd=0.31)
    await check_requests(PICTURE, later=both[1:], budget_usd=0.02)
    with pytest.raises(ChangeTheRequest, match="nope"):
        await check_requests(PICTURE, later=[clip_of(placeholder_of(PICTURE), model="nope")])
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.1")
    with pytest.raises(BudgetExceeded):
        await check_requests(*both)
    assert sandbox.bill.purchases == ()


async def test_a_purchase_in_doubt_that_emptied_the_account_is_adopted_and_not_refused_for_want_of_money(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(speed=100, tiny_media=True, requests_per_minute=None, balance_usd="0.32") as poor:
        monkeypatch.setenv("VEOGEN_BASE_URL", poor.base_url)
        clip = clip_of(await generate(PICTURE))
        poor.fault("lost-answer-after-charge")
        poor.fault("hidden-from-list", times=None)
        with pytest.raises(UnknownSubmission):
            await generate(clip)
        assert poor.balance_usd == 0
        plan = await plan_requests(PICTURE, clip)
        assert [(item.already_bought, item.in_doubt) for item in plan.items] == [(True, False), (False, True)]
        assert (plan.total_usd, plan.in_doubt_usd, plan.due_usd) == (Decimal("0.30"), Decimal("0.30"), 0)
        assert plan.is_affordable
        await check_requests(PICTURE, clip_of(placeholder_of(PICTURE)))
        with pytest.raises(InsufficientBalance, match=r"would cost \$0.02 more, and the account holds \$0"):
            await check_requests(PICTURE, clip, PICTURE.model_copy(update={"take": 2}))
        poor.clear_faults()
        poor.advance(60)
        await generate(clip)
        assert poor.bill.total_usd == Decimal("0.32")


async def test_what_was_bought_is_had_whatever_the_catalogue_says_by_now(sandbox: Sandbox) -> None:
    await generate(clip_of(await generate(PICTURE)))
    before = len(sandbox.requests)
    await check_requests(PICTURE, clip_of(placeholder_of(PICTURE)))
    assert len(sandbox.requests) == before


async def test_anything_but_a_request_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ConfigurationError, match="A GenerationRequest is needed, not a dict"):
        await check_requests(PICTURE, {"model": "gpt-4o-image"})  # type: ignore[call-overload]


async def test_inputs_in_buckets_and_files_are_read_before_anything_is_bought(
    sandbox: Sandbox, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    (tmp_path / "fox.png").write_bytes(png())
    fox = GenerationRequest(model="gpt-4o-image", prompt="in ink", image_urls=[Path("fox.png")])
    await check_requests(fox, clip_of(placeholder_of(fox)))
    await generate(fox)
    before = len(sandbox.requests)
    await check_requests(fox)
    assert len(sandbox.requests) == before, "what was bought is not validated again"
    (tmp_path / "fox.png").unlink()
    with pytest.raises(ChangeTheRequest, match=r"image_urls: item 0: .*fox\.png does not exist on this machine"):
        await check_requests(fox)


async def test_a_plan_says_what_is_still_to_pay_and_whether_the_money_would_do(sandbox: Sandbox) -> None:
    others = [PICTURE.model_copy(update={"take": take}) for take in (2, 3)]
    plan = await plan_requests(PICTURE, *others, budget_usd=0.04)
    assert (plan.total_usd, plan.is_affordable) == (Decimal("0.06"), False)
    await generate(PICTURE)
    plan = await plan_requests(PICTURE, *others, budget_usd=0.04)
    assert ([item.usd for item in plan.items], plan.is_affordable) == ([0, Decimal("0.02"), Decimal("0.02")], True)
    wrong = await plan_requests(PICTURE.model_copy(update={"model": "nope"}))
    assert ["nope" in str(item.problem) for item in wrong.problems] == [True]
    assert len(sandbox.bill) == 1


async def test_the_failure_of_one_of_many_is_raised_when_the_others_are_made(sandbox: Sandbox) -> None:
    sandbox.fault("failed", times=1)
    requests = [PICTURE.model_copy(update={"take": take}) for take in (1, 2, 3)]
    with pytest.raises(GenerationFailed):
        await generate_all(*requests)
    assert len(await generate_all(*requests)) == 3
    assert len(sandbox.bill) == 3
    assert len(sandbox.generations) == 4, "only the one that failed was asked for again"
    assert await generate_all() == ()
