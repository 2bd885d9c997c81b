"""Many values in little memory: a campaign may have a hundred thousand rows."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from operator import eq
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")


class Packed(Sequence[Item], Generic[Item]):
    """A list which holds its items pickled: some hundred bytes each, where a request is some thousand."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._pickles: list[bytes] = []
        self.extend(items)

    def append(self, item: Item) -> None:
        """Add an item at the end."""
        self._pickles.append(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))

    def extend(self, items: Iterable[Item]) -> None:
        """Add items at the end."""
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return len(self._pickles)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [pickle.loads(packed) for packed in self._pickles[index]]  # noqa: S301 - its own pickles
        item: Item = pickle.loads(self._pickles[index])  # noqa: S301 - as above
        return item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment] # like a list
