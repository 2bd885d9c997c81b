"""What the tests run against: the sandbox over HTTP, a real S3 protocol, a real Prefect server."""

from __future__ import annotations

import gc
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, settings
from moto.server import ThreadedMotoServer
from prefect.client.orchestration import get_client
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from prefect_veogen.sandbox import Sandbox
from tests.support.environments import fast_settings, s3_environment
from tests.support.runs import SCHEDULED

SPEED = 100.0

# A busy machine takes its time for an example, and the same commit is tested with the same examples.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


# What is left open is an error, wherever it was opened, but for the connections of Prefect's and boto3's own clients.
LEFT_OPEN = ("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
MAY_LEAVE_OPEN = ("server", "s3")
# Longer than any test takes whose outcome depends on the day.
LAST_SECONDS = 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what half of the tests share, here and not in each of them: an S3 server, and no tolerance for leaks."""
    for item in items:
        if isinstance(item, pytest.Function) and _uses_s3(item):
            item.add_marker(pytest.mark.s3)
        if not _may_leave_open(item):
            for name in LEFT_OPEN:
                item.add_marker(pytest.mark.filterwarnings(name))


def _uses_s3(item: pytest.Function) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return "s3_server" in item.fixturenames or parameters.get("store_url") == "bucket"


def _may_leave_open(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in MAY_LEAVE_OPEN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Keep what earlier tests left behind out of the garbage collections of a test which tolerates nothing."""
    gc.freeze()
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Collect what a test left behind while it can still be blamed for it: here, and not in the middle of another."""
    try:
        yield
        left_open = _collect_garbage()
    finally:
        gc.unfreeze()
        if nextitem is None or nextitem.path != item.path:
            _collect_garbage()
    if left_open and not _may_leave_open(item):
        pytest.fail("left open: " + "; ".join(left_open), pytrace=False)


def _collect_garbage() -> list[str]:
    """Collect garbage; return what had been left open in it."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        gc.collect()
    return [str(warning.message) for warning in seen if issubclass(warning.category, ResourceWarning)]


@pytest.fixture(autouse=True)
def _within_a_day() -> None:
    """Begin no test in the last seconds of a day: it would spend under one day's budget and look at the next one's."""
    now = datetime.now(UTC)
    if now.date() != (soon := now + timedelta(seconds=LAST_SECONDS)).date():
        time.sleep((soon.replace(hour=0, minute=0, second=0, microsecond=0) - now).total_seconds())


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the developer's own settings from tests, and keep tests from writing into their directory."""
    for name in os.environ:
        if name.startswith(("VEOGEN_", "PREFECT_INTEGRATIONS_VEOGEN_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(tmp_path / "prefect-results"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """A fresh, fast sandbox with tiny media and no rate limit; the environment points at it and at a directory."""
    settings = {
        **fast_settings(),
        "VEOGEN_STORE": str(tmp_path / "store"),
        # Tests share a Prefect server: a limit that one of them creates there must not slow down the others.
        "VEOGEN_REQUESTS_LIMIT_NAME": f"limit-{uuid.uuid4().hex[:12]}",
    }
    with Sandbox(speed=SPEED, tiny_media=True, requests_per_minute=None) as sandbox:
        for name, value in {**sandbox.environment, **settings}.items():
            monkeypatch.setenv(name, value)
        yield sandbox


def with_atomic_conditions(app: Any) -> Any:
    """Return moto's application with conditional writes one after the other, as S3 has them.

    moto compares and writes in two steps, between which another of its threads may write.
    """
    lock = Lock()

    def respond(environ: dict[str, Any], start_response: Any) -> Any:
        is_conditional = {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys()
        with lock if is_conditional and environ["REQUEST_METHOD"] in ("PUT", "POST") else nullcontext():
            return app(environ, start_response)

    return respond


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server that honours conditional writes."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    assert server._server is not None
    server._server.app = with_atomic_conditions(server._server.app)
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def _events_reach_their_server() -> Iterator[None]:
    """Send each server's events, task runs among them, by a sender of its own.

    Prefect has one for the whole process, which goes on with the server that it met first.
    """
    of_prefect = EventsWorker.instance

    def instance(client_type: Any = None) -> EventsWorker:
        url = PREFECT_API_URL.value()
        if client_type is not None or url is None:
            return of_prefect(client_type)
        of_any = super(EventsWorker, EventsWorker).instance
        return of_any(PrefectEventsClient, (("api_url", url),))  # type: ignore[call-arg]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventsWorker, "instance", instance)
        yield


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket; boto3's own environment points at its server."""
    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    with closing(boto3.client("s3")) as client:
        client.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["directory", "bucket"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of either kind; VEOGEN_STORE points at it."""
    url = str(tmp_path / "store")
    if request.param == "bucket":
        url = f"s3://{request.getfixturevalue('bucket')}/media"
    monkeypatch.setenv("VEOGEN_STORE", url)
    return url


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server, an empty database and no stored results, once per run."""
    results = {PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("prefect-results")}
    with temporary_settings(results), prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def no_schedule_stays(prefect_server: None) -> Iterator[None]:
    """Take the test's deployments away again: what others see of the server's schedules would depend on their order."""
    yield
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            if deployment.name == SCHEDULED:
                client.delete_deployment(deployment.id)
