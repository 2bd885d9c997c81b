"""Names of published copies: what is wrong with one is said so that following it literally is the end of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_veogen import GenerationRequest
from prefect_veogen.campaign.rows import Row, Rows
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import Kind
from prefect_veogen.tasks.slots import Option, Slot, check_kinds, check_names, check_template, published_name

DAY = datetime(2026, 11, 1, tzinfo=UTC)
ONE = [("light", "{day}")]
TWO = [("light", "{day}"), ("shell", "{day}")]
VARIANTS = [("light", "{day}"), ("light", "{day}.2")]
BOTH = [*VARIANTS, ("shell", "{day}")]


def slots_of(keys: list[tuple[str, str]], days: int = 1) -> list[Slot]:
    slots = []
    for moment in (DAY + timedelta(number) for number in range(days)):
        takes = [(identity, take.replace("{day}", f"{moment:%F}")) for identity, take in keys]
        rows = [Row(identity, GenerationRequest(model="m", prompt="x", take=take)) for identity, take in takes]
        slots.append(Slot(moment, f"daily-{moment:%F}", Rows(rows)))
    return slots


def refusal(option: Option, template: str, slots: list[Slot]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        check_template(option, template)
        check_names([(option, template)], slots)
    assert caught.value.next_step.startswith("Nothing was bought. ")
    return caught.value


@pytest.mark.parametrize(
    ("option", "template", "keys", "days", "put"),
    [
        ("publish_as", "day.png", TWO, 1, "Put {id} into publish_as,"),
        ("latest", "day.png", TWO, 3, "Put {id} into latest,"),
        ("publish_as", "{take}.png", TWO, 1, "Put {id} into publish_as,"),
        ("publish_as", "day.png", VARIANTS, 1, "Put {take} into publish_as,"),
        ("publish_as", "{id}{ext}", VARIANTS, 1, "Put {take} into publish_as,"),
        ("latest", "day{ext}", BOTH, 1, "Put {id} and {take} into latest,"),
        ("publish_as", "day.png", ONE, 3, "Put {scheduled:%F} into publish_as,"),
        ("publish_as", "{id}.png", TWO, 3, "Put {scheduled:%F} into publish_as,"),
        ("publish_as", "{scheduled:%Y}-{id}.png", ONE, 3, "Put {scheduled:%F} into publish_as,"),
        ("publish_as", "day{ext}", BOTH, 3, "Put {scheduled:%F} and {id} and {take} into publish_as,"),
        ("publish_as", "{scheduled:%d}", TWO, 3, "Put {id} into publish_as,"),
        ("publish_as", "x/{id}", [("light", "1"), ("light.json", "1")], 1, "Let the parts stand apart, and the ending"),
    ],
)
def test_two_copies_of_one_name_are_told_what_differs_between_them(
    option: Option, template: str, keys: list[tuple[str, str]], days: int, put: str
) -> None:
    slots = slots_of(keys, days)
    error = refusal(option, template, slots)
    assert "would both be published as" in error.message
    assert error.next_step.startswith(f"Nothing was bought. {put}")
    check_names([(option, error.next_step.split("as in ")[1].removesuffix("."))], slots)
    if put.startswith("Put"):
        named = re.findall(r"\{[^{}]+\}", put)
        check_names([(option, "/".join([*named, template]))], slots)


@pytest.mark.parametrize(
    ("publish_as", "latest", "ids"),
    [
        ("site/{id}{ext}", "site/latest-{id}{ext}", ["a", "latest-a"]),
        ("site/{id}{ext}", "site/latest-{id}{ext}", ["latest-a", "a"]),
        ("site/{id}", "site/{id}.json", ["a"]),
        ("site/{id}.json", "site/{id}", ["a"]),
    ],
)
def test_a_copy_of_the_slot_and_the_latest_one_never_share_a_name(publish_as: str, latest: str, ids: list[str]) -> None:
    slots = slots_of([(identity, "{day}") for identity in ids])
    with pytest.raises(
        ConfigurationError, match=r"by publish_as\b.* by latest\b|by latest\b.* by publish_as\b"
    ) as caught:
        check_names([("publish_as", publish_as), ("latest", latest)], slots)
    assert caught.value.next_step.startswith("Nothing was bought. ")
    other = caught.value.next_step.split("latest=")[1].strip("'.")
    check_names([("publish_as", publish_as), ("latest", other)], slots)


def test_the_same_copy_may_be_both_the_slots_and_the_latest_one() -> None:
    check_names([("publish_as", "site/{id}{ext}"), ("latest", "site/{id}{ext}")], slots_of(TWO))
    check_names([("publish_as", "{scheduled:%F}-{id}"), ("latest", "latest-{id}")], slots_of(TWO, 3))


@pytest.mark.parametrize("template", ["x/" + "y" * 246 + "{ext}", "x/{id}{ext}"])
def test_a_name_that_only_its_ending_makes_too_long_is_refused(template: str) -> None:
    error = refusal("publish_as", template, slots_of([("z" * 246, "1")]))
    assert "more than 250 bytes" in error.message


@pytest.mark.parametrize("template", ["assets/day.png", "../day.png", "/day.png", "a//b", ""])
@pytest.mark.parametrize("keys", [ONE, TWO, VARIANTS, BOTH])
@pytest.mark.parametrize("option", ["publish_as", "latest"])
def test_the_example_of_a_name_that_is_none_is_one_for_these_rows(
    option: Option, keys: list[tuple[str, str]], template: str
) -> None:
    slots = slots_of(keys)
    shown = refusal(option, template, slots).next_step.split("such as ")[1].split(", in none of")[0]
    check_template(option, shown)
    check_names([(option, shown)], slots)
    assert published_name(shown, DAY, *slots[0].rows[0].key, ".mp4").endswith(".mp4")


@pytest.mark.parametrize("identity", ["a{1}", ".hidden", "{take", "a\\b"])
def test_an_id_that_no_name_can_hold_is_told_to_be_the_reason(identity: str) -> None:
    error = refusal("publish_as", "x/{id}{ext}", slots_of([(identity, "1")]))
    assert error.message.startswith(f"The row {identity!r} can't be published as ")
    assert "Change the row's id" in error.next_step
    check_names([("publish_as", "x/day{ext}")], slots_of([(identity, "1")]))


def test_an_id_that_looks_like_a_placeholder_stays_what_it_is() -> None:
    assert published_name("{id}-{take}{ext}", DAY, "{take}", "7", ".png") == "{take}-7.png"


@pytest.mark.parametrize(
    ("template", "right"),
    [
        ("daily/{scheduled:%F}.{ext}", "daily/{scheduled:%F}{ext}"),
        ("latest.{ext}", "latest{ext}"),
    ],
)
@pytest.mark.parametrize("option", ["publish_as", "latest"])
def test_a_dot_before_the_ending_is_refused_with_the_right_spelling(option: Option, template: str, right: str) -> None:
    error = refusal(option, template, slots_of(ONE))
    assert error.next_step == f"Nothing was bought. Write {option}={right!r}."
    check_template(option, right)


@pytest.mark.parametrize(
    ("template", "motion", "kinds", "right"),
    [
        ("daily/{scheduled:%Y.%m.%d}.mp4", False, {"m": Kind.IMAGE}, "daily/{scheduled:%Y.%m.%d}{ext}"),
        ("latest.png", True, {"m": Kind.IMAGE}, "latest{ext}"),
        ("latest.png", True, {}, "latest{ext}"),
        ("{id}.webp", False, {"m": Kind.VIDEO}, "{id}{ext}"),
    ],
)
@pytest.mark.parametrize("option", ["publish_as", "latest"])
def test_a_name_of_another_kind_of_media_is_refused_with_one_for_all(
    option: Option, template: str, motion: bool, kinds: dict[str, Kind], right: str
) -> None:
    row = Row("a", GenerationRequest(model="m", prompt="x"), {"prompt": "y"} if motion else None)
    slots = [Slot(DAY, "daily", Rows([row]))]
    with pytest.raises(ConfigurationError, match=r"^row 1 \(a\) makes a ") as caught:
        check_kinds(option, template, slots, kinds)
    assert caught.value.next_step.startswith(f"Nothing was bought. Write {option}={right!r}: ")
    check_kinds(option, right, slots, kinds)


@pytest.mark.parametrize("template", ["day.mp4", "day.png", "day", "day{ext}", "day.txt", "{id}"])
def test_what_a_model_makes_that_nobody_knows_is_no_reason_to_refuse(template: str) -> None:
    check_kinds("latest", template, slots_of(ONE), {})


@pytest.mark.parametrize(
    "template", ["x/{day}{ext}", "{nope}.png", "{", "{id", "{scheduled:%%}.png", "{scheduled:}.png", "{scheduled}{ext}"]
)
@pytest.mark.parametrize("option", ["publish_as", "latest"])
def test_braces_that_hold_something_else_are_refused_by_the_names_of_all_that_they_may(
    option: Option, template: str
) -> None:
    error = refusal(option, template, slots_of(ONE))
    assert error.message == f"{option}={template!r} can't be filled in"
    named: Any = re.findall(r"\{[^{}]+\}", error.next_step)
    assert named == ["{id}", "{take}", "{ext}", "{scheduled:%F}"]
    check_template(option, "".join(named))
