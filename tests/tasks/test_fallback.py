"""A fallback: only after a failure that the service reports, checked before anything is bought, and bought once."""

from __future__ import annotations

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen import Asset, GenerationRequest, generate
from prefect_veogen.errors import (
    BudgetExceeded,
    ChangeTheRequest,
    ConfigurationError,
    ContentRejected,
    GenerationFailed,
    InsufficientBalance,
    InvalidRequest,
    StillRunning,
    UnknownSubmission,
    VeogenError,
)
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.fallback import fallbacks_of, generate_with_fallbacks

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

FIRST = GenerationRequest(model="gpt-4o-image", prompt="a lighthouse at dusk")
SECOND = GenerationRequest(model="gpt-image-2", prompt="a lighthouse at dusk")
THIRD = GenerationRequest(model="nano-banana-pro", prompt="a lighthouse")


def asked(sandbox: Sandbox) -> list[str]:
    return [one.model for one in sandbox.generations]


def bought(sandbox: Sandbox) -> list[str]:
    return [purchase.model for purchase in sandbox.bill]


async def test_when_nothing_fails_the_request_alone_is_bought(sandbox: Sandbox, store_url: str) -> None:
    asset = await generate_with_fallbacks(FIRST, SECOND, THIRD)
    assert (asset.model, bought(sandbox)) == (FIRST.model, [FIRST.model])
    assert await generate(FIRST) == asset


async def test_a_fallback_that_makes_clips_in_place_of_pictures_is_refused_before_anything_is_bought(
    sandbox: Sandbox, store_url: str
) -> None:
    clip = GenerationRequest(model="veo-3.1-fast", prompt="a lighthouse at dusk")
    with pytest.raises(InvalidRequest, match="makes a video, and can't stand in for the image of gpt-4o-image"):
        await generate_with_fallbacks(FIRST, clip)
    assert asked(sandbox) == []


@pytest.mark.parametrize("reason", ["The prompt was rejected by the content policy.", "out of ink"])
async def test_what_failed_is_not_charged_and_the_next_one_is_made(
    reason: str, sandbox: Sandbox, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fault("failed", times=2, reason=reason)
    with caplog.at_level(logging.WARNING):
        asset = await generate_with_fallbacks(FIRST, SECOND, THIRD)
    assert asset.model == THIRD.model
    assert asked(sandbox) == [FIRST.model, SECOND.model, THIRD.model]
    assert (bought(sandbox), sandbox.bill.total_usd) == ([THIRD.model], Decimal("0.05"))
    said = [line for line in caplog.messages if "Instead of" in line]
    assert [reason in line for line in said] == [True, True]
    assert (
        "Instead of gpt-4o-image (take 1): a lighthouse at dusk: gpt-image-2 (take 1): a lighthouse at dusk" in said[0]
    )
    assert said[1].endswith("nano-banana-pro (take 1): a lighthouse, for $0.05")


async def test_run_again_after_a_fallback_was_made_it_is_found_and_nothing_is_bought(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    asset = await generate_with_fallbacks(FIRST, SECOND)
    assert await generate_with_fallbacks(FIRST, SECOND, THIRD) == asset
    assert (asked(sandbox), bought(sandbox)) == ([FIRST.model, SECOND.model], [SECOND.model])


async def test_what_was_begun_goes_on_when_the_money_would_not_do_for_what_comes_after_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "0.05")
    asset = await generate_with_fallbacks(FIRST, THIRD)
    assert await generate_with_fallbacks(FIRST, THIRD) == asset
    assert bought(sandbox) == [FIRST.model]


async def test_a_fallback_that_is_still_running_is_resumed_and_the_request_not_bought_again(sandbox: Sandbox) -> None:
    sandbox.fault("failed", model=FIRST.model)
    sandbox.fault("stuck", model=SECOND.model)
    with pytest.raises(StillRunning):
        await generate_with_fallbacks(FIRST, SECOND, THIRD, timeout_seconds=0.3)
    with pytest.raises(StillRunning):
        await generate_with_fallbacks(FIRST, SECOND, THIRD, timeout_seconds=0.3)
    assert asked(sandbox) == [FIRST.model, SECOND.model]


async def test_what_somebody_else_bought_takes_no_requests_place(sandbox: Sandbox) -> None:
    await generate(SECOND)
    assert (await generate_with_fallbacks(FIRST, SECOND)).model == FIRST.model


async def test_what_failed_before_any_fallback_was_begun_is_tried_again_first(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    with pytest.raises(GenerationFailed):
        await generate(FIRST)
    assert (await generate_with_fallbacks(FIRST, SECOND)).model == FIRST.model


async def test_when_all_have_failed_the_last_failure_is_raised_and_the_next_run_begins_afresh(sandbox: Sandbox) -> None:
    sandbox.fault("failed", times=2)
    with pytest.raises(ContentRejected, match="All 2 requests failed, the last so: Generation") as failed:
        await generate_with_fallbacks(FIRST, SECOND)
    assert failed.value.generation_id == sandbox.generations[1].id
    assert bought(sandbox) == []
    assert (await generate_with_fallbacks(FIRST, SECOND)).model == FIRST.model


async def test_without_fallbacks_a_failure_is_what_it_is(sandbox: Sandbox) -> None:
    sandbox.fault("failed", reason="out of ink")
    with pytest.raises(GenerationFailed) as failed:
        await generate_with_fallbacks(FIRST)
    assert "All 1" not in str(failed.value)
    assert asked(sandbox) == [FIRST.model]


@pytest.mark.parametrize(
    ("fault", "error"), [("stuck", StillRunning), ("500-after-charge", UnknownSubmission), ("422", InvalidRequest)]
)
async def test_neither_a_time_out_nor_a_doubt_nor_a_refusal_leads_to_a_fallback(
    fault: str, error: type[VeogenError], sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault(fault)
    sandbox.fault("hidden-from-list", times=None)
    with pytest.raises(error):
        await generate_with_fallbacks(FIRST, SECOND, timeout_seconds=0.5)
    assert SECOND.model not in asked(sandbox)


@pytest.mark.parametrize(
    ("fallback", "options", "error", "said"),
    [
        ({"model": "nope"}, {}, ChangeTheRequest, "nope"),
        ({"model": "gpt-image-2", "resolution": "16K"}, {}, InvalidRequest, "resolution: gpt-image-2 does not offer"),
        ({"model": "nano-banana-pro"}, {"budget_usd": 0.03}, BudgetExceeded, r"nano-banana-pro .* would cost \$0\.05"),
        ({"image_urls": ["/nowhere.png"]}, {}, ConfigurationError, "nowhere.png is a local file"),
    ],
)  # fmt: skip
async def test_a_fallback_that_could_not_be_bought_is_reported_before_anything_is(
    fallback: dict[str, Any], options: dict[str, Any], error: type[Exception], said: str, sandbox: Sandbox
) -> None:
    with pytest.raises(error, match=said):
        await generate_with_fallbacks(FIRST, GenerationRequest(**FIRST.set_fields() | fallback), **options)
    assert sandbox.generations == ()


async def test_a_fallback_that_the_account_could_not_pay_is_reported_before_anything_is_bought(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(balance_usd="0.04") as poor:
        for name, value in poor.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InsufficientBalance, match=r"nano-banana-pro .* would cost \$0\.05 more"):
            await generate_with_fallbacks(FIRST, THIRD)
        assert poor.generations == ()


async def test_a_cap_by_label_holds_for_the_fallbacks_too(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_BUDGETS", '{"project:spring": 0.04}')
    with pytest.raises(BudgetExceeded, match="project:spring"):
        await generate_with_fallbacks(FIRST, THIRD, labels={"project": "spring"})
    assert sandbox.generations == ()


async def test_only_one_of_them_has_to_be_within_the_cap_at_a_time(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    asset: Asset = await generate_with_fallbacks(FIRST, THIRD, budget_usd=0.05)
    assert (asset.model, sandbox.bill.total_usd) == (THIRD.model, Decimal("0.05"))


async def test_anything_but_a_request_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ConfigurationError, match="A GenerationRequest is needed, not a str"):
        await generate_with_fallbacks(FIRST, "gpt-image-2")  # type: ignore[arg-type]
    assert sandbox.generations == ()


def test_fallbacks_are_the_request_with_the_softened_prompt_and_then_other_models_with_it() -> None:
    request = GenerationRequest(
        model="veo-3.1-fast", prompt="a duel", take=3, aspect_ratio="16:9", image_urls=[Path("/a.png")]
    )
    assert fallbacks_of(request) == []
    others = fallbacks_of(request, ["sora-2"])
    assert others == [request.model_copy(update={"model": "sora-2"})]
    softened = fallbacks_of(request, ["sora-2", "grok-video-1"], "a dance")
    assert [(one.model, one.prompt, one.take) for one in softened] == [
        ("veo-3.1-fast", "a dance", 3),
        ("sora-2", "a dance", 3),
        ("grok-video-1", "a dance", 3),
    ]
    assert {(one.aspect_ratio, one.image_urls) for one in softened} == {("16:9", request.image_urls)}
    with pytest.raises(InvalidRequest, match="prompt: must not be empty"):
        fallbacks_of(request, softened_prompt=" ")
