"""A sandbox whose clock stands still, and clients of its origins."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from prefect_veogen.sandbox import Sandbox
from tests.support.sandbox_client import client_of


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox with tiny media and no rate limit, in which time passes only by `advance`."""
    with Sandbox(speed=0, tiny_media=True, requests_per_minute=None) as running:
        yield running


@pytest.fixture
def api(sandbox: Sandbox) -> Iterator[httpx.Client]:
    """A client of the API, with its token."""
    with client_of(sandbox) as client:
        yield client


@pytest.fixture
def media() -> Iterator[httpx.Client]:
    """A client of the media host, without a token."""
    with httpx.Client(timeout=30) as client:
        yield client


@pytest.fixture
def control(sandbox: Sandbox) -> Iterator[httpx.Client]:
    """A client of the control routes."""
    with httpx.Client(base_url=sandbox.control_url) as client:
        yield client
