"""`setup`: what a Prefect server needs, made once and again, and taken away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from prefect_veogen import Settings
from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.tasks.provision import provision
from tests.support.commands import Run, process
from tests.support.servers import Reply, serving

AUTOMATIONS = ("veogen-silent-run-crashed", "veogen-crashed-run-again", "veogen-unstarted-run-again")


def steps(run: Run, *words: str) -> dict[str, tuple[str, str]]:
    """Return what setup did and said about each thing."""
    code, out, err = run("setup", "--json", *words)
    assert (code, err) == (0, "")
    return {step["name"]: (step["did"], step["detail"]) for step in json.loads(out)["steps"]}


def done(run: Run, *words: str) -> dict[str, str]:
    return {name.split()[-1]: did for name, (did, _) in steps(run, *words).items()}


def saved_token() -> str:
    block = VeogenCredentials.load("default")
    assert isinstance(block, VeogenCredentials)
    assert block.api_token is not None
    return block.api_token.get_secret_value()


@contextmanager
def deployed_to_the_pool() -> Iterator[Any]:
    @flow
    def paint() -> None: ...

    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(paint)
        made = client.create_deployment(flow_id, "by-hand", work_pool_name="veogen")
        yield made
        client.delete_deployment(made)


@pytest.mark.parametrize("command", ["setup", "deploy"])
def test_a_server_that_refuses_is_said_with_the_settings_that_lead_to_it(command: str) -> None:
    with (
        serving(lambda _: Reply(401, {"Content-Type": "application/json"}, b"{}")) as url,
        process(command, PREFECT_API_URL=f"{url}/api") as running,
    ):
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (1, "")
    assert "401" in err
    for setting in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        assert setting in err
    assert "Traceback" not in err


@pytest.mark.server
@pytest.mark.slow
def test_setup_makes_the_limit_and_registers_the_block_however_often(prefect_server: None, run: Run) -> None:
    assert run("setup")[0] == 0
    code, out, _ = run("setup", "--requests-per-minute", "60", "--json")
    assert (code, json.loads(out)["requests_per_minute"]) == (0, 60)

    async def found() -> tuple[float, str]:
        async with get_client() as client:
            limit = await client.read_global_concurrency_limit_by_name("veogen-requests")
            block = await client.read_block_type_by_slug("veogen-credentials")
        return limit.slot_decay_per_second, block.name

    decay, name = asyncio.run(found())
    assert decay * 60 <= 60 * 1000  # slots, of which a request takes a thousand
    assert name == "Veogen Credentials"


@pytest.mark.server
def test_setup_makes_what_is_missing_once(empty_server: SyncPrefectClient, sandbox: Sandbox, run: Run) -> None:
    first, again = done(run), done(run)
    assert {*first.values()} == {"made"}
    assert {*again.values()} == {"exists"}
    assert first.keys() == again.keys() >= {"veogen", "default", *AUTOMATIONS}
    assert empty_server.read_work_pool("veogen").type == "process"
    with get_client(sync_client=True) as client:
        assert [len(client.read_automations_by_name(name)) for name in AUTOMATIONS] == [1, 1, 1]
    assert saved_token() == sandbox.token
    _, out, err = run("setup")
    assert sandbox.token not in out + err
    assert "exists  work pool veogen" in out


@pytest.mark.server
def test_setup_leaves_another_token_where_it_is_and_says_so(
    empty_server: SyncPrefectClient, sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert done(run)["default"] == "made"
    monkeypatch.setenv("VEOGEN_API_TOKEN", "another-token")
    did, detail = steps(run)["block default"]
    assert did == "left alone"
    assert detail.startswith("its token differs")
    assert "another-token" not in detail
    assert sandbox.token not in detail
    assert saved_token() == sandbox.token
    monkeypatch.delenv("VEOGEN_API_TOKEN")
    there = ("left alone", "it is there; no VEOGEN_API_TOKEN is set here to compare it with")
    assert steps(run)["block default"] == there
    VeogenCredentials.delete("default")
    did, detail = steps(run)["block default"]
    assert (did, "Blocks → Add Block → Veogen Credentials" in detail) == ("left alone", True)


@pytest.mark.server
def test_setup_refuses_a_token_that_can_not_be_one_before_it_makes_anything(
    empty_server: SyncPrefectClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_API_TOKEN", "*****")
    code, _, err = run("setup")
    assert code == 1
    assert "asterisks" in err
    with pytest.raises(ObjectNotFound):
        empty_server.read_work_pool("veogen")


@pytest.mark.server
@pytest.mark.parametrize("frequency", [None, "60"])
def test_setup_has_the_runs_of_its_pool_send_heartbeats_as_often_as_they_are_expected(
    frequency: str | None, empty_server: SyncPrefectClient, sandbox: Sandbox
) -> None:
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["env"]["default"] = {"REGION": "eu"}
    empty_server.create_work_pool(WorkPoolCreate(name="veogen", type="process", base_job_template=template))
    given = {} if frequency is None else {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": frequency}
    for did in ("changed", "exists"):
        with process("setup", "--json", PREFECT_API_URL=str(empty_server.api_url), **given) as setup:
            out, _ = setup.communicate(timeout=120)
        assert {step["name"]: step["did"] for step in json.loads(out)["steps"]}["work pool veogen"] == did
    sent = empty_server.read_work_pool("veogen").base_job_template["variables"]["properties"]["env"]["default"]
    assert sent == {"REGION": "eu", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": frequency or "30"}
    (silent,) = empty_server.read_automations_by_name(AUTOMATIONS[0])
    assert silent.trigger.model_dump()["within"].total_seconds() == 3 * int(frequency or "30")


@pytest.mark.server
def test_of_automations_that_two_setups_made_at_once_one_is_left(
    empty_server: SyncPrefectClient, sandbox: Sandbox, run: Run
) -> None:
    async def provide_twice() -> None:
        settings = Settings()
        await asyncio.gather(provision(settings), provision(settings), return_exceptions=True)

    asyncio.run(provide_twice())
    steps(run)
    found = [empty_server.read_automations_by_name(name) for name in AUTOMATIONS]
    assert [len(same) for same in found] == [1, 1, 1]
    wanted = found[0][0].model_dump(mode="json", exclude={"id"})
    empty_server._client.post("/automations/", json=wanted).raise_for_status()
    assert done(run)[AUTOMATIONS[0]] == "changed"
    assert len(empty_server.read_automations_by_name(AUTOMATIONS[0])) == 1
    assert done(run)[AUTOMATIONS[0]] == "exists"


def test_setup_repairs_an_automation_and_leaves_it_paused_if_it_was(
    empty_server: SyncPrefectClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("setup")
    (silent,) = empty_server.read_automations_by_name(AUTOMATIONS[0])
    empty_server.pause_automation(silent.id)
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "60")
    with process("setup", "--json", PREFECT_API_URL=str(empty_server.api_url)) as setup:
        out, _ = setup.communicate(timeout=120)
    (did,) = [step for step in json.loads(out)["steps"] if step["name"].endswith(AUTOMATIONS[0])]
    assert did["did"] == "changed"
    assert "it is paused" in did["detail"]
    (silent,) = empty_server.read_automations_by_name(AUTOMATIONS[0])
    assert not silent.enabled
    assert silent.trigger.model_dump()["within"].total_seconds() == 180


@pytest.mark.server
def test_remove_takes_away_what_setup_made_but_no_token_and_no_pool_in_use(
    empty_server: SyncPrefectClient, sandbox: Sandbox, run: Run
) -> None:
    run("setup")
    with deployed_to_the_pool():
        removed = steps(run, "--remove")
        assert removed["work pool veogen"] == (
            "left alone",
            "it has deployments: delete them first, then run this again",
        )
    assert removed["block default"][0] == "left alone"
    assert [removed[f"automation {name}"][0] for name in AUTOMATIONS] == ["removed"] * 3
    again = done(run, "--remove")
    assert again["veogen"] == "removed"
    assert {again[name] for name in AUTOMATIONS} == {"absent"}
    assert saved_token() == sandbox.token


@pytest.mark.server
def test_remove_leaves_a_pool_with_a_running_worker(empty_server: SyncPrefectClient, run: Run) -> None:
    run("setup")
    empty_server.send_worker_heartbeat("veogen", "my-worker", heartbeat_interval_seconds=30)
    did, detail = steps(run, "--remove")["work pool veogen"]
    assert (did, detail) == ("left alone", "it has a running worker: stop it first, then run this again")


@pytest.mark.server
def test_remove_leaves_a_pool_that_somebody_else_made(empty_server: SyncPrefectClient, run: Run) -> None:
    empty_server.create_work_pool(WorkPoolCreate(name="veogen", type="process"))
    assert done(run)["veogen"] == "changed"
    assert steps(run, "--remove")["work pool veogen"] == ("left alone", "it was not made by setup")
    empty_server.delete_work_pool("veogen")


@pytest.mark.parametrize(("server", "words"), [(None, "no Prefect server"), ("http://127.0.0.1:9/api", "127.0.0.1:9")])
def test_setup_without_a_server_says_how_to_get_one(tmp_path: Path, server: str | None, words: str) -> None:
    environment = {"PREFECT_HOME": str(tmp_path), "PREFECT_CLIENT_MAX_RETRIES": "0"}
    with process("setup", **environment, **({"PREFECT_API_URL": server} if server else {})) as setup:
        out, err = setup.communicate(timeout=60)
    assert (setup.returncode, out) == (1, "")
    assert words in err
    assert "What to do: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", ["0", "-5"])
def test_setup_refuses_a_limit_that_is_none(run: Run, number: str) -> None:
    code, out, err = run("setup", "--requests-per-minute", number)
    assert (code, out) == (1, "")
    assert f"VEOGEN_REQUESTS_PER_MINUTE='{number}': Input should be greater than or equal to 2" in err
