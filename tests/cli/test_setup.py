"""`setup`: what a Prefect server needs, made once and again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from tests.support.commands import Run, process


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
