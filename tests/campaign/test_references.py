"""What uses other rows' pictures comes after them."""

from __future__ import annotations

import time

import pytest

from prefect_veogen.campaign.options import RowOptions
from prefect_veogen.campaign.reading import rows_of
from prefect_veogen.campaign.records import read_records
from prefect_veogen.campaign.references import heroes_first, placeholder_image, reference_problems, with_pictures


def test_rows_come_after_those_whose_pictures_they_use_and_else_in_order() -> None:
    uses = {"a": ("c",), "c": ("d",), "e": ("a", "b")}
    assert [list("abcde")[number] for number in heroes_first(list("abcde"), uses)] == ["b", "d", "c", "a", "e"]
    assert heroes_first(["a", "b"], {}) == range(2)


async def test_known_pictures_take_the_places_of_the_rows_in_order() -> None:
    images = ["row:a", "https://example.com/x.png", "row:b"]
    records = [{"id": name, "model": "m", "prompt": name} for name in "ab"]
    rows = rows_of(
        await read_records([*records, {"id": "c", "model": "m", "prompt": "c", "image_urls": images}]), RowOptions()
    )
    picture = placeholder_image("made")
    request = with_pictures(rows[2].request, {"b": picture})
    assert request.image_urls is not None
    assert request.image_urls[1:] == ("https://example.com/x.png", picture)
    assert with_pictures(rows[0].request, {"b": picture}) is not None


@pytest.mark.parametrize("missing", ["product-hreo", "product-hreo-{}"])
def test_a_typo_in_thousands_of_rows_is_told_of_each_in_a_moment_with_a_hint_for_the_first(missing: str) -> None:
    uses = {f"product-{number}": (missing.format(number),) for number in range(3000)}
    started = time.monotonic()
    problems = [*reference_problems(uses, {*uses, "product-hero"})]
    assert time.monotonic() - started < 5  # it was minutes
    assert [identity for identity, _ in problems] == [*uses]
    assert problems[0][1].partition("; ")[0] == f"row:{missing.format(0)}: there is no row {missing.format(0)!r}"
    assert problems[0][1].endswith("; nearest: product-hero")


def test_hints_of_one_typo_are_the_same_in_every_row() -> None:
    problems = [*reference_problems({"a": ("hreo",), "b": ("hreo",)}, {"a", "b", "hero"})]
    assert problems == [(name, "row:hreo: there is no row 'hreo'; nearest: hero") for name in "ab"]
