"""The pytest fixture `veogen_sandbox`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import pytest

from prefect_veogen import Settings
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.sandbox.pytest_plugin import veogen_sandbox
from tests.support.sandbox_client import IMAGE

__all__ = ["veogen_sandbox"]  # the fixture, also for projects in which the plugin is not installed


def test_the_fixture_is_fast_and_sets_the_environment(veogen_sandbox: Sandbox) -> None:
    assert os.environ["VEOGEN_BASE_URL"] == veogen_sandbox.base_url
    assert os.environ["VEOGEN_API_TOKEN"] == veogen_sandbox.token
    headers = {"Authorization": f"Bearer {os.environ['VEOGEN_API_TOKEN']}"}
    with httpx.Client(base_url=os.environ["VEOGEN_BASE_URL"], headers=headers) as api:
        path = f"/generations/{api.post('/generations', json=IMAGE).json()['data']['id']}"
        while api.get(path).json()["data"]["status"] != "completed":
            time.sleep(0.05)  # the sandbox keeps the limit, too
    assert len(veogen_sandbox.bill) == 1
    assert veogen_sandbox.speed == 100


def test_every_test_gets_a_sandbox_of_its_own(veogen_sandbox: Sandbox) -> None:
    assert len(veogen_sandbox.bill) == 0
    assert veogen_sandbox.requests == ()


@pytest.fixture
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_STORE", "s3://production/media")


@pytest.mark.usefixtures("own_store")
def test_what_a_test_buys_is_kept_in_a_store_of_its_own(veogen_sandbox: Sandbox, tmp_path: Path) -> None:
    assert Settings().store == f"{tmp_path}/veogen-store"
    assert veogen_sandbox.bill.purchases == ()
