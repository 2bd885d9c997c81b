"""The drawn tree of errors is the whole tree, and every error reaches another process with all it knows."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from prefect_veogen import errors
from prefect_veogen.cli.explain import read_entries
from prefect_veogen.errors import InvalidManifest, InvalidRequest, Problem, VeogenError

FACTS: dict[str, Any] = {
    "retry_after_seconds": 7.5,
    "required_usd": Decimal("0.30"),
    "balance_usd": Decimal("0.05"),
    "wanted_usd": Decimal("0.90"),
    "left_usd": Decimal("0.10"),
    "cap_usd": Decimal(5),
    "generation_id": "gen_1",
    "receipt": "v1-a-b-take-1",
    "candidates": ("gen_1", "gen_2"),
    "kept_at": "s3://bucket/rejected/gen_1",
    "setting": "VEOGEN_MAX_ASSET_BYTES",
    "next_step": "Do this.",
    "http_status": 418,
    "service_text": "I am a teapot",
}


def public_errors() -> list[type[VeogenError]]:
    found = [thing for _, thing in inspect.getmembers(errors, inspect.isclass) if issubclass(thing, VeogenError)]
    return [error for error in found if not error.__name__.startswith("_")]


def with_all_facts(kind: type[VeogenError]) -> VeogenError:
    """Make an error with every fact that it or a parent of its knows."""
    known: set[str] = set()
    for parent in kind.__mro__:
        if issubclass(parent, VeogenError) and "__init__" in parent.__dict__:
            known |= set(inspect.signature(parent).parameters) & set(FACTS)
    if issubclass(kind, InvalidRequest):
        return kind([Problem("style", [1], "is wrong", ("a",), "a")], **{name: FACTS[name] for name in known})
    if issubclass(kind, InvalidManifest):
        return kind(["row 1: wrong"], **{name: FACTS[name] for name in known})
    return kind("It happened", **{name: FACTS[name] for name in known})


def is_a(kind: type[VeogenError], name: str) -> bool:
    return name in (parent.__name__ for parent in kind.__mro__)


def drawn_tree() -> dict[str, str | None]:
    """Return each name of the drawing with the name that stands above it."""
    tree: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"((?:│   |    )*(?:├── |└── )?)(\w+)(?: {2,}\S|$)", line):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            tree[match[2]] = above[depth - 1] if depth else None
    return tree


def nearest_public_parent(kind: type[VeogenError]) -> str | None:
    parents = [parent for parent in kind.__mro__[1:] if issubclass(parent, VeogenError)]
    return next((parent.__name__ for parent in parents if not parent.__name__.startswith("_")), None)


def test_the_drawing_shows_every_error_under_its_parent_and_nothing_else() -> None:
    assert drawn_tree() == {kind.__name__: nearest_public_parent(kind) for kind in public_errors()}


def test_every_error_says_what_to_do_by_standing_under_one_of_the_six_classes() -> None:
    classes = [name for name, parent in drawn_tree().items() if parent == "VeogenError"]
    assert classes == [
        "TryAgainLater",
        "ChangeTheRequest",
        "ChangeTheSetup",
        "GenerationFailed",
        "StillRunning",
        "PersonNeeded",
    ]


def test_the_readme_names_exactly_what_the_tasks_retry() -> None:
    section = (Path(__file__).parents[1] / "README.md").read_text().partition("\n## Errors\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", section.partition("`retryable`")[2])
    retryable = {kind.__name__ for kind in public_errors() if kind.retryable}
    assert retryable == {kind.__name__ for name in named for kind in public_errors() if is_a(kind, name)}


@pytest.mark.prefect
@pytest.mark.parametrize("kind", public_errors())
def test_the_tasks_retry_what_is_retryable(kind: type[VeogenError]) -> None:
    from prefect.states import Failed

    from prefect_veogen.tasks.generation import generate
    from prefect_veogen.tasks.steps import is_retryable

    run: Any = None
    error = with_all_facts(kind)  # as one that a setting causes, where a setting can
    assert is_retryable(generate, run, Failed(data=error)) is error.retryable
    assert error.retryable is (kind.retryable and kind is not errors.MediaRejected)


def test_media_that_a_setting_rejects_is_not_retryable_and_other_media_is() -> None:
    assert errors.MediaRejected("It is HTML").retryable
    assert not errors.MediaRejected("It is large", setting="VEOGEN_MAX_ASSET_BYTES").retryable


def test_what_can_be_raised_after_a_purchase_never_says_that_nothing_was_bought() -> None:
    kinds = [errors.VeogenError, errors.TryAgainLater, errors.ChangeTheRequest, errors.ChangeTheSetup]
    kinds += [*errors.TryAgainLater.__subclasses__(), errors.AuthenticationError, errors.ConfigurationError]
    kinds += [errors.StoreRefused, errors.StillRunning, errors.PersonNeeded, *errors.PersonNeeded.__subclasses__()]
    for kind in kinds:
        assert "othing was bought" not in f"{kind.__doc__} {kind.default_next_step}"


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("kind", public_errors())
def test_every_error_survives_the_way_to_another_process_with_all_it_knows(
    kind: type[VeogenError], pickler: Any
) -> None:
    error = with_all_facts(kind)
    error.add_note("and a note")
    again = pickle.loads(pickler.dumps(error))
    assert type(again) is kind
    assert (again.__dict__, again.args, str(again)) == (error.__dict__, error.args, str(error))


@pytest.mark.parametrize("kind", public_errors())
def test_every_error_can_be_copied_and_raised(kind: type[VeogenError]) -> None:
    with pytest.raises(kind) as caught:
        raise copy.deepcopy(with_all_facts(kind))
    assert caught.value.__dict__ == with_all_facts(kind).__dict__


@pytest.mark.parametrize("kind", public_errors())
def test_every_error_shows_the_services_words_and_the_next_step(kind: type[VeogenError]) -> None:
    text = str(with_all_facts(kind))
    assert "(HTTP 418: I am a teapot)" in text
    assert text.endswith(f"\nWhat to do: Do this. (more: prefect-veogen explain {kind.__name__})")


@pytest.mark.parametrize("kind", public_errors())
def test_an_error_made_again_from_its_text_says_the_same_once(kind: type[VeogenError]) -> None:
    # Prefect stores a failed run's error as its class and its text; older versions wrote texts without the pointer.
    error = kind("It happened", next_step="Do this, and (if need be) that.")
    again = kind(str(kind(str(error))))
    assert (str(again), again.message, again.next_step) == (str(error), error.message, error.next_step)
    older = kind("It happened\nWhat to do: Do this, and (if need be) that.")
    assert (str(older), older.next_step) == (str(error), error.next_step)


@pytest.mark.parametrize("kind", [kind for kind in public_errors() if kind.__subclasses__() == []])
def test_every_error_one_can_meet_has_its_own_docstring(kind: type[VeogenError]) -> None:
    assert kind.__doc__
    assert kind.__doc__ != kind.__mro__[1].__doc__


def test_an_invalid_request_is_a_value_error_too() -> None:
    # pydantic and Prefect understand those; nothing else of ours should pass for one.
    assert [kind.__name__ for kind in public_errors() if issubclass(kind, ValueError)] == ["InvalidRequest"]


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("style", None, "is required"), "style: is required"),
        (Problem("style", "x", "no"), "style: no (got 'x')"),
        (Problem("style", False, "no"), "style: no (got False)"),
        (Problem("style", "x", "no", ()), "style: no (got 'x'); allowed: nothing"),
        (Problem("duration", 9, "no", (4, 8), 8), "duration: no (got 9); allowed: 4, 8; nearest: 8"),
        (Problem("prompt", "x" * 200, "no"), f"prompt: no (got '{'x' * 60}'… (200 characters))"),
    ],
)
def test_a_problem_says_field_value_what_is_allowed_and_the_nearest_of_it(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_value_that_cannot_be_shown_does_not_hide_the_problem() -> None:
    assert str(Problem("take", 10**5000, "is long")) == "take: is long (got a int that can't be shown)"


@pytest.mark.parametrize("kind", public_errors())
def test_every_error_says_what_to_do(kind: type[VeogenError]) -> None:
    if kind not in (VeogenError, errors.PersonNeeded, errors.UnknownSubmission):  # these are decided case by case
        assert kind.default_next_step


# ---------------------------------------------------------------- the entries of docs/errors.md

POINTS = ["What happened.", "Was anything bought?", "What to do.", "May it be repeated?"]
EVERY_ERROR_CARRIES = {"message", "next_step", "http_status", "service_text"}


def points_of(kind: type[VeogenError]) -> dict[str, str]:
    text = read_entries()[kind.__name__]
    return {name.strip(): said for name, said in re.findall(r"^- \*\*(.*?)\*\* (.*(?:\n  .*)*)", text, re.MULTILINE)}


def test_every_error_has_an_entry_and_every_entry_an_error() -> None:
    assert [*read_entries()] == [*drawn_tree()]


@pytest.mark.parametrize("kind", public_errors())
def test_an_entry_answers_the_four_questions(kind: type[VeogenError]) -> None:
    points = points_of(kind)
    assert list(points)[:4] == POINTS
    assert set(points) - set(POINTS) <= {"It carries"}


@pytest.mark.parametrize("kind", public_errors())
def test_an_entry_says_that_the_tasks_repeat_it_exactly_if_they_do(kind: type[VeogenError]) -> None:
    assert points_of(kind)["May it be repeated?"].startswith("The tasks do it") is kind.retryable


@pytest.mark.parametrize("kind", public_errors())
def test_an_entry_names_exactly_what_the_error_carries(kind: type[VeogenError]) -> None:
    carried = set(vars(with_all_facts(kind))) - EVERY_ERROR_CARRIES - {"retryable"}
    assert set(re.findall(r"`(\w+)`", points_of(kind).get("It carries", "").partition(", each")[0])) == carried


def test_an_entry_never_says_that_nothing_was_bought_where_something_may_have_been() -> None:
    groups = (errors.GenerationFailed, errors.StillRunning, errors.PersonNeeded, errors.DownloadBroken)
    for kind in public_errors():
        said = points_of(kind)["Was anything bought?"]
        assert not (issubclass(kind, groups) and said.startswith("No.")), kind
        if issubclass(kind, errors.TryAgainLater):
            assert said.startswith(("Not by", "Perhaps", "Yes")), kind
