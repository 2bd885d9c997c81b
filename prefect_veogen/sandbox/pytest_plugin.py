"""The pytest fixture ``veogen_sandbox``: a fresh, fast sandbox for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prefect_veogen.sandbox.server import Sandbox

SPEED = 100.0


@pytest.fixture
def veogen_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Run a sandbox for this test, at 100 times the speed and with tiny media; the environment points at it.

    VEOGEN_BASE_URL and VEOGEN_API_TOKEN are set for the duration of the test.
    """
    with Sandbox(speed=SPEED, tiny_media=True) as sandbox:
        for name, value in sandbox.environment.items():
            monkeypatch.setenv(name, value)
        yield sandbox
