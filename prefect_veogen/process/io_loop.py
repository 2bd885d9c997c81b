"""One event loop per process, in a thread of its own, where all requests are made.

Prefect runs async tasks in many loops: the flow's, and one per `.submit()`ted task. One rate limiter, one poller and
one connection pool for the whole process need one loop. A caller of `on_io` gets the result in its own loop; its
context variables (Prefect's run context, logging) are copied to the work, and cancelling the await cancels the work.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Close = Callable[[], Coroutine[Any, Any, None]]
Result = TypeVar("Result")

# Each S3 call blocks a thread while it waits for the network, so the default of a few threads per core is too small.
_STORE_THREADS = 32
_CLEANUP_SECONDS = 10.0
_CLOSE_SECONDS = 2.0


class _IOThread:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="veogen-store"))
        self.close_callbacks: set[Close] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, name="veogen-io", daemon=True)
        self._thread.start()
        atexit.register(self.shut_down)

    def close(self, close: Close) -> None:
        """Start a close callback; safe from any thread, and from the garbage collector at any point."""
        # A forked process must not write to its parent's connections, not even to close them.
        if os.getpid() == self.pid:
            with contextlib.suppress(RuntimeError):  # the loop is closed already, and everything with it
                self.loop.call_soon_threadsafe(self._start_close, close)

    def _start_close(self, close: Close) -> None:
        if close in self.close_callbacks:
            self.close_callbacks.remove(close)
            task = self.loop.create_task(close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def shut_down(self) -> None:
        """Run all close callbacks, then stop and close the loop."""
        if os.getpid() != self.pid:
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._close_all(), self.loop).result(_CLOSE_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()

    async def _close_all(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()} - self._closing
        for task in running:
            task.cancel()
        await asyncio.gather(
            *running, *self._closing, *(close() for close in self.close_callbacks), return_exceptions=True
        )
        await self.loop.shutdown_asyncgens()


_lock = threading.Lock()
_thread: _IOThread | None = None


def io_loop() -> asyncio.AbstractEventLoop:
    """Return the process's I/O loop, started on first use and anew after a fork."""
    return _io_thread().loop


def _io_thread() -> _IOThread:
    global _thread  # noqa: PLW0603 - one per process is the point
    with _lock:
        if _thread is None or _thread.pid != os.getpid():
            _thread = _IOThread()
        return _thread


def close_at_end(close: Close, *, owner: object | None = None) -> None:
    """Register a close callback, run on the I/O loop at exit or when its owner is garbage-collected."""
    thread = _io_thread()
    thread.close_callbacks.add(close)
    if owner is not None:
        weakref.finalize(owner, thread.close, close).atexit = False


def close_now(close: Close) -> None:
    """Start a callback registered with `close_at_end`, without waiting for it."""
    _io_thread().close(close)


async def on_io(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`, run on the I/O loop.

    On cancellation the work is cancelled too, and waited for: it releases receipts, uploads and waits before this
    re-raises.
    """
    loop = io_loop()
    if asyncio.get_running_loop() is loop:
        return await work
    done: Future[None] = Future()
    started: list[asyncio.Task[Result]] = []

    def start() -> None:
        started.append(loop.create_task(work))
        started[0].add_done_callback(lambda _: done.set_result(None))

    def cancel() -> None:
        started[0].cancel()

    loop.call_soon_threadsafe(start)
    end = asyncio.wrap_future(done)
    try:
        await asyncio.shield(end)
    except asyncio.CancelledError:
        loop.call_soon_threadsafe(cancel)
        await _wait_for_cleanup(end)
        raise
    return started[0].result()


def wait_on_io(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`, run on the I/O loop, to a caller without an event loop; blocks its thread."""
    return asyncio.run_coroutine_threadsafe(work, io_loop()).result()


async def _wait_for_cleanup(end: asyncio.Future[None]) -> None:
    """Return when the work has ended, or after a timeout; further cancellations (Prefect repeats them) are ignored."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CLEANUP_SECONDS
    while not end.done() and loop.time() < deadline:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([end], timeout=deadline - loop.time())
