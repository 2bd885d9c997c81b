"""Whatever ends a stream into a directory, no file is left behind."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen.errors import (
    StoreUnavailable,
)
from prefect_veogen.store import open_store
from tests.support.stores import unfinished


class HeldThreads(ThreadPoolExecutor):
    """Threads that have accepted their work, but block until released."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.released = threading.Event(), threading.Event()

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        def held() -> Any:
            self.begun.set()
            self.released.wait()
            return work(*arguments, **keywords)

        return super().submit(held)


@pytest.mark.parametrize("step", ["write", "commit"])
async def test_a_cancelled_stream_into_a_directory_waits_for_the_thread_that_writes(step: str, tmp_path: Path) -> None:
    store, threads = open_store(str(tmp_path)), HeldThreads()
    writer = store.writer("assets/clip.mp4", "video/mp4")
    if step == "commit":
        await writer.write(b"clip")
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads)
    working = asyncio.create_task(writer.write(b"clip") if step == "write" else writer.commit())
    await loop.run_in_executor(ThreadPoolExecutor(1), threads.begun.wait)
    working.cancel()
    done, _ = await asyncio.wait([working], timeout=0.1)
    threads.released.set()
    await asyncio.gather(working, return_exceptions=True)
    await writer.abort()
    assert not done
    assert unfinished(store) == 0


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 3 MB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
async def test_a_stream_that_fills_the_disk_leaves_nothing_after_abort(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    writer = store.writer("assets/clip.mp4", "video/mp4")
    with pytest.raises(StoreUnavailable, match="could not be used"):
        for _ in range(5):
            await writer.write(bytes(1_000_123))
    with suppress(StoreUnavailable):
        await writer.abort()
    assert unfinished(store) == 0


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("step", ["create", "put"])
async def test_a_document_that_fills_the_disk_leaves_nothing(step: str, tmp_path: Path) -> None:
    store, body = open_store(str(tmp_path)), bytes(4_000_000)
    with pytest.raises(StoreUnavailable, match="could not be used"):
        await (store.create("one", body) if step == "create" else store.put("one", body, "text/plain"))
    assert unfinished(store) == 0
