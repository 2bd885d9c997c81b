"""What a process shares: one value per key, kept for as long as its owner lives."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Registry(Generic[Key, Value]):
    """One value per owner and key, made on first use.

    The owner is an event loop, or an object that the values belong to. They go away with it: with a loop when it is
    closed, with an object when it is garbage-collected, so they must not keep that one alive. A forked process starts
    with none; its parent's are kept untouched, for even their destructors would act on the parent's connections.
    """

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[object, dict[tuple[int, Key], Value]] = weakref.WeakKeyDictionary()

    def get(self, key: Key, make: Callable[[], Value], *, owner: object | None = None) -> Value:
        """Return the value of a key, made if there is none; its owner is the running event loop unless stated.

        Safe from any thread and without a lock, which a fork could leave locked for ever: of two values that are made
        at the same time, the one that is entered first is returned to both.
        """
        owner = asyncio.get_running_loop() if owner is None else owner
        if owner not in self._values:
            self._forget_closed_loops()
        values = self._values.setdefault(owner, {})
        try:
            return values[os.getpid(), key]
        except KeyError:
            return values.setdefault((os.getpid(), key), make())

    def forget(self, key: Key, *, owner: object | None = None) -> None:
        """Remove the value of a key, if there is one: the next call makes another."""
        owner = asyncio.get_running_loop() if owner is None else owner
        self._values.get(owner, {}).pop((os.getpid(), key), None)

    def _forget_closed_loops(self) -> None:
        # What has waited in a loop refers to it, so that the loop alone would never be garbage-collected.
        for reference in self._values.keyrefs():
            owner = reference()
            if isinstance(owner, asyncio.AbstractEventLoop) and owner.is_closed():
                self._values.pop(owner, None)
