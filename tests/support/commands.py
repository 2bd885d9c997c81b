"""The commands of `prefect-veogen`, run in this process or in one of their own, and what they find."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_veogen.errors import UnknownSubmission
from prefect_veogen.models import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import Purchase, buy
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session

COMMANDS = (
    "demo",
    "models",
    "balance",
    "plan",
    "receipts",
    "sweep",
    "reconcile",
    "costs",
    "setup",
    "deploy",
    "doctor",
    "explain",
)
FOX = GenerationRequest(model="gpt-4o-image", prompt="a red fox")

Run = Callable[..., tuple[int, str, str]]


def bearer(sandbox: Sandbox) -> dict[str, str]:
    return {"Authorization": f"Bearer {sandbox.token}"}


def process(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, without a terminal and with an empty home."""
    home = Path.cwd() / "home"
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "prefect_veogen.cli", *words],
        env={**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def bought(request: GenerationRequest = FOX) -> Purchase:
    return asyncio.run(on_io(buy(open_session(), request)))


def lost(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, request: GenerationRequest = FOX) -> str:
    """Leave a purchase behind whose response was lost and which the service doesn't list; return its receipt's key."""
    monkeypatch.setenv("VEOGEN_IN_DOUBT_SECONDS", "never")
    sandbox.fault("lost-answer-before-charge")
    with pytest.raises(UnknownSubmission) as caught:
        bought(request)
    assert caught.value.receipt is not None
    return caught.value.receipt
