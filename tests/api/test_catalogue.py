"""A model is requested once for all callers."""

from __future__ import annotations

import asyncio

from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session


async def test_concurrent_callers_and_later_ones_share_one_request_per_model(sandbox: Sandbox) -> None:
    async def get_all() -> set[str]:
        slugs = ["veo-3.1-fast", "gpt-4o-image"] * 10
        return {model.slug for model in await asyncio.gather(*map(open_session().catalogue.get_model, slugs))}

    assert await on_io(get_all()) == await on_io(get_all()) == {"veo-3.1-fast", "gpt-4o-image"}
    assert len(sandbox.requests) == 2
