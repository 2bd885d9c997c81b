"""A person's decisions: what is in doubt is adopted or released, once, and nothing else is."""

from __future__ import annotations

import asyncio

import pytest

from prefect_veogen.api.outcome import Accepted
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger import Receipt, State
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.buyers import bought_and_stored
from tests.support.upkeep import CAP, CENTS, adopt, bought, committed, lost, picture, receipt, release

pytestmark = pytest.mark.usefixtures("doubt_never_ends")


async def test_an_adopted_generation_is_used_and_not_bought_again(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=True)
    (generation,) = sandbox.generations
    made = await adopt(open_session(), key, generation.id)
    assert (made.state, made.generation and made.generation.id) == (State.BOUGHT, generation.id)
    asset = await on_io(bought_and_stored(picture("lost")))
    assert (asset.generation_id, asset.price_usd, len(sandbox.bill)) == (generation.id, CENTS, 1)
    account = await on_io(open_session().budgets.read_account(CAP.budget))
    assert (account.spent_usd, account.reserved) == (CENTS, {})


async def test_a_released_purchase_gives_its_money_back_and_is_bought_by_the_next_run(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=False)
    assert (await release(open_session(), key)).state is State.RELEASED
    assert await committed() == 0
    await on_io(bought_and_stored(picture("lost")))
    assert len(sandbox.bill) == 1
    assert [line.detail for line in (await receipt(key)).history if line.event == "released"] == [
        "by a person's decision"
    ]


async def decide(what: str, key: str, generation_id: str) -> Receipt:
    session = open_session()
    return await (adopt(session, key, generation_id) if what == "adopt" else release(session, key))


@pytest.mark.parametrize("what", ["adopt", "release"])
async def test_only_an_unknown_receipt_waits_for_a_decision(what: str, sandbox: Sandbox) -> None:
    key = await bought(picture())
    with pytest.raises(ConfigurationError, match="is bought; only one in doubt"):
        await decide(what, key, sandbox.generations[0].id)
    with pytest.raises(ConfigurationError, match="no receipt v1-gone"):
        await decide(what, "v1-gone", sandbox.generations[0].id)
    assert (await receipt(key)).state is State.BOUGHT


@pytest.mark.parametrize("what", ["adopt", "release"])
@pytest.mark.parametrize("reaches", ["v1-", "-", "-take"])
async def test_a_decision_takes_the_beginning_of_a_key_up_to_its_take(
    reaches: str, what: str, sandbox: Sandbox
) -> None:
    key = await lost(sandbox, charged=True)
    end = {"v1-": 10, "-": key.index("-take") + 1, "-take": len(key) - 1}[reaches]
    if reaches == "-take":
        with pytest.raises(ConfigurationError, match=rf"no receipt {key[:end]}, .* {key} begins like it") as caught:
            await decide(what, key[:end], sandbox.generations[0].id)
        assert "give its whole key" in caught.value.next_step
        assert (await receipt(key)).state is State.IN_DOUBT
    else:
        assert (await decide(what, key[:end], sandbox.generations[0].id)).key == key


@pytest.mark.parametrize("what", ["adopt", "release"])
async def test_a_decision_is_for_one_receipt(what: str, sandbox: Sandbox) -> None:
    await bought(picture())
    key = await lost(sandbox, charged=True)
    with pytest.raises(ConfigurationError, match="2 receipts begin with v1-") as caught:
        await decide(what, "v1-", sandbox.generations[1].id)
    assert "`prefect-veogen receipts` lists them" in caught.value.next_step
    with pytest.raises(ConfigurationError, match="There is no receipt"):
        await decide(what, "", sandbox.generations[1].id)
    assert (await receipt(key)).state is State.IN_DOUBT


@pytest.mark.parametrize("force", [False, True])
async def test_a_generation_of_another_receipt_is_not_adopted_nor_force_advised(force: bool, sandbox: Sandbox) -> None:
    owner, key = await bought(picture()), await lost(sandbox, charged=False)
    with pytest.raises(ConfigurationError, match=f"belongs to the receipt {owner}") as caught:
        await adopt(open_session(), key, sandbox.generations[0].id, force=force)
    assert f"`prefect-veogen receipts show {owner}`" in caught.value.next_step
    assert "force" not in str(caught.value)
    assert (await receipt(key)).state is State.IN_DOUBT


async def test_a_generation_of_other_content_is_adopted_only_by_force_and_stays_free_until_then(
    sandbox: Sandbox,
) -> None:
    key = await lost(sandbox, charged=False)
    submission = await open_session().client.create_generation({"model": "gpt-4o-image", "prompt": "something else"})
    assert isinstance(submission, Accepted)
    with pytest.raises(ConfigurationError, match=r"prompt differ(?s:.*)--force"):
        await adopt(open_session(), key, submission.generation.id)
    assert (await receipt(key)).state is State.IN_DOUBT
    assert await open_session().ledger.find_claimant(sandbox.base_url, submission.generation.id) is None
    assert (await adopt(open_session(), key, submission.generation.id, force=True)).state is State.BOUGHT


async def test_a_generation_the_service_does_not_know_is_not_adopted(sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=False)
    with pytest.raises(ConfigurationError, match=r"knows no generation gone/\.\./gone(?s:.*)Check the id") as caught:
        await adopt(open_session(), key, "gone/../gone")
    assert "VEOGEN_BASE_URL" not in str(caught.value)
    assert (await receipt(key)).state is State.IN_DOUBT


async def test_a_generation_asked_for_at_another_service_names_the_one_that_has_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await lost(sandbox, charged=True)
    with Sandbox() as other:
        monkeypatch.setenv("VEOGEN_BASE_URL", other.base_url)
        monkeypatch.setenv("VEOGEN_API_TOKEN", other.token)
        with pytest.raises(ConfigurationError, match=f"purchase was made at {sandbox.base_url}: set VEOGEN_BASE_URL"):
            await adopt(open_session(), key, sandbox.generations[0].id)


@pytest.mark.parametrize("rounds", range(3))
async def test_of_two_decisions_at_once_one_counts(rounds: int, sandbox: Sandbox) -> None:
    key = await lost(sandbox, charged=True)
    generation = sandbox.generations[0].id
    made = await asyncio.gather(
        adopt(open_session(), key, generation), release(open_session(), key), return_exceptions=True
    )
    (decided,) = [item for item in made if isinstance(item, Receipt)]
    (refused,) = [item for item in made if isinstance(item, BaseException)]
    assert isinstance(refused, ConfigurationError)
    assert (await receipt(key)).state is decided.state
