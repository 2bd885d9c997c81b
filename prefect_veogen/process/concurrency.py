"""How concurrent work is bounded, shared, protected from cancellation and spaced out after failures."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_veogen.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable

Item = TypeVar("Item")
Result = TypeVar("Result")


class ConcurrencyLimit:
    """A semaphore per event loop: `async with limit():`."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._semaphores = Registry[None, asyncio.Semaphore]()

    def __call__(self) -> asyncio.Semaphore:
        """Return the running loop's semaphore."""
        return self._semaphores.get(None, lambda: asyncio.Semaphore(self._count))


class SharedReads:
    """Lets callers that ask during a read share the next one; belongs to one event loop.

    A read counts only for callers that asked before it began, and dozens may ask at once.
    """

    def __init__(self) -> None:
        self._count = itertools.count()
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._latest: dict[Hashable, tuple[int, asyncio.Future[Any]]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result, or raise the error, of a read that began after this call."""
        asked = next(self._count)
        async with self._locks.setdefault(key, asyncio.Lock()):
            began, outcome = self._latest.get(key, (-1, None))
            if outcome is None or began < asked:
                outcome = asyncio.get_running_loop().create_future()
                began = next(self._count)
                try:
                    outcome.set_result(await read())
                except Exception as error:  # noqa: BLE001 - every caller that shares the read gets its error
                    outcome.set_exception(error)
                self._latest[key] = (began, outcome)
        if not any(lock.locked() for lock in self._locks.values()):
            self._locks.clear()
            self._latest.clear()
        result: Result = await outcome
        return result


async def run_uninterrupted(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the work's result; on cancellation wait for its end before re-raising, since a thread can't be stopped."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def map_bounded(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], concurrency: int = 16
) -> list[Result]:
    """Return the results of the work on each item, in order, with bounded concurrency; the first failure stops it."""
    remaining = enumerate(items)
    results: dict[int, Result] = {}

    async def run_worker() -> None:
        for number, item in remaining:
            results[number] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(run_worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [results[number] for number in sorted(results)]


def backoff_seconds(failures: int, *, first: float = 0.5, longest: float = 15.0) -> float:
    """Return the pause after that many failures in a row: doubled each time, up to the longest."""
    return min(first * 2.0 ** min(max(failures - 1, 0), 62), longest)
