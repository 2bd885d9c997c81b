"""One event loop per process, in a thread of its own, where all requests are made.

Prefect runs async tasks in many loops: the flow's, and one per `.submit()`ted task. One rate limit, one watcher and one
connection pool for the whole process need one loop. Whoever awaits `on_io` gets the result in his own loop; his
context variables (Prefect's run context, logging) come along, and cancelling the await cancels the work.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Hashable, Iterable

Close = Callable[[], Coroutine[Any, Any, None]]
Item = TypeVar("Item")
Result = TypeVar("Result")

# S3 calls block a thread each; they wait for the network, so more than the default of a few per core is right.
_STORE_THREADS = 32
_PUTTING_AWAY_SECONDS = 10.0
_CLOSING_SECONDS = 2.0


class _IOThread:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="veogen-store"))
        self.open: set[Close] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, name="veogen-io", daemon=True)
        self._thread.start()
        atexit.register(self.end)

    def close(self, close: Close) -> None:
        """Begin to close one thing; called from any thread, also by the garbage collector in the middle of anything."""
        # A forked process must not speak on its parent's connections, not even to end them.
        if os.getpid() == self.pid:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it everything
                self.loop.call_soon_threadsafe(self._begin_to_close, close)

    def _begin_to_close(self, close: Close) -> None:
        if close in self.open:
            self.open.remove(close)
            task = self.loop.create_task(close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def end(self) -> None:
        """Close everything, and the loop."""
        if os.getpid() != self.pid:
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._close_all(), self.loop).result(_CLOSING_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CLOSING_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()

    async def _close_all(self) -> None:
        working = asyncio.all_tasks() - {asyncio.current_task()} - self._closing
        for task in working:
            task.cancel()
        await asyncio.gather(*working, *self._closing, *(close() for close in self.open), return_exceptions=True)
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
    """Have something closed on the I/O loop when the process ends, or as soon as nobody knows its owner any more."""
    thread = _io_thread()
    thread.open.add(close)
    if owner is not None:
        weakref.finalize(owner, thread.close, close).atexit = False


def close_now(close: Close) -> None:
    """Begin to close, without waiting for it, what was to be closed at the end."""
    _io_thread().close(close)


async def on_io(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`, run on the I/O loop.

    Whoever is cancelled meanwhile leaves when the work has put away what it held: receipts, uploads, waits.
    """
    loop = io_loop()
    if asyncio.get_running_loop() is loop:
        return await work
    over: Future[None] = Future()
    begun: list[asyncio.Task[Result]] = []

    def begin() -> None:
        begun.append(loop.create_task(work))
        begun[0].add_done_callback(lambda _: over.set_result(None))

    def stop() -> None:
        begun[0].cancel()

    loop.call_soon_threadsafe(begin)
    ending = asyncio.wrap_future(over)
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        loop.call_soon_threadsafe(stop)
        await _over_or_late(ending)
        raise
    return begun[0].result()


async def _over_or_late(ending: asyncio.Future[None]) -> None:
    """Return when the work is over, or too late, however often we are cancelled meanwhile: Prefect's timeouts go on."""
    loop = asyncio.get_running_loop()
    late_at = loop.time() + _PUTTING_AWAY_SECONDS
    while not ending.done() and loop.time() < late_at:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([ending], timeout=late_at - loop.time())


class Places:
    """So many at once, per event loop: `async with places():`."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()

    def __call__(self) -> asyncio.Semaphore:
        """Return the running loop's places."""
        return self._of.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._count))


class SharedReads:
    """Lets callers who ask while a reading is under way share the next one; belongs to one event loop.

    A reading counts only for those who asked before it began, and dozens may ask at once.
    """

    def __init__(self) -> None:
        self._count = itertools.count()
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._latest: dict[Hashable, tuple[int, asyncio.Future[Any]]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[Result]]) -> Result:
        """Return, or raise, what a reading brings that began after this call."""
        asked = next(self._count)
        async with self._locks.setdefault(key, asyncio.Lock()):
            began, outcome = self._latest.get(key, (-1, None))
            if outcome is None or began < asked:
                outcome = asyncio.get_running_loop().create_future()
                began = next(self._count)
                try:
                    outcome.set_result(await read())
                except Exception as error:  # noqa: BLE001 - whatever it is, all who asked have to hear of it
                    outcome.set_exception(error)
                self._latest[key] = (began, outcome)
        if not any(lock.locked() for lock in self._locks.values()):
            self._locks.clear()
            self._latest.clear()
        result: Result = await outcome
        return result


async def uninterrupted(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the work's result; who is cancelled meanwhile waits for its end too, since a thread can't be stopped."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def each(items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], at_once: int = 16) -> list[Result]:
    """Return what the work makes of each item, in their order, so many at once; the first failure ends all the work."""
    waiting = enumerate(items)
    made: dict[int, Result] = {}

    async def worker() -> None:
        for number, item in waiting:
            made[number] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [made[number] for number in sorted(made)]
