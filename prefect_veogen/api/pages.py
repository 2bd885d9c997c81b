"""Reading a list of the API through its pages."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol, TypeVar

from prefect_veogen.api.client import MAX_PER_PAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prefect_veogen.api.responses import Page

Item = TypeVar("Item")


class ReadPage(Protocol[Item]):
    """A method of the client that returns one page of a list."""

    def __call__(self, *, page: int) -> Awaitable[Page[Item]]:
        """Return the page of that number, from 1 on."""


async def read_pages(
    read: ReadPage[Item],
    name_of: Callable[[Item], str],
    is_past: Callable[[Sequence[Item]], bool] = lambda _: False,
) -> list[Item]:
    """Return the items of a list, each once, as its last page showed it: one request per page.

    The end is where no page follows, where a page shows nothing new (not all lists are documented to have pages, and a
    service that ignores the number shows the same ones again), or where `is_past` says so of a page's items.
    """
    found: dict[str, Item] = {}
    for number in itertools.count(1):
        page = await read(page=number)
        is_new = any(name_of(item) not in found for item in page.items)
        found.update((name_of(item), item) for item in page.items)
        # Nor is it documented that a page says whether there are more.
        may_go_on = page.has_more or len(page.items) >= MAX_PER_PAGE
        if not may_go_on or not is_new or is_past(page.items):
            break
    return list(found.values())
