"""The next request is the poll that resolves most, and pages that failed are left out for a while."""

from __future__ import annotations

import pytest

from prefect_veogen import Generation
from prefect_veogen.api.next_poll import Poll, PollChooser
from prefect_veogen.api.pending import NOT_LISTED, PendingGenerations
from prefect_veogen.models import Kind

POLL_SECONDS = {Kind.IMAGE: 3.0, Kind.VIDEO: 5.0, None: 3.0}


class Desk:
    """Pending generations and the chooser of their polls, at a time that stands still."""

    def __init__(self, images: int, videos: int) -> None:
        self.now = 1000.0
        self.pending = PendingGenerations(POLL_SECONDS, lambda: self.now)
        self.chooser = PollChooser(self.pending, lambda: self.now)
        kinds = [Kind.IMAGE] * images + [Kind.VIDEO] * videos
        self.added = [self.pending.add(Generation(id=f"{n}", type=kind)) for n, kind in enumerate(kinds)]

    def choose(self) -> Poll:
        return self.chooser.choose(self.pending.due(self.now), self.now)


def test_the_list_of_all_kinds_resolves_most() -> None:
    assert Desk(images=3, videos=2).choose() == Poll(None)


@pytest.mark.parametrize(("images", "videos", "kind"), [(3, 2, Kind.IMAGE), (2, 3, Kind.VIDEO)])
def test_where_that_list_shows_none_of_them_the_kind_with_most_comes_first(
    images: int, videos: int, kind: Kind
) -> None:
    desk = Desk(images, videos)
    for added in desk.added:
        desk.pending.set_position(added, None, NOT_LISTED)
    assert desk.choose() == Poll(kind)


def test_the_page_is_that_of_the_expected_position() -> None:
    desk = Desk(images=0, videos=1)
    desk.pending.set_position(desk.added[0], None, NOT_LISTED)
    desk.pending.set_position(desk.added[0], Kind.VIDEO, 230)
    assert desk.choose() == Poll(Kind.VIDEO, page=3)


def test_a_failed_page_is_left_out_until_its_backoff_has_passed_and_another_poll_has_succeeded() -> None:
    desk = Desk(images=1, videos=0)
    for page in (Poll(None), Poll(Kind.IMAGE)):
        desk.chooser.note_failed_page(page, pause=0)
    assert desk.choose() == Poll(single="0")
    desk.chooser.note_success(Poll(single="0"))
    assert desk.choose() == Poll(single="0")
    desk.now += 60
    assert desk.choose() in (Poll(None), Poll(Kind.IMAGE))


def test_single_polls_alternate_with_lists_that_others_wait_for() -> None:
    desk = Desk(images=2, videos=0)
    desk.now += 10
    desk.added[0].polled_at -= 1000
    desk.added[0].require_single_poll()
    assert [desk.choose().single for _ in range(4)] == ["0", None, "0", None]
