"""One pass from source to store: nothing is left behind, and little memory used."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from prefect_veogen.api.http import MediaResponse
from prefect_veogen.download.transfer import Transfer
from prefect_veogen.errors import StoreRefused
from prefect_veogen.models import Kind
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import S3Store
from prefect_veogen.store.s3_writer import PART_BYTES
from tests.support.deliveries import (
    CLIP_BYTES,
    LARGE,
    MIB,
    PICTURE,
    bought,
    delivered,
    elsewhere,
    leftovers,
)
from tests.support.environments import s3_environment
from tests.support.servers import Reply, Request, relayed, serving


async def received(transfer: Transfer, chunks: AsyncIterator[bytes]) -> None:
    try:
        await transfer.receive(MediaResponse(httpx.Response(200, content=chunks)))
    except BaseException:
        await transfer.abort()
        raise


async def test_a_transfer_cancelled_while_its_upload_is_created_leaves_none(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    session, loop, freed, occupied = open_session(), asyncio.get_running_loop(), threading.Event(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))

    async def chunks() -> AsyncIterator[bytes]:
        yield CLIP_BYTES[:MIB]
        for _ in range(PART_BYTES // MIB - 1):
            yield bytes(MIB)
        # The chunk that fills the first part is being taken: both its judging and its writing wait for the thread.
        loop.run_in_executor(None, freed.wait)
        occupied.set()
        await asyncio.Event().wait()

    transfer = Transfer(session, Kind.VIDEO, lambda extension: f"assets/x{extension}", "rejected/x")
    receiving = asyncio.create_task(received(transfer, chunks()))
    await occupied.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.wait([receiving], timeout=0.1)
    freed.set()
    await asyncio.gather(receiving, return_exceptions=True)
    await asyncio.to_thread(bool)
    assert leftovers(session.store) == 0


async def test_a_store_that_fails_at_the_end_leaves_no_upload(
    sandbox: Sandbox, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(request: Request) -> Reply:
        if request.method == "POST" and "uploadId" in request.path:
            return Reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        return relayed(s3_server, request)

    body = CLIP_BYTES + LARGE.to_bytes(4, "big") + b"free" + bytes(LARGE - 8)
    with serving(refusing) as proxy, serving(lambda request: Reply(200, {}, body)) as host:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
        with pytest.raises(StoreRefused, match="s3:PutObject"):
            await delivered(elsewhere(f"{host}/x.mp4"))
        assert leftovers(open_session().store) == 0


# ---------------------------------------------------------------- a gigabyte


@pytest.fixture
def s3_elsewhere() -> Iterator[str]:
    """An S3 server in a process of its own, so that its memory isn't ours."""
    code = "import time; from moto.server import ThreadedMotoServer as S; s = S('127.0.0.1', 0); s.start(); "
    code += "print(s.get_host_and_port()[1], flush=True); time.sleep(600)"
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    try:
        lines = (line for line in server.stdout if line.strip().isdigit())
        yield f"http://127.0.0.1:{next(lines).strip()}"
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["directory", "bucket"])
async def test_a_gigabyte_passes_through_in_little_memory(
    kind: str, sandbox: Sandbox, s3_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "bucket":
        for name, value in s3_environment(s3_elsewhere).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VEOGEN_STORE", "s3://large/media")
        store = open_session().store
        assert isinstance(store, S3Store)
        store.client().create_bucket(Bucket="large")
    await delivered(await bought(sandbox, PICTURE))
    generation = await bought(sandbox)
    sandbox.fault("media-huge", size_bytes=1024**3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asset = (await delivered(generation)).asset
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert asset.size == 1024**3
    assert grown < 100 * 1024, f"{grown / 1024:.0f} MiB"
