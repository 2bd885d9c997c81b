"""Commands run in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from prefect_veogen.cli import main
from prefect_veogen.sandbox import Sandbox
from tests.support.commands import Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process and return its exit code, stdout and stderr."""

    def run_it(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as wrong_usage:
            code = int(wrong_usage.code or 0)
        written = capsys.readouterr()
        return code, written.out, written.err

    return run_it


@pytest.fixture
def empty_server(prefect_server: None, sandbox: Sandbox, run: Run) -> Iterator[SyncPrefectClient]:
    """A server without schedules and what setup makes, whose limit no other test uses; left like that."""
    with get_client(sync_client=True) as client:
        _clear(client, run)
        yield client
        _clear(client, run)


def _clear(client: SyncPrefectClient, run: Run) -> None:
    # Those of other tests as well: a schedule of one of them is a schedule of the server.
    for deployment in client.read_deployments():
        if deployment.work_pool_name == "veogen" or deployment.schedules:
            client.delete_deployment(deployment.id)
    assert run("setup", "--remove")[0] == 0
    with suppress(ObjectNotFound):
        client.delete_work_pool("veogen")
    with suppress(ObjectNotFound):
        client.delete_block_document(client.read_block_document_by_name("default", "veogen-credentials").id)
