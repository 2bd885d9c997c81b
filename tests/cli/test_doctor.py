"""`doctor`: what is wrong, on which side, and what to do; nothing is bought, and no token is shown."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL
from prefect.workers.process import ProcessWorker

from prefect_veogen.sandbox import Sandbox
from prefect_veogen.upkeep.health import check_clock
from tests.support.commands import Run, process
from tests.support.environments import s3_environment
from tests.support.servers import Reply, Request, serving

NAMES = [
    *("service", "token", "clock", "balance", "store"),
    *("Prefect server", "shared limit", "scheduler", "worker", "healing", "alerts"),
]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox whose clock is this machine's."""
    with Sandbox(speed=1, tiny_media=True, requests_per_minute=None) as sandbox:
        limit = f"limit-{uuid.uuid4().hex[:12]}"
        settings = {"VEOGEN_STORE": str(tmp_path / "store"), "VEOGEN_REQUESTS_LIMIT_NAME": limit}
        for name, value in {**sandbox.environment, **settings, "VEOGEN_REQUESTS_PER_MINUTE": "12000"}.items():
            monkeypatch.setenv(name, value)
        yield sandbox


def found(run: Run, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, _ = run("doctor", "--json", *words)
    return code, checks_in(out)


def checks_in(out: str) -> dict[str, dict[str, Any]]:
    report = json.loads(out)
    assert report.keys() == {"checks"}
    assert all(check.keys() == {"name", "ok", "detail", "advice"} for check in report["checks"])
    assert [check["name"] for check in report["checks"]] == NAMES
    return {check["name"]: check for check in report["checks"]}


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


# ---------------------------------------------------------------- all is well


@pytest.mark.server
def test_all_is_well_after_setup_with_a_worker_and_nothing_is_bought_or_left(
    empty_server: SyncPrefectClient, sandbox: Sandbox, bucket: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    run("setup")
    empty_server.send_worker_heartbeat("veogen", "my-worker", heartbeat_interval_seconds=30)
    code, out, err = run("doctor")
    assert code == 0, out
    assert out.endswith("All is well. Nothing was bought.\n")
    assert sandbox.token not in out + err
    code, checks = found(run)
    assert (code, {check["ok"] for check in checks.values()}) == (0, {True})
    assert "my-worker" in checks["worker"]["detail"]
    assert "not known" in checks["scheduler"]["detail"]
    assert len(sandbox.bill) == len(sandbox.generations) == 0
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert [item["Key"] for item in listed] == ["media/receipts/.conditional-writes"]


# ---------------------------------------------------------------- without a server, a token


def test_without_server_and_token_it_says_so_and_checks_the_rest(sandbox: Sandbox, tmp_path: Path) -> None:
    environment = {"PREFECT_HOME": str(tmp_path / "prefect"), "VEOGEN_API_TOKEN": ""}
    with process("doctor", "--json", **environment) as doctor:
        out, err = doctor.communicate(timeout=60)
    checks = checks_in(out)
    assert (doctor.returncode, err) == (1, "")
    assert checks["service"]["ok"]
    assert checks["clock"]["ok"]
    assert (checks["token"]["ok"], checks["token"]["detail"]) == (False, "there is none")
    assert "VEOGEN_API_TOKEN" in checks["token"]["advice"]
    assert checks["balance"]["detail"] == "not checked: no token was accepted"
    assert checks["store"]["ok"]
    assert "does not exist yet" in checks["store"]["detail"]
    assert not (tmp_path / "store").exists()
    assert checks["Prefect server"]["detail"] == "none is configured here"
    assert checks["worker"]["detail"] == "not checked: there is no Prefect server"


def test_without_network_and_token_both_are_said_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_BASE_URL", "http://127.0.0.1:9/api/v1")
    monkeypatch.delenv("VEOGEN_API_TOKEN", raising=False)
    _, checks = found(run)
    assert not checks["service"]["ok"]
    assert checks["token"]["detail"] == "there is none"
    monkeypatch.setenv("VEOGEN_API_TOKEN", "half a token")
    assert "not valid in a token" in found(run)[1]["token"]["detail"]
    monkeypatch.setenv("VEOGEN_API_TOKEN", "a-token")
    assert found(run)[1]["token"]["detail"].startswith("not checked")


def test_no_silent_server_makes_it_hang(tmp_path: Path) -> None:
    with silent_server() as url:
        environment = {
            **s3_environment(url),
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_URL": f"{url}/api",
            "VEOGEN_API_TOKEN": "secret-token-of-mine",
            "VEOGEN_BASE_URL": f"{url}/api/v1",
            "VEOGEN_STORE": "s3://some-bucket/media",
        }
        began = time.monotonic()
        with process("doctor", "--json", **environment) as doctor:
            out, err = doctor.communicate(timeout=90)
        took = time.monotonic() - began
    checks = checks_in(out)
    assert doctor.returncode == 1
    assert "secret-token-of-mine" not in out + err
    silent = [name for name, check in checks.items() if "no response within 15 s" in check["detail"]]
    assert silent == ["service", "store", "Prefect server"]
    assert {check["detail"][:13] for name, check in checks.items() if name not in silent} == {"not checked: "}
    assert took < 80, f"{took:.1f} s"  # three waits of 15 s at the same time, and the imports of a busy machine


# ---------------------------------------------------------------- the service, the store


def test_a_refused_token_is_the_accounts_matter(sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_API_TOKEN", "wrong-token-of-mine")
    code, out, err = run("doctor", "--json")
    checks = checks_in(out)
    assert code == 1
    assert checks["service"]["ok"]
    assert not checks["token"]["ok"]
    assert checks["token"]["advice"].startswith("The account: ")
    assert "wrong-token-of-mine" not in out + err


def test_an_unusable_token_is_told_from_a_refused_one(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_API_TOKEN", "two\nlines")
    _, checks = found(run)
    assert checks["service"]["ok"]
    assert "line break" in checks["token"]["detail"]


@pytest.mark.parametrize(
    ("reply", "side", "words"),
    [
        (Reply(status=503, body=b"{}"), "The service: ", "HTTP 503"),
        (Reply(status=200, body=b"<html>hello</html>"), "This machine: ", "http"),
    ],
)
def test_a_service_that_fails_is_told_from_a_wrong_address(
    run: Run, monkeypatch: pytest.MonkeyPatch, reply: Reply, side: str, words: str
) -> None:
    def respond(_: Request) -> Reply:
        return reply

    monkeypatch.setenv("VEOGEN_API_TOKEN", "t")
    with serving(respond) as url:
        code, checks = found(run, "--base-url", url)
    assert code == 1
    assert checks["service"]["advice"].startswith(side)
    assert words in checks["service"]["detail"]
    assert checks["token"]["detail"].startswith("not checked: ")


@pytest.mark.parametrize(("minutes", "ok"), [(0, True), (-10, False), (10, False)])
def test_a_clock_that_is_off_is_reported(minutes: int, ok: bool) -> None:
    check = check_clock(timedelta(minutes=minutes), simulated=False)
    assert check.ok is ok
    assert ok or ("This machine" in check.advice and "600 s" in check.detail)


def test_a_sandbox_has_a_time_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600))
    body = json.dumps({"data": {"balance_usd": "0.00", "total_spent_usd": "1.00"}}).encode()

    def respond(_: Request) -> Reply:
        return Reply(body=body, headers={"Date": moment})

    monkeypatch.setenv("VEOGEN_API_TOKEN", "t")
    with serving(respond) as url:
        _, checks = found(run, "--base-url", url)
    assert checks["clock"]["ok"], checks
    assert "behind the service's, which runs on this machine" in checks["clock"]["detail"]


def test_a_missing_bucket_is_the_stores_matter(
    sandbox: Sandbox, bucket: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", "s3://no-such-bucket-here/media")
    code, checks = found(run)
    assert code == 1
    assert not checks["store"]["ok"]
    assert checks["store"]["advice"].startswith("The store: ")


def test_a_directory_is_checked_and_a_relative_one_noted(
    sandbox: Sandbox, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("VEOGEN_STORE", "here")
    _, checks = found(run)
    assert checks["store"]["ok"]
    assert "runs of deployments refuse it" in checks["store"]["detail"]
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file() and path.stat().st_size]


# ---------------------------------------------------------------- the Prefect server


@pytest.mark.server
def test_what_setup_has_not_made_is_named_with_the_command(empty_server: SyncPrefectClient, run: Run) -> None:
    code, checks = found(run)
    assert code == 1
    assert checks["Prefect server"]["ok"]
    for name in ("shared limit", "worker", "healing"):
        assert not checks[name]["ok"]
        assert "`prefect-veogen setup`" in checks[name]["advice"]
    _, out, _ = run("doctor")
    assert "  healing: The Prefect server: run `prefect-veogen setup`." in out


@pytest.mark.server
def test_a_limit_of_another_size_a_paused_automation_and_a_missing_worker_are_reported(
    empty_server: SyncPrefectClient, run: Run
) -> None:
    run("setup", "--requests-per-minute", "60")
    (silent,) = empty_server.read_automations_by_name("veogen-silent-run-crashed")
    empty_server.pause_automation(silent.id)
    _, checks = found(run)
    assert [name for name, check in checks.items() if not check["ok"]] == ["shared limit", "worker", "healing"]
    assert "VEOGEN_REQUESTS_PER_MINUTE=12000 needs" in checks["shared limit"]["detail"]
    assert "`prefect automation resume veogen-silent-run-crashed`" in checks["healing"]["advice"]
    assert "`prefect worker start --pool veogen`" in checks["worker"]["advice"]


@pytest.mark.server
def test_alerts_that_are_paused_incomplete_or_without_their_block_are_reported(
    empty_server: SyncPrefectClient, run: Run
) -> None:
    assert found(run)[1]["alerts"]["detail"].startswith("none: ")
    block = CustomWebhookNotificationBlock(name="channel", url="http://127.0.0.1:9/")
    block.save("channel", overwrite=True)
    run("setup", "--alerts", "custom-webhook/channel")
    run("setup")  # without, it stays as it is
    assert found(run)[1]["alerts"] == {
        "name": "alerts",
        "ok": True,
        "advice": "",
        "detail": "6, through the block custom-webhook/channel",
    }
    (doubt,) = empty_server.read_automations_by_name("veogen-alert-in-doubt")
    empty_server.pause_automation(doubt.id)
    assert found(run)[1]["alerts"]["advice"].endswith("`prefect automation resume veogen-alert-in-doubt`.")
    empty_server.delete_automation(doubt.id)
    assert found(run)[1]["alerts"]["detail"].startswith("they are not all there")
    run("setup")
    empty_server.delete_block_document(empty_server.read_block_document_by_name("channel", "custom-webhook").id)
    assert found(run)[1]["alerts"]["detail"] == "the block that they were sent through is gone"


@pytest.mark.server
def test_healthy_runs_that_would_count_as_dead_are_reported(empty_server: SyncPrefectClient, run: Run) -> None:
    run("setup")
    assert found(run)[1]["healing"]["ok"]
    template = ProcessWorker.get_default_base_job_template()
    empty_server.update_work_pool("veogen", WorkPoolUpdate(base_job_template=template))
    healing = found(run)[1]["healing"]
    assert not healing["ok"]
    assert healing["detail"] == "healthy runs count as dead after 90 s, with a heartbeat every 180 s"
    run("setup")
    assert found(run)[1]["healing"]["ok"]


@pytest.mark.server
def test_schedules_without_runs_are_reported_once_they_are_old_enough(
    empty_server: SyncPrefectClient, run: Run
) -> None:
    @flow
    def nightly() -> None: ...

    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)
    flow_id = empty_server.create_flow(nightly)
    made = empty_server.create_deployment(flow_id, "nightly", schedules=[schedule])
    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[made]))
    for planned in empty_server.read_flow_runs(deployment_filter=of_it):
        empty_server.delete_flow_run(planned.id)
    _, young = found(run)
    assert young["scheduler"]["detail"] == "not known yet: the schedules are some seconds old"
    age_schedules()
    _, old = found(run)
    empty_server.delete_deployment(made)
    assert not old["scheduler"]["ok"]
    assert old["scheduler"]["advice"].startswith("The Prefect server: ")


def age_schedules() -> None:
    """Let all schedules of the tests' server be an hour old."""
    url = str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value())
    with sqlite3.connect(url.partition("///")[2], timeout=30) as database:
        database.execute(
            "UPDATE deployment_schedule SET created = datetime('now', '-1 hour'), updated = datetime('now', '-1 hour')"
        )
    database.close()
