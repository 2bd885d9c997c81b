"""What is in doubt stays so."""

from __future__ import annotations

import pytest

from prefect_veogen.sandbox import Sandbox


@pytest.fixture
def doubt_never_ends(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a purchase in doubt until it is found or decided by a person."""
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
