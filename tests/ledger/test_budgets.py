"""Budgets: a cap is a cap, whichever worker races for the last cent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_veogen.errors import BudgetExceeded, ConfigurationError, UnreadableReceipt
from prefect_veogen.ledger.budgets import Budgets, Cap, Crossing, day_budget
from prefect_veogen.store import Store, open_store

DOLLAR = Cap("day", Decimal(1))


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


async def committed(store: Store, budget: str = "day") -> Decimal:
    return (await Budgets(store).read_account(budget)).committed_usd


async def reserved(store: Store, count: int, usd: str, cap: Cap = DOLLAR) -> int:
    """Let many reserve at once; return how many could."""
    reserving: list[Coroutine[Any, Any, tuple[Crossing, ...]]] = [
        Budgets(store).reserve([cap], f"r{number}", Decimal(usd), f"host/{number}") for number in range(count)
    ]
    results = await asyncio.gather(*reserving, return_exceptions=True)
    assert all(isinstance(result, tuple | BudgetExceeded) for result in results), results
    return sum(isinstance(result, tuple) for result in results)


async def test_many_at_once_get_exactly_what_the_cap_allows(store: Store) -> None:
    assert await reserved(store, 20, "0.30") == 3
    assert await committed(store) == Decimal("0.90")


# Imports the budgets without the package around them, which would take two seconds for Prefect in each process.
RACER = """
import asyncio, sys, types
from decimal import Decimal
sys.modules["prefect_veogen"] = package = types.ModuleType("prefect_veogen")
package.__path__ = [sys.argv.pop()]
from prefect_veogen.ledger.budgets import Budgets, Cap
from prefect_veogen.errors import BudgetExceeded
from prefect_veogen.store import open_store

async def main(url, me):
    won = 0
    for number in range(10):
        try:
            await Budgets(open_store(url)).reserve([Cap("day", Decimal(1))], f"{me}-{number}", Decimal("0.07"), me)
            won += 1
        except BudgetExceeded:
            pass
    print(won)

asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_get_together_exactly_what_the_cap_allows(store: Store, store_url: str) -> None:
    package = str(Path(__file__).parents[2] / "prefect_veogen")
    commands = [[sys.executable, "-c", RACER, store_url, f"racer-{number}", package] for number in range(3)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    assert sum(int(racer.communicate()[0]) for racer in racers) == 14
    assert asyncio.run(committed(store)) == Decimal("0.98")


Step = st.tuples(
    st.sampled_from(["reserve", "settle", "release"]), st.integers(0, 4), st.integers(1, 60), st.sampled_from([1, 1, 2])
)


@given(st.lists(Step, max_size=25))
@settings(max_examples=60, deadline=None)
def test_no_order_of_steps_breaks_the_cap_or_loses_money(steps: list[tuple[str, int, int, int]]) -> None:
    """Compare with a model of three lines per step; every step may happen twice."""
    held: dict[str, Decimal] = {}
    settled: dict[str, Decimal] = {}

    async def play(budgets: Budgets) -> None:
        for step, number, cents, times in steps:
            name, usd = f"r{number}", Decimal(cents) / 100
            for _ in range(times):
                if step == "reserve":
                    held.pop(name, None)
                    fits = sum(held.values()) + sum(settled.values()) + usd <= 1
                    try:
                        await budgets.reserve([DOLLAR], name, usd, "me")
                    except BudgetExceeded:
                        assert not fits
                    else:
                        assert fits
                        held[name] = usd
                elif step == "settle":
                    await budgets.settle(["day"], name, usd)
                    if name in held:
                        settled[name] = settled.get(name, Decimal(0)) + usd
                        del held[name]
                else:
                    await budgets.release(["day"], name)
                    held.pop(name, None)
            account = await budgets.read_account("day")
            assert account.spent_usd == sum(settled.values())
            assert {key: item.usd for key, item in account.reserved.items()} == held

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Budgets(open_store(folder))))


async def test_every_step_done_again_changes_nothing(store: Store) -> None:
    budgets = Budgets(store)
    for _ in range(2):
        await budgets.reserve([DOLLAR], "r1", Decimal("0.40"), "me")
    assert await committed(store) == Decimal("0.40")
    for _ in range(2):
        await budgets.settle(["day"], "r1", Decimal("0.35"))
    assert await committed(store) == Decimal("0.35")
    await budgets.reserve([DOLLAR], "r2", Decimal("0.40"), "me")
    for _ in range(2):
        await budgets.release(["day"], "r2")
    assert await committed(store) == Decimal("0.35")


async def test_what_was_settled_is_given_back_when_the_generation_failed(store: Store) -> None:
    budgets = Budgets(store)
    await budgets.reserve([DOLLAR], "r1", Decimal("0.40"), "me")
    await budgets.settle(["day"], "r1", Decimal("0.35"))
    await budgets.release(["day"], "r1", Decimal("0.35"))
    assert await committed(store) == 0


@pytest.mark.parametrize("settled", [True, False])
async def test_what_failed_is_given_back_once(settled: bool, store: Store) -> None:
    budgets, usd = Budgets(store), Decimal("0.35")
    for name in ("r1", "r2"):
        await budgets.reserve([DOLLAR], name, usd, "me")
    await budgets.settle(["day"], "r2", usd)
    if settled:
        await budgets.settle(["day"], "r1", usd)
    for _ in range(2):
        await budgets.release(["day"], "r1", usd)
    assert await committed(store) == usd


async def test_giving_back_never_makes_more_than_the_cap(store: Store) -> None:
    await Budgets(store).release(["day"], "r1", Decimal("0.35"))
    assert await reserved(store, 8, "0.20") == 5


async def test_what_a_dead_run_set_aside_is_judged_by_todays_cap_and_price(store: Store) -> None:
    budgets = Budgets(store)
    await budgets.reserve([DOLLAR], "r1", Decimal("0.30"), "dead/1")
    with pytest.raises(BudgetExceeded):
        await budgets.reserve([Cap("day", Decimal("0.2"))], "r1", Decimal("0.30"), "me")
    await budgets.reserve([DOLLAR], "r1", Decimal("0.30"), "dead/1")
    await budgets.reserve([DOLLAR], "r1", Decimal("0.90"), "me")
    assert await committed(store) == Decimal("0.90")


async def test_a_second_cap_that_is_broken_frees_the_first(store: Store) -> None:
    caps = [Cap("month", Decimal(10)), Cap("day", Decimal("0.10"))]
    with pytest.raises(BudgetExceeded, match="'day'"):
        await Budgets(store).reserve(caps, "r1", Decimal("0.30"), "me")
    assert (await committed(store, "month"), await committed(store)) == (0, 0)


async def test_the_message_says_what_is_left_and_who_holds_the_rest(store: Store) -> None:
    budgets = Budgets(store)
    for name, by in (("r1", "alice/1"), ("r2", "bob/2"), ("r3", "alice/1")):
        await budgets.reserve([DOLLAR], name, Decimal("0.30"), by)
    await budgets.settle(["day"], "r2", Decimal("0.25"))
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve([DOLLAR], "r4", Decimal("0.30"), "carol/3")
    assert str(caught.value).startswith(
        "The budget 'day' allows $1.00: $0.25 is spent, $0.60 is reserved, $0.15 is left, and $0.30 was wanted. "
        "Reserved: $0.60 by alice/1"
    )
    error = caught.value
    assert (error.wanted_usd, error.left_usd, error.cap_usd) == (Decimal("0.30"), Decimal("0.15"), Decimal(1))
    assert error.budget == "day"


async def test_whoever_takes_a_cap_to_80_percent_is_told_and_nobody_else(store: Store) -> None:
    budgets, caps = Budgets(store), [DOLLAR, Cap("month", Decimal(2))]

    async def reserve(name: str, usd: str) -> list[str]:
        crossed = await budgets.reserve(caps, name, Decimal(usd), "me")
        return [f"{crossing.cap.budget} {crossing.committed_usd} {crossing.left_usd}" for crossing in crossed]

    assert await reserve("r1", "0.79") == []
    assert await reserve("r2", "0.01") == ["day 0.80 0.20"]
    assert await reserve("r2", "0.01") == []
    assert await reserve("r3", "0.20") == []
    await budgets.release(["day", "month"], "r3")
    await budgets.release(["day", "month"], "r2")
    assert await reserve("r4", "0.02") == ["day 0.81 0.19"]


async def test_of_many_at_once_exactly_one_is_told(store: Store) -> None:
    reserving = [Budgets(store).reserve([DOLLAR], f"r{number}", Decimal("0.10"), "me") for number in range(10)]
    told = [crossing for crossed in await asyncio.gather(*reserving) for crossing in crossed]
    assert [(crossing.cap, crossing.committed_usd) for crossing in told] == [(DOLLAR, Decimal("0.80"))]


@pytest.mark.parametrize("cap", [Decimal(0), Decimal("0.5")])
async def test_a_cap_that_refuses_is_not_said_to_be_nearly_reached(cap: Decimal, store: Store) -> None:
    await Budgets(store).reserve([Cap("free", Decimal(0))], "r0", Decimal(0), "me")
    with pytest.raises(BudgetExceeded) as caught:
        await Budgets(store).reserve([DOLLAR, Cap("small", cap)], "r1", Decimal("0.90"), "me")
    assert caught.value.budget == "small"
    assert [crossing.cap for crossing in await Budgets(store).reserve([DOLLAR], "r1", Decimal("0.9"), "me")] == [DOLLAR]


async def test_exactly_the_cap_fits_and_a_lowered_cap_leaves_nothing(store: Store) -> None:
    budgets = Budgets(store)
    await budgets.reserve([DOLLAR], "r1", Decimal("1.00"), "me")
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve([Cap("day", Decimal("0.5"))], "r2", Decimal("0.01"), "me")
    assert caught.value.left_usd == 0


@pytest.mark.parametrize("usd", [0.1, "0.1", Decimal("0.1")])
def test_a_cap_is_taken_as_written(usd: Any) -> None:
    assert Cap.of("day", usd) == Cap("day", Decimal("0.1"))
    assert Cap.of("day", None) is None


@pytest.mark.parametrize(
    "usd", [float("nan"), Decimal("sNaN"), float("inf"), -1, Decimal("-0.01"), "abc", "", True, []]
)
def test_what_is_no_amount_is_no_cap_either(usd: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"budget_usd=(?s:.*)None for no cap"):
        Cap.of("day", usd)


def test_a_day_is_a_day_of_utc() -> None:
    assert day_budget(datetime(2026, 1, 31, 23, 59, tzinfo=UTC)) == "day-2026-01-31"


@pytest.mark.parametrize("name", ["team/a b", "../receipts/x", "ü%2F?#"])
async def test_any_name_is_a_budget_of_its_own(name: str, store: Store) -> None:
    await Budgets(store).reserve([Cap(name, Decimal(1))], "r1", Decimal("0.3"), "me")
    assert await committed(store, name) == Decimal("0.3")
    assert all(found.key.startswith("budgets/") for found in await store.list_objects(""))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"format": 2, "budget": "day"}',
        b"\xff",
        b'{"budget": "week"}',
        b'{"budget": "day", "spent_usd": "-1"}',
        b'{"budget": "day", "reserved": {"r": {"usd": "-1", "by": "me", "at": "2026-11-24T00:00:00Z"}}}',
    ],
)
async def test_a_record_that_cannot_be_read_stops_the_spending(body: bytes, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    await store.put("budgets/day.json", body, "application/json")
    with pytest.raises(UnreadableReceipt, match=r"budgets/day\.json"):
        await Budgets(store).reserve([DOLLAR], "r1", Decimal("0.3"), "me")
