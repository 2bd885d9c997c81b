"""The promise: killed anywhere, raced by others, everything wanted is bought exactly once and nothing bought is lost.

Processes are killed for real (SIGKILL): at every single request they make, before it reaches its server and after it
was carried out; before every change they make in a directory; and at random instants. Each is then run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import queue
import random
import shutil
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from hypothesis import Phase, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from prefect_veogen import Asset, GenerationRequest
from prefect_veogen.errors import BudgetExceeded, GenerationFailed, UnknownSubmission, VeogenError
from prefect_veogen.process.io_loop import io_loop
from prefect_veogen.sandbox import Sandbox
from tests.support.buyers import Order, Report, one, work
from tests.support.environments import s3_environment
from tests.support.stopping_proxy import Stop, StoppingProxy, stopping_proxy

# The kills are tried in fixtures, a hundred and fifty of them: minutes on a quiet machine, more beside other work.
pytestmark = [pytest.mark.kill, pytest.mark.slow, pytest.mark.s3, pytest.mark.timeout(1800)]

PICTURE = GenerationRequest(model="gpt-4o-image", prompt="a lighthouse at dusk", aspect_ratio="16:9")
MOTION = "the beam turns"
CHAIN_USD = Decimal("0.32")  # $0.02 for the picture, $0.30 for the clip
# A list that shows nothing which this ledger bought proves no absence.
OURS = (
    GenerationRequest(model="gpt-4o-image", prompt="ours"),
    GenerationRequest(model="veo-3.1-fast", prompt="ours"),
)
OURS_USD = CHAIN_USD
IN_DOUBT_SECONDS = "0.2"
PATIENCE_SECONDS = 60.0
RANDOM_KILLS = 14
EXAMPLES = 25
VISIBLE = ("assets", "receipts", "claims", "budgets", "rejected")
README = Path(__file__).parents[2] / "README.md"


# ---------------------------------------------------------------- what the processes run against


@dataclass(frozen=True)
class Lane:
    """A sandbox and a proxy of its own, so that two kills can be tried at the same time."""

    sandbox: Sandbox
    proxy: StoppingProxy
    s3: str

    def environment(self, store: str) -> dict[str, str]:
        return {
            **self.sandbox.environment,
            **self.proxy.environment,
            **s3_environment(self.s3),
            "VEOGEN_STORE": store,
            "VEOGEN_REQUESTS_PER_MINUTE": "60000",
            "VEOGEN_IMAGE_POLL_SECONDS": "0.02",
            "VEOGEN_VIDEO_POLL_SECONDS": "0.02",
            "VEOGEN_IN_DOUBT_SECONDS": IN_DOUBT_SECONDS,
            "VEOGEN_BUDGET_USD": "1",
        }


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start at once, because everything was imported before they were forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.buyers", "boto3", "anyio._backends._asyncio", "httpx"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(README.parent))
        for name in os.environ:
            if name.startswith(("VEOGEN_", "AWS_")):
                patch.delenv(name)
        context.Process(target=int).start()
    return context


@pytest.fixture(scope="module")
def lanes(s3_server: str) -> Iterator[queue.Queue[Lane]]:
    free: queue.Queue[Lane] = queue.Queue()
    with ExitStack() as stack:
        for _ in range(2):
            sandbox = Sandbox(
                speed=100, tiny_media=True, requests_per_minute=None, image_seconds=0.2, video_seconds=0.2
            )
            free.put(Lane(stack.enter_context(sandbox), stack.enter_context(stopping_proxy()), s3_server))
        yield free


@pytest.fixture(scope="module")
def bucket_name(s3_server: str) -> str:
    name = f"paid-once-{uuid.uuid4().hex[:8]}"
    s3_client(s3_server).create_bucket(Bucket=name)
    return name


def s3_client(address: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )


@dataclass
class Running:
    """A process at work."""

    process: ForkServerProcess
    reports: Connection

    def report(self) -> Report:
        assert self.reports.poll(PATIENCE_SECONDS), "the process says nothing"
        report: Report = self.reports.recv()
        return report

    def kill(self) -> bool:
        """Kill a process that lingers, and return whether that ended it."""
        self.process.kill()
        return self.died() or self.died()  # it may have reported before

    def died(self) -> bool:
        """Return whether the process is gone without a (further) word."""
        # Not by its exit code: two threads which ask for children's codes at the same time can miss one.
        try:
            self.report()
        except EOFError:
            return True
        return False


def started(context: ForkServerContext, order: Order) -> Running:
    reports, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(order, sender))
    process.start()
    sender.close()
    return Running(process, reports)


# ---------------------------------------------------------------- one kill, and what is left of it


@dataclass(frozen=True)
class Kill:
    """Where to kill, and what came of it once everything was run again."""

    where: str
    killed: bool
    in_doubt: bool
    """Whether the second run bought something again, after its absence was proven."""
    asked: bool
    """Whether the second run left a decision to a person."""
    purchases: int
    lost: int
    complaints: tuple[str, ...]


Killer = Callable[[Lane, str], bool]


def killed_and_run_again(
    context: ForkServerContext, lane: Lane, store: str, where: str, killer: Callable[[Lane, str], bool]
) -> Kill:
    lane.sandbox.reset()
    lane.proxy.new_world()
    started(context, Order(OURS, lane.environment(store))).report()
    killed = killer(lane, store)
    lane.proxy.new_world()
    outcomes = started(context, Order((PICTURE,), lane.environment(store), MOTION)).report().outcomes
    left = objects(store, lane.s3)
    lost = [lost for receipt in documents(left, "receipts/") for lost in receipt["lost"]]
    complaints = [*wrong_assets(lane.sandbox, outcomes, left), *wrong_books(lane.sandbox, left, lost)]
    return Kill(
        where,
        killed,
        in_doubt=bool(lost),
        asked=isinstance(outcomes[-1], UnknownSubmission),
        purchases=len(lane.sandbox.generations) - len(OURS),
        lost=2 - whole(lane.sandbox, outcomes, left),
        complaints=tuple(complaints),
    )


def objects(store: str, s3: str) -> dict[str, bytes]:
    """Return everything that lies in a store, read without our own code."""
    if not store.startswith("s3://"):
        root = Path(store)
        paths = [path for folder in VISIBLE for path in (root / folder).rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    client, (bucket, _, prefix) = s3_client(s3), store.removeprefix("s3://").partition("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {key.removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def documents(left: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    return [json.loads(body) for key, body in left.items() if key.startswith(folder) and key.endswith(".json")]


def media(left: dict[str, bytes]) -> dict[str, bytes]:
    return {key: body for key, body in left.items() if key.startswith("assets/") and not key.endswith(".json")}


def served(sandbox: Sandbox) -> dict[str, bytes]:
    """Return what the service serves for each generation, by id."""
    found = {}
    for generation in sandbox.generations:
        assert generation.output_url is not None
        with urllib.request.urlopen(generation.output_url) as response:
            found[generation.id] = response.read()
    return found


def whole(sandbox: Sandbox, outcomes: list[Any], left: dict[str, bytes]) -> int:
    """Count the outcomes that are assets whose stored bytes are the ones that were paid for."""
    paid, stored = served(sandbox), media(left)
    return sum(
        isinstance(asset, Asset)
        and any(asset.uri.endswith(key) and body == paid.get(asset.generation_id) for key, body in stored.items())
        for asset in outcomes
    )


def wrong_assets(sandbox: Sandbox, outcomes: list[Any], left: dict[str, bytes]) -> Iterator[str]:
    if whole(sandbox, outcomes, left) != len(outcomes) or len(outcomes) != 2:
        yield f"not two whole assets: {outcomes}"
    if sorted(media(left).values()) != sorted(served(sandbox).values()):
        yield f"stored media are not what was bought: {sorted(media(left))}"
    if {f"{key}.json" for key in media(left)} != {key for key in left if key.startswith("assets/")} - {*media(left)}:
        yield f"sidecars and media don't go together: {sorted(left)}"


def wrong_books(sandbox: Sandbox, left: dict[str, bytes], lost: list[dict[str, Any]]) -> Iterator[str]:
    states = [receipt["state"] for receipt in documents(left, "receipts/")]
    if states != ["stored"] * (2 + len(OURS)):
        yield f"receipts are {states}"
    bought = sorted(generation.id for generation in sandbox.generations)
    claimed = sorted(claim["generation"] for claim in documents(left, "claims/"))
    if not bought == claimed == sorted(receipt["generation"]["id"] for receipt in documents(left, "receipts/")):
        yield f"bought {bought}, claimed {claimed}"
    accounts = documents(left, "budgets/")
    committed = [Decimal(account["spent_usd"]) for account in accounts]
    reserved = [Decimal(item["usd"]) for account in accounts for item in account["reserved"].values()]
    # What was proven absent may turn up all the same: its money stays reserved for a day.
    doubted = [Decimal(attempt["quote_usd"]) for attempt in lost]
    if sum(committed) + sum(reserved) != CHAIN_USD + OURS_USD + sum(doubted):
        yield f"spent {committed}, reserved {reserved}"


# ---------------------------------------------------------------- at every request, at every change


def uninterrupted(context: ForkServerContext, lane: Lane, store: str) -> tuple[list[str], int]:
    """Return the requests and the number of changes in the directory that a whole chain makes."""
    lane.sandbox.reset()
    lane.proxy.new_world()
    started(context, Order(OURS, lane.environment(store))).report()
    world = lane.proxy.new_world()
    report = started(context, Order((PICTURE,), lane.environment(store), MOTION)).report()
    assert len(lane.sandbox.bill) - len(OURS) == len(report.outcomes) == 2
    return world.requests, report.changes


def at_request(context: ForkServerContext, stop: Stop) -> Killer:
    def killer(lane: Lane, store: str) -> bool:
        world = lane.proxy.new_world(stop)
        running = started(context, Order((PICTURE,), lane.environment(store), MOTION, lingers=True))
        stood = world.standing.wait(PATIENCE_SECONDS)
        killed = running.kill()
        world.over.set()
        return stood and killed

    return killer


def at_change(context: ForkServerContext, number: int) -> Killer:
    def killer(lane: Lane, store: str) -> bool:
        lane.proxy.new_world()
        order = Order((PICTURE,), lane.environment(store), MOTION, dies_before_change=number)
        return started(context, order).died()

    return killer


def tried(
    context: ForkServerContext, lanes: queue.Queue[Lane], new_store: Callable[[], str], killers: dict[str, Killer]
) -> list[Kill]:
    """Try each way to be killed in a fresh store, two at a time."""

    def one(item: tuple[str, Killer]) -> Kill:
        lane = lanes.get()
        try:
            return killed_and_run_again(context, lane, new_store(), *item)
        finally:
            lanes.put(lane)

    with ThreadPoolExecutor(lanes.qsize()) as pool:
        return list(pool.map(one, killers.items()))


def request_killers(context: ForkServerContext, requests: list[str]) -> dict[str, Killer]:
    return {
        f"{'after' if after else 'before'} {number}: {request}": at_request(context, Stop(number, after=after))
        for number, request in enumerate(requests, 1)
        for after in (False, True)
    }


@pytest.fixture(scope="module")
def new_prefix(bucket_name: str) -> Callable[[], str]:
    return lambda: f"s3://{bucket_name}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def new_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    return lambda: str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def bucket_kills(processes: ForkServerContext, lanes: queue.Queue[Lane], new_prefix: Callable[[], str]) -> list[Kill]:
    lane = lanes.get()
    requests, _ = uninterrupted(processes, lane, new_prefix())
    lanes.put(lane)
    return tried(processes, lanes, new_prefix, request_killers(processes, requests))


@pytest.fixture(scope="module")
def directory_kills(
    processes: ForkServerContext, lanes: queue.Queue[Lane], new_directory: Callable[[], str]
) -> list[Kill]:
    lane = lanes.get()
    requests, changes = uninterrupted(processes, lane, new_directory())
    lanes.put(lane)
    at_changes = {f"before change {number}": at_change(processes, number) for number in range(1, changes + 1)}
    return tried(processes, lanes, new_directory, request_killers(processes, requests) | at_changes)


@pytest.mark.parametrize("kills", ["bucket_kills", "directory_kills"])
def test_killed_anywhere_and_run_again_everything_is_bought_once_and_stored(
    request: pytest.FixtureRequest, kills: str
) -> None:
    tried_kills: list[Kill] = request.getfixturevalue(kills)
    assert [kill for kill in tried_kills if not kill.killed] == []
    assert [kill for kill in tried_kills if kill.complaints or kill.lost or kill.purchases != 2] == []
    assert len(tried_kills) >= 50


def test_no_person_is_asked_and_in_doubt_is_only_what_was_noted_and_never_arrived(
    bucket_kills: list[Kill], directory_kills: list[Kill]
) -> None:
    assert [kill for kill in (*bucket_kills, *directory_kills) if kill.asked] == []
    doubted = [kill.where.partition(": ")[2].partition(" ")[0] for kill in bucket_kills if kill.in_doubt]
    assert doubted == ["PUT", "POST"] * 2  # after the note, before the purchase arrived: picture and clip
    assert [kill.where.split()[2] for kill in directory_kills if kill.in_doubt] == ["POST"] * 2


def test_killed_anywhere_while_it_heals_and_run_again_it_is_bought_once(
    processes: ForkServerContext, lanes: queue.Queue[Lane], new_directory: Callable[[], str]
) -> None:
    lane, complaints, killed, changes = lanes.get(), [], True, 0
    while killed:
        changes += 1
        store = new_directory()
        environment = lane.environment(store)
        lane.sandbox.reset()
        started(processes, Order(OURS[:1], environment)).report()
        lane.sandbox.fault("503-before-charge")
        killed = started(processes, Order((PICTURE,), environment, dies_before_change=changes)).died()
        lane.sandbox.clear_faults()
        (outcome,) = started(processes, Order((PICTURE,), environment)).report().outcomes
        if not isinstance(outcome, Asset) or len(lane.sandbox.generations) != 2:
            complaints.append((changes, outcome, len(lane.sandbox.generations)))
    lanes.put(lane)
    assert complaints == []
    assert changes > 20


# ---------------------------------------------------------------- when the service says no as well


@pytest.mark.parametrize("fault", ["422", "failed", "lost-answer-after-charge"])
def test_killed_around_a_failure_of_the_service_no_money_stays_set_aside(
    processes: ForkServerContext, lanes: queue.Queue[Lane], new_directory: Callable[[], str], fault: str
) -> None:
    lane, before = lanes.get(), new_directory()
    # Something was bought before, or money refunded twice would not show: no account falls below nothing.
    started(processes, Order((PICTURE.model_copy(update={"take": 2}),), lane.environment(before))).report()
    complaints, changes, asked = [], 0, 0
    while True:
        changes += 1
        store = shutil.copytree(before, f"{new_directory()}/store")
        lane.sandbox.reset()
        lane.sandbox.fault(fault)
        environment = lane.environment(store)
        first = started(processes, Order((PICTURE,), environment, dies_before_change=changes))
        killed = first.died()
        outcomes = [started(processes, Order((PICTURE,), environment)).report().outcomes[0] for _ in range(2)]
        if isinstance(outcomes[-1], UnknownSubmission) and fault == "422":
            asked += 1  # killed before it could be noted that the purchase had been refused
        else:
            account = documents(objects(store, lane.s3), "budgets/")[0]
            books = (len(lane.sandbox.bill), committed(account))
            if not isinstance(outcomes[-1], Asset) or books != (1, Decimal("0.04")):
                complaints.append((changes, outcomes, books))
        if not killed:
            break
    lanes.put(lane)
    assert complaints == []
    assert changes > 10
    assert asked <= 2


async def test_a_purchase_lost_after_one_that_failed_is_not_taken_for_that_one(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.fault("failed")
    assert isinstance(await one(PICTURE), GenerationFailed)
    sandbox.fault("500-after-charge")
    asset = await one(PICTURE)
    assert isinstance(asset, Asset)
    assert [purchase.id for purchase in sandbox.bill] == [asset.generation_id]
    assert len(sandbox.generations) == 2


# ---------------------------------------------------------------- at random instants


def after_seconds(context: ForkServerContext, seconds: float) -> Killer:
    def killer(lane: Lane, store: str) -> bool:
        world = lane.proxy.new_world()
        running = started(context, Order((PICTURE,), lane.environment(store), MOTION, lingers=True))
        while not world.requests:
            time.sleep(0.001)
        time.sleep(seconds)
        return running.kill()

    return killer


@pytest.fixture(scope="module", params=["bucket", "directory"])
def random_kills(
    request: pytest.FixtureRequest,
    processes: ForkServerContext,
    lanes: queue.Queue[Lane],
) -> list[Kill]:
    new_store: Callable[[], str] = request.getfixturevalue(
        "new_prefix" if request.param == "bucket" else "new_directory"
    )
    dice = random.Random(request.param)
    longest = 0.5 if request.param == "bucket" else 0.25
    instants = [dice.uniform(0, longest) for _ in range(RANDOM_KILLS)]
    killers = {f"after {seconds:.3f} s": after_seconds(processes, seconds) for seconds in instants}
    return tried(processes, lanes, new_store, killers)


def test_killed_at_a_random_instant_nothing_is_bought_twice_or_lost(random_kills: list[Kill]) -> None:
    assert [kill for kill in random_kills if not kill.killed] == []
    assert [kill for kill in random_kills if kill.complaints or kill.lost or kill.purchases != 2] == []


# ---------------------------------------------------------------- not killed, but not alone


def raced(
    context: ForkServerContext, environment: dict[str, str], wanted: list[tuple[GenerationRequest, ...]]
) -> list[Any]:
    """Return what all processes got, which begin at the same moment."""
    starts_at = time.time() + 1
    running = [started(context, Order(requests, environment, starts_at=starts_at)) for requests in wanted]
    return [outcome for one in running for outcome in one.report().outcomes]


@dataclass(frozen=True)
class Race:
    """What many processes at once got, and what was paid for it."""

    outcomes: list[Any]
    purchases: int
    left: dict[str, bytes]


@pytest.fixture(scope="module")
def six_at_once(processes: ForkServerContext, lanes: queue.Queue[Lane], new_prefix: Callable[[], str]) -> Race:
    lane, store = lanes.get(), new_prefix()
    lane.sandbox.reset()
    lane.proxy.new_world()
    outcomes = raced(processes, lane.environment(store), [(PICTURE,)] * 6)
    lanes.put(lane)
    return Race(outcomes, len(lane.sandbox.generations), objects(store, lane.s3))


@pytest.fixture(scope="module")
def eight_on_a_budget(processes: ForkServerContext, lanes: queue.Queue[Lane], new_prefix: Callable[[], str]) -> Race:
    lane, store = lanes.get(), new_prefix()
    lane.sandbox.reset()
    lane.proxy.new_world()
    pictures = [GenerationRequest(model="gpt-4o-image", prompt=f"picture {number}") for number in range(24)]
    environment = {**lane.environment(store), "VEOGEN_BUDGET_USD": "0.10"}
    outcomes = raced(processes, environment, [tuple(pictures[start::8]) for start in range(8)])
    lanes.put(lane)
    return Race(outcomes, len(lane.sandbox.generations), objects(store, lane.s3))


def test_six_processes_that_want_the_same_at_once_share_one_purchase(six_at_once: Race) -> None:
    assert six_at_once.purchases == 1
    assert len(six_at_once.outcomes) == 6
    assert len(set(six_at_once.outcomes)) == 1
    assert isinstance(six_at_once.outcomes[0], Asset)
    assert len(media(six_at_once.left)) == 1


def test_eight_processes_never_spend_more_than_the_cap_and_never_less(eight_on_a_budget: Race) -> None:
    assert Counter(type(outcome) for outcome in eight_on_a_budget.outcomes) == {Asset: 5, BudgetExceeded: 19}
    assert eight_on_a_budget.purchases == 5
    (account,) = documents(eight_on_a_budget.left, "budgets/")
    assert (Decimal(account["spent_usd"]), account["reserved"]) == (Decimal("0.10"), {})
    states = Counter(receipt["state"] for receipt in documents(eight_on_a_budget.left, "receipts/"))
    assert states == {"stored": 5, "released": 19}


# ---------------------------------------------------------------- in any order

FAULTS = (
    "lost-answer-after-charge",
    "lost-answer-before-charge",
    "500-after-charge",
    "502-after-charge",
    "500-before-charge",
    "503-before-charge",
    "garbled-json-after-charge",
    "empty-body-after-charge",
    "html-after-charge",
    "402",
    "422",
    "failed",
    "look-500",
    "look-dropped",
    "look-404",
    "list-500",
    "hidden-from-list",
    "unknown-status",
    "completed-without-output",
    "model-500",
    "model-dropped",
    "media-truncated",
    "media-reset",
    "media-expired",
    "media-html",
    "media-wrong-type",
)
Key = tuple[str, int]
KEYS = strategies.tuples(strategies.sampled_from(["a cat", "a dog"]), strategies.integers(1, 2))


class AnyOrder(RuleBasedStateMachine):
    """Kills, cancellations, failures of the service, racing callers and several takes, in any order."""

    context: ForkServerContext
    lane: Lane
    new_store: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        self.lane.sandbox.reset()
        self.lane.proxy.new_world()
        self.environment = self.lane.environment(self.new_store())
        self.tried: set[Key] = set()
        self.assets: dict[Key, Asset] = {}
        self.run([OURS[0]])

    @rule(name=strategies.sampled_from(FAULTS), times=strategies.integers(1, 2))
    def service_fails(self, name: str, times: int) -> None:
        self.lane.sandbox.fault(name, times=times)

    @rule(key=KEYS, callers=strategies.integers(1, 3))
    def callers_want(self, key: Key, callers: int) -> None:
        self.note(key, self.run([wanted(key)] * callers))

    @rule(key=KEYS, seconds=strategies.floats(0, 0.1))
    def caller_is_cancelled(self, key: Key, seconds: float) -> None:
        self.note(key, self.run([wanted(key)], seconds))

    @rule(key=KEYS, number=strategies.integers(1, 6), after=strategies.booleans())
    def process_is_killed(self, key: Key, number: int, after: bool) -> None:
        self.tried.add(key)
        world = self.lane.proxy.new_world(Stop(number, after))
        running = started(self.context, Order((wanted(key),), self.environment, lingers=True))
        while not world.standing.wait(0.01) and not running.reports.poll():
            pass
        assert running.kill()
        world.over.set()
        self.lane.proxy.new_world()

    @invariant()
    def nothing_is_bought_twice_or_lost(self) -> None:
        purchases = Counter(bought.prompt for bought in self.lane.sandbox.bill if bought.prompt != OURS[0].prompt)
        takes, had = Counter(prompt for prompt, _ in self.tried), Counter(prompt for prompt, _ in self.assets)
        assert all(had[prompt] <= purchases[prompt] <= takes[prompt] for prompt in takes | purchases)

    @invariant()
    def assets_stay_what_they_are(self) -> None:
        for asset in self.assets.values():
            assert hashlib.sha256(Path(urlsplit(asset.uri).path).read_bytes()).hexdigest() == asset.sha256

    @invariant()
    def no_money_is_forgotten(self) -> None:
        left = objects(self.environment["VEOGEN_STORE"], self.lane.s3)
        assert sum(map(committed, documents(left, "budgets/")), Decimal(0)) >= self.lane.sandbox.bill.total_usd

    def teardown(self) -> None:
        self.lane.sandbox.clear_faults()
        for key in sorted(self.tried):
            (outcome,) = self.run([wanted(key)])
            if isinstance(outcome, GenerationFailed):  # no run knew of it before
                (outcome,) = self.run([wanted(key)])
            assert isinstance(outcome, Asset), outcome
            self.note(key, [outcome])
        self.nothing_is_bought_twice_or_lost()
        assert len(self.lane.sandbox.bill) == len(self.tried) + 1

    def note(self, key: Key, outcomes: list[Any]) -> None:
        self.tried.add(key)
        for outcome in outcomes:
            if isinstance(outcome, Asset):
                assert self.assets.setdefault(key, outcome).sha256 == outcome.sha256

    def run(self, requests: list[GenerationRequest], seconds: float | None = None) -> list[Any]:
        """Return what callers in this process get, who stop after so many seconds."""

        async def all_of_them() -> list[Any]:
            tasks = [asyncio.create_task(one(request)) for request in requests]
            await asyncio.wait(tasks, timeout=seconds)
            for task in tasks:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                if name not in self.lane.proxy.environment:
                    patch.setenv(name, value)
            outcomes = asyncio.run(all_of_them())
            while asyncio.all_tasks(io_loop()):  # what is cancelled still leaves its notes
                time.sleep(0.001)
        for outcome in outcomes:
            assert isinstance(outcome, Asset | VeogenError | asyncio.CancelledError), repr(outcome)
        return outcomes


def wanted(key: Key) -> GenerationRequest:
    return GenerationRequest(model="gpt-4o-image", prompt=key[0], take=key[1])


def committed(account: dict[str, Any]) -> Decimal:
    return Decimal(account["spent_usd"]) + sum(Decimal(item["usd"]) for item in account["reserved"].values())


def test_in_any_order_everything_is_bought_once(
    processes: ForkServerContext, lanes: queue.Queue[Lane], new_directory: Callable[[], str]
) -> None:
    lane = lanes.get()
    AnyOrder.context, AnyOrder.lane, AnyOrder.new_store = processes, lane, staticmethod(new_directory)
    examples = settings(
        max_examples=EXAMPLES,
        stateful_step_count=10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    run_state_machine_as_test(AnyOrder, settings=examples)
    lanes.put(lane)


# ---------------------------------------------------------------- what the README says of it


@dataclass(frozen=True)
class Row:
    """One line of the README's table."""

    where: str
    kills: int
    wanted: int
    purchases: int
    lost: int
    in_doubt: int
    asked: int


def row(where: str, kills: list[Kill]) -> Row:
    return Row(
        where,
        sum(kill.killed for kill in kills),
        2 * len(kills),
        sum(kill.purchases for kill in kills),
        sum(kill.lost for kill in kills),
        sum(kill.in_doubt for kill in kills),
        sum(kill.asked for kill in kills),
    )


def promise_table(figures: list[Row]) -> str:
    """Return the README's table."""
    lines = [
        "| where it is killed | kills | purchases wanted | purchases made | lost | in doubt | left to a person |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for figure in figures:
        numbers = (figure.kills, figure.wanted, figure.purchases, figure.lost, figure.in_doubt, figure.asked)
        lines.append(f"| {figure.where} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def figures(
    bucket_kills: list[Kill], directory_kills: list[Kill], six_at_once: Race, eight_on_a_budget: Race
) -> list[Row]:
    before = [kill for kill in bucket_kills if kill.where.startswith("before")]
    after = [kill for kill in bucket_kills if kill.where.startswith("after")]
    changes = [kill for kill in directory_kills if kill.where.startswith("before change")]
    requests = [kill for kill in directory_kills if kill not in changes]
    return [
        row("at each request, before it arrives (bucket)", before),
        row("at each request, when it was carried out but not answered (bucket)", after),
        row("at each request, before and after (directory)", requests),
        row("before each change of a file (directory)", changes),
        Row("not killed: six processes want the same at once", 0, 1, six_at_once.purchases, 0, 0, 0),
        Row("not killed: eight processes want 24, the cap allows 5", 0, 5, eight_on_a_budget.purchases, 0, 0, 0),
    ]


def test_the_readme_shows_these_figures(figures: list[Row]) -> None:
    shown = README.read_text().partition("<!-- paid-once -->")[2].partition("<!-- /paid-once -->")[0]
    assert shown.strip() == promise_table(figures)
