"""Labels: a caller's own words, kept as they are or refused by name, and the caps that go by them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import checked_labels


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, {}),
        ({}, {}),
        ({"project": "spring"}, {"project": "spring"}),
        ({"0.x_y-z": "Überschrift: 50 % *"}, {"0.x_y-z": "Überschrift: 50 % *"}),
        ({"number": 7, "share": 0.5, "usd": Decimal("1E+2")}, {"number": "7", "share": "0.5", "usd": "100"}),
        ({"a" * 63: "x" * 200}, {"a" * 63: "x" * 200}),
        ({f"l{number}": "x" for number in range(32)}, {f"l{number}": "x" for number in range(32)}),
    ],
)
def test_what_can_be_a_label_is_kept_as_text(given: Any, kept: dict[str, str]) -> None:
    assert checked_labels(given) == kept
    assert checked_labels(checked_labels(given)) == kept


@pytest.mark.parametrize("name", ["", "Project", "-a", ".a", "_a", "a b", "a:b", "ü", "a" * 64, "a\n", 7, None])
def test_a_name_that_is_none_is_refused_with_the_rule(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"name must be 1 to 63 of a-z(?s:.*)Nothing was bought") as caught:
        checked_labels({name: "x"})
    assert repr(name)[:12] in caught.value.message


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("", "blank"),
        ("  ", "blank"),
        (" spring", "begin or end with a space"),
        ("spring\n", "begin or end with a space"),
        ("a\nb", "one line"),
        ("a\u2028b", "one line"),
        ("x" * 201, "at most 200"),
        ("a\x00b", "control character"),
        ("\ud800", "half a character"),
        (True, "text or a number"),
        (None, "text or a number"),
        (["spring"], "text or a number"),
        (float("nan"), "text or a number"),
        (Decimal("sNaN"), "text or a number"),
        (float("inf"), "text or a number"),
    ],
)
def test_a_value_that_is_none_is_refused_with_the_rule(value: Any, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"'project': a label's value .*{rule}"):
        checked_labels({"project": value})


def test_a_number_of_more_digits_than_python_shows_is_refused_too() -> None:
    with pytest.raises(ConfigurationError, match="at most 200 characters"):
        checked_labels({"project": 10**5000})


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"'Team'.*; 'project'.*"):
        checked_labels({"Team": "x", "good": "x", "project": ""})


def test_too_many_and_what_is_no_mapping_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="33 of them, and at most 32"):
        checked_labels({f"l{number}": "x" for number in range(33)})
    with pytest.raises(ConfigurationError, match="they are a str"):
        checked_labels("project=spring")  # type: ignore[arg-type]


def test_the_signature_of_a_link_in_place_of_a_name_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        checked_labels({"https://x.example/a?sig=secret": "x"})
    assert "secret" not in str(caught.value)


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.integers(), st.floats(), st.booleans())))
def test_whatever_is_given_becomes_text_or_is_refused(labels: dict[str, Any]) -> None:
    try:
        kept = checked_labels(labels)
    except ConfigurationError:
        return
    assert kept.keys() == labels.keys()
    assert all(isinstance(value, str) for value in kept.values())
    assert all(value.strip() == value != "" for value in kept.values())
