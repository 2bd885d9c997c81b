"""The pytest fixture ``veogen_sandbox``: a fresh, fast sandbox for one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_veogen.sandbox.server import Sandbox

SPEED = 100.0


@pytest.fixture
def veogen_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """Run a sandbox for this test, at 100 times the speed and with tiny media; the environment points at it.

    VEOGEN_BASE_URL, VEOGEN_API_TOKEN and VEOGEN_STORE, a new directory, are set for the duration of the test.
    """
    # In a store that lasts, a test would spend of its budgets, and find receipts of a sandbox that had the same port.
    store = {"VEOGEN_STORE": str(tmp_path / "veogen-store")}
    with Sandbox(speed=SPEED, tiny_media=True) as sandbox:
        for name, value in (sandbox.environment | store).items():
            monkeypatch.setenv(name, value)
        yield sandbox
