"""A plan: what things would cost now and whether that can be paid, without buying anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen import GenerationRequest
from prefect_veogen.errors import (
    AuthenticationError,
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    ServiceUnavailable,
)
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import Certainty
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.plan import Plan
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.buyers import bought_and_stored
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.upkeep import make_plan

pytestmark = pytest.mark.usefixtures("sandbox")

CAP = Cap("autumn", Decimal("0.10"))


def picture(prompt: str = "a lighthouse", **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "gpt-4o-image", "prompt": prompt, **fields})


async def planned(*requests: GenerationRequest, caps: tuple[Cap, ...] = ()) -> Plan:
    return await make_plan(open_session(caps=caps), requests)


@pytest.fixture
def nameless_price(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The service's model objects don't say what they cost."""

    def respond(request: Request) -> Reply:
        reply = relayed(sandbox.base_url, request)
        if "/models/" not in request.path:
            return reply
        document = json.loads(reply.body)
        del document["data"]["price_usd"]
        return replace(reply, body=json.dumps(document).encode())

    with serving(respond) as origin:
        monkeypatch.setenv("VEOGEN_BASE_URL", f"{origin}/api/v1")
        yield


@pytest.mark.parametrize(
    ("fields", "usd", "certainty"),
    [
        ({"model": "gpt-4o-image"}, "0.02", Certainty.EXACT),
        ({"model": "gpt-image-2", "resolution": "4K"}, "0.048", Certainty.EXACT),
        ({"model": "veo-3.1-fast", "resolution": "4k"}, "0.90", Certainty.EXACT),
        ({"model": "grok-video-1", "duration": 7}, "0.21", Certainty.EXACT),
        ({"model": "grok-video-1"}, "0.90", Certainty.UPPER_BOUND),
        (
            {"model": "seedance-2.0", "duration": 4, "video_urls": ["https://a.b/c.mp4"]},
            "0.5284",
            Certainty.UPPER_BOUND,
        ),
    ],
)
async def test_a_price_says_how_sure_it_is(fields: dict[str, Any], usd: str, certainty: Certainty) -> None:
    plan = await planned(picture(**fields))
    assert (plan.total_usd, plan.certainty) == (Decimal(usd), certainty)
    assert plan.items[0].certainty is certainty


async def test_a_price_the_service_does_not_name_is_unknown_and_never_zero(nameless_price: None) -> None:
    plan = await planned(picture(), caps=(CAP,))
    assert (plan.items[0].usd, plan.certainty, plan.problems) == (None, Certainty.UNPRICED, ())


async def test_a_total_is_as_sure_as_its_least_sure_item() -> None:
    plan = await planned(picture(), picture(model="grok-video-1"), picture(model="gone"))
    assert (plan.total_usd, plan.certainty) == (Decimal("0.92"), Certainty.UPPER_BOUND)


async def test_what_was_bought_before_costs_nothing_more() -> None:
    await on_io(bought_and_stored(picture("old")))
    plan = await planned(picture("old"), picture("new"), picture("old", take=2))
    assert [(item.usd, item.already_bought) for item in plan.items] == [
        (Decimal(0), True),
        (Decimal("0.02"), False),
        (Decimal("0.02"), False),
    ]


async def test_equal_requests_are_one_purchase() -> None:
    plan = await planned(picture(), picture(), picture(take=2))
    assert [item.usd for item in plan.items] == [Decimal("0.02"), Decimal(0), Decimal("0.02")]


async def test_what_failed_and_was_not_charged_has_its_price_again(sandbox: Sandbox) -> None:
    sandbox.fault("failed")
    with pytest.raises(GenerationFailed):
        await on_io(bought_and_stored(picture()))
    assert (await planned(picture())).total_usd == Decimal("0.02")


async def test_what_would_be_refused_is_a_problem_and_costs_nothing() -> None:
    plan = await planned(picture(), picture(model="gone"), picture(model="veo-3.1-fast", duration=9, mode="frame"))
    assert [type(item.problem) for item in plan.items] == [type(None), ModelNotFound, InvalidRequest]
    assert [item.usd for item in plan.problems] == [None, None]
    assert (plan.total_usd, plan.certainty) == (Decimal("0.02"), Certainty.EXACT)
    assert "nearest: 8" in str(plan.problems[1].problem)


async def test_what_is_left_of_the_budgets_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "1")
    session = open_session(caps=(CAP,))
    await on_io(session.budgets.reserve([CAP], "somebody-else#1", Decimal("0.07"), "host/1"))
    plan = await make_plan(session, [picture()])
    assert [(left.cap_usd, left.left_usd) for left in plan.budgets] == [
        (Decimal(1), Decimal(1)),
        (Decimal("0.10"), Decimal("0.03")),
    ]
    assert plan.is_affordable
    assert not (await make_plan(session, [picture(), picture(take=2)])).is_affordable


async def test_what_a_dead_run_set_aside_for_these_requests_is_theirs() -> None:
    session = open_session(caps=(CAP,))
    wanted = [picture(take=take) for take in range(5)]
    for request in wanted[:4]:
        name = f"{request.receipt_key(session.client.base_url)}#1"
        await on_io(session.budgets.reserve([CAP], name, Decimal("0.02"), "host/1"))
    plan = await make_plan(session, wanted)
    assert (plan.total_usd, plan.budgets[0].left_usd, plan.is_affordable) == (CAP.usd, CAP.usd, True)
    assert (await make_plan(session, [picture("another")])).budgets[0].left_usd == Decimal("0.02")


async def test_a_balance_that_is_too_small_makes_it_unaffordable(sandbox: Sandbox) -> None:
    plan = await planned(*(picture(model="sora-2-pro", resolution="1080p", take=take) for take in range(63)))
    assert (plan.total_usd, plan.balance_usd, plan.is_affordable) == (Decimal("100.80"), Decimal(100), False)


async def test_a_balance_that_is_not_stated_forbids_nothing(sandbox: Sandbox) -> None:
    sandbox.fault("balance-500", times=None)
    plan = await planned(picture())
    assert (plan.balance_usd, plan.is_affordable) == (None, True)


async def test_no_requests_cost_nothing() -> None:
    plan = await planned()
    assert (plan.items, plan.total_usd, plan.certainty, plan.is_affordable) == ((), Decimal(0), Certainty.EXACT, True)


async def test_a_catalogue_that_does_not_respond_is_not_a_problem_of_the_request(sandbox: Sandbox) -> None:
    sandbox.fault("model-500", times=None)
    with pytest.raises(ServiceUnavailable):
        await planned(picture())


async def test_a_refused_token_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(token="right") as strict:
        monkeypatch.setenv("VEOGEN_BASE_URL", strict.base_url)
        with pytest.raises(AuthenticationError):
            await planned(picture())


async def test_planning_only_reads(sandbox: Sandbox, tmp_path: Path) -> None:
    await planned(picture(), picture("another"), picture(model="gone"), caps=(CAP,))
    assert {record.method for record in sandbox.requests} == {"GET"}
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
