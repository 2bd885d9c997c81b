"""When the poll of a pending generation is due, and where in the lists it is expected."""

from __future__ import annotations

from prefect_veogen import Generation
from prefect_veogen.api.pending import PendingGenerations
from prefect_veogen.models import Kind

POLL_SECONDS = {Kind.IMAGE: 3.0, Kind.VIDEO: 5.0, None: 3.0}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def video(number: int) -> Generation:
    return Generation(id=f"video-{number}", type=Kind.VIDEO, model="veo-3.1-fast")


def test_a_generation_of_unknown_age_is_due_at_once() -> None:
    pending = PendingGenerations(POLL_SECONDS, Clock())
    added = pending.add(video(1))
    assert pending.due(1000.0) == [added]


def test_all_of_a_kind_are_due_at_the_same_ticks() -> None:
    clock = Clock()
    pending = PendingGenerations(POLL_SECONDS, clock)
    for number in range(3):
        clock.now += 0.7
        pending.note_purchase(video(number))
        pending.add(video(number))
    assert {added.due_at for added in pending} == {1010.0}


def test_no_poll_is_due_before_the_shortest_known_duration_is_nearly_over() -> None:
    clock = Clock()
    pending = PendingGenerations(POLL_SECONDS, clock)
    pending.note_purchase(video(1))
    first = pending.add(video(1))
    clock.now += 100
    pending.note_completion(first)
    pending.note_purchase(video(2))
    assert pending.add(video(2)).due_at == clock.now + 0.8 * 100


def test_every_purchase_moves_the_older_ones_down_the_lists_of_its_kind() -> None:
    pending = PendingGenerations(POLL_SECONDS, Clock())
    pending.note_purchase(video(1))
    added = pending.add(video(1))
    pending.note_purchase(Generation(id="image", type=Kind.IMAGE))
    pending.note_purchase(video(2))
    assert (pending.position(added, None), pending.position(added, Kind.VIDEO)) == (2, 1)


def test_purchases_without_a_waiter_are_forgotten_in_the_end() -> None:
    pending = PendingGenerations(POLL_SECONDS, Clock())
    for number in range(3000):
        pending.note_purchase(video(number))
    assert len(pending._bought_at) <= 1000
    assert "video-2999" in pending._bought_at


def test_a_failed_poll_is_repeated_later_each_time_up_to_a_limit() -> None:
    pending = PendingGenerations(POLL_SECONDS, Clock())
    waits = [pending.retry_at(Kind.VIDEO, failures, 0.5) - 1000 for failures in range(1, 8)]
    assert waits == [10.5, 20.5, 40.5, 80.5, 160.5, 160.5, 160.5]
