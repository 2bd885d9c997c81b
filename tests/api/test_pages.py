"""A list is read through its pages to its end, each page once, however little the service says of pages."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_veogen.api.client import MAX_PER_PAGE
from prefect_veogen.api.pages import read_pages
from prefect_veogen.api.responses import Page


class Listing:
    """A list of names in pages; one that ignores the number shows its first page again and again."""

    def __init__(self, *pages: Sequence[str], states_more: bool = True, ignores_number: bool = False) -> None:
        self.pages = pages
        self.read: list[int] = []
        self._states_more = states_more
        self._ignores_number = ignores_number

    async def __call__(self, *, page: int) -> Page[str]:
        self.read.append(page)
        shown = 1 if self._ignores_number else page
        items = self.pages[shown - 1] if shown <= len(self.pages) else ()
        return Page(tuple(items), has_more=self._states_more and shown < len(self.pages))


FULL = [f"name-{number}" for number in range(MAX_PER_PAGE)]


async def test_all_pages_are_read_and_what_moved_down_a_page_is_returned_once() -> None:
    listing = Listing("abc", "cde", "f")
    assert await read_pages(listing, str) == [*"abcdef"]
    assert listing.read == [1, 2, 3]


async def test_a_full_page_is_followed_even_if_the_service_states_no_more() -> None:
    listing = Listing(FULL, ["last"], states_more=False)
    assert await read_pages(listing, str) == [*FULL, "last"]


async def test_a_service_that_ignores_the_number_is_not_read_for_ever() -> None:
    listing = Listing("abc", "def", ignores_number=True)
    assert await read_pages(listing, str) == [*"abc"]
    assert listing.read == [1, 2]


async def test_pages_past_the_wanted_ones_are_not_requested() -> None:
    listing = Listing("abc", "def", "ghi")
    assert await read_pages(listing, str, lambda items: "e" in items) == [*"abcdef"]
    assert listing.read == [1, 2]


async def test_an_empty_list_is_one_request() -> None:
    listing = Listing()
    assert await read_pages(listing, str) == []
    assert listing.read == [1]
