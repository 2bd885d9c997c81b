"""Steps: what they give, engine or not, when nothing had to be paid."""

from __future__ import annotations

import pytest
from prefect import task

from prefect_veogen import Generation, GenerationRequest, submit_generation
from prefect_veogen.sandbox import Sandbox

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_server")]

CAT = GenerationRequest(model="gpt-4o-image", prompt="a cat")


async def test_called_without_the_engine_a_step_gives_the_value_of_what_was_bought_before(sandbox: Sandbox) -> None:
    @task
    async def own_task() -> Generation:
        return await submit_generation.fn(CAT)

    bought = await submit_generation(CAT)
    assert await submit_generation.fn(CAT) == await submit_generation(CAT) == await own_task()
    assert (await submit_generation.fn(CAT)).id == bought.id
