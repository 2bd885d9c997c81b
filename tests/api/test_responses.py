"""Generations, models and the account are read from every shape, and no body whatever breaks a reader."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_veogen import errors
from prefect_veogen.api.fields import Response
from prefect_veogen.api.outcome import (
    error_of,
    read_submission,
)
from prefect_veogen.api.responses import (
    generation_of,
    read_account,
    read_balance,
    read_generation,
    read_generations,
    read_model,
    read_models,
    read_usage,
)
from prefect_veogen.errors import VeogenError
from prefect_veogen.models import Generation, Kind, Output, Status
from tests.support.responses import DOCUMENTED_MODEL, OLDER, response


@pytest.mark.parametrize("status", ["pending", "processing", "completed", "failed"])
def test_a_documented_status_is_read(status: str) -> None:
    assert read_generation(response({"data": {"id": "g", "status": status}})).status == status


@pytest.mark.parametrize("status", ["queued", "cancelled", "COMPLETED", 7, "", None, ["failed"], True])
def test_an_undocumented_status_ends_nothing(status: Any) -> None:
    generation = read_generation(response({"data": {"id": "g", "status": status}}))
    assert generation.status is Status.UNRECOGNISED
    assert not generation.is_over


@pytest.mark.parametrize("body", [[], {"data": []}, {"data": {"id": ""}}, {"data": {"id": None}}, {"data": {"id": {}}}])
def test_a_response_without_an_id_is_unexpected(body: Any) -> None:
    with pytest.raises(errors.UnexpectedAnswer):
        read_generation(response(body))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, None),
        ("", None),
        ({}, None),
        ([], None),
        ("Boom", "Boom"),
        ({"message": "Boom"}, "Boom"),
        (["a", "b"], "a b"),
    ],
)
def test_the_reason_of_a_failure_may_be_null_text_or_an_object(error: Any, text: str | None) -> None:
    assert read_generation(response({"data": {"id": "g", "error": error}})).error == text


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"url": None}, None),
        ({"url": "https://m/a.png"}, Output(url="https://m/a.png")),
        (
            {"url": "https://m/a.mp4", "download_url": "https://m/b", "content_type": "video/mp4", "extra": 1},
            Output(url="https://m/a.mp4", content_type="video/mp4"),
        ),
        ({"url": "", "download_url": "https://m/b"}, Output(url="https://m/b")),
        ("https://m/a.png", Output(url="https://m/a.png")),
        (["https://m/a.png", "https://m/b.png"], Output(url="https://m/a.png")),
        ([{}, {"download_url": "https://m/b.png"}], Output(url="https://m/b.png")),
    ],
)
def test_an_output_is_found_in_every_shape(output: Any, expected: Output | None) -> None:
    assert read_generation(response({"data": {"id": "g", "output": output}})).output == expected


NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
ITEMS = [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize(
    ("body", "page", "more"),
    [
        ({"data": ITEMS, "meta": {"current_page": 1, "last_page": 5, "per_page": 2, "total": 9}}, 1, True),
        ({"data": ITEMS, "meta": {"current_page": 5, "last_page": 5, "per_page": 2, "total": 9}}, 5, False),
        ({"data": ITEMS, "meta": {"last_page": "3"}}, 1, True),
        ({"current_page": 1, "data": ITEMS, "per_page": 2, "total": 5}, 2, True),
        ({"current_page": 1, "data": ITEMS, "per_page": 2, "total": 5}, 3, False),
        ({"current_page": 1, "data": ITEMS, "per_page": 2, "total": 4}, 2, False),
        ({"data": ITEMS}, 1, False),
        (ITEMS, 1, False),
        ({"data": {"0": ITEMS[0], "2": ITEMS[1]}, "total": 4, "per_page": 2}, 1, True),
        ({"data": ITEMS, "meta": []}, 1, False),
        ({"data": ITEMS, "total": 9, "per_page": 0}, 1, False),
        ({"data": ITEMS, "total": "many", "per_page": None}, 1, False),
        ({"data": ITEMS, "total": 10**400, "per_page": 3}, 1, True),
    ],
)
def test_every_shape_of_page_is_read_with_whether_more_follow(body: Any, page: int, more: bool) -> None:
    found = read_generations(response(body), page)
    assert [generation.id for generation in found.items] == ["a", "b"]
    assert found.has_more is more


def test_an_empty_page_is_the_last_whatever_it_claims() -> None:
    assert not read_generations(response({"data": [], "meta": {"last_page": 9}}), 1).has_more


def test_unparseable_generations_are_skipped_and_duplicates_are_one() -> None:
    body: Any = {"data": [None, 7, {}, {"id": ""}, {"id": "a"}, [], {"id": "a", "status": "failed"}]}
    assert [(one.id, one.status) for one in read_generations(response(body), 1).items] == [("a", Status.FAILED)]


@pytest.mark.parametrize("body", [{"data": DOCUMENTED_MODEL}, DOCUMENTED_MODEL])
def test_the_documented_model_is_read_whole(body: Any) -> None:
    model = read_model(response(body))
    assert (model.type, str(model.price_usd), model.multiply_by_duration) == (Kind.VIDEO, "0.3", False)
    assert model.resolution_multipliers == {"720p": 1, "1080p": 1, "4k": 3}
    assert (model.durations, model.modes, model.styles) == ((8,), ("frame", "ingredient"), None)
    assert model.supported_params == tuple(DOCUMENTED_MODEL["supported_params"])  # type: ignore[arg-type]


@pytest.mark.parametrize("nothing", [None, [], {}, "", 7])
@pytest.mark.parametrize(
    "field", ["supported_params", "aspect_ratios", "resolutions", "durations", "modes", "styles", "price_usd", "label"]
)
def test_what_the_model_does_not_state_is_none(field: str, nothing: Any) -> None:
    expected = {"price_usd": Decimal(7), "label": "7"} if nothing == 7 else {}
    model = read_model(response({"data": {"slug": "m", field: nothing}}))
    assert getattr(model, field) == expected.get(field)


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([4, 8], (4, 8)),
        (["4", "8"], (4, 8)),
        ({"min": 4, "max": 7}, (4, 5, 6, 7)),
        ({"min": "4", "max": "5"}, (4, 5)),
        ({"0": 4, "1": 8}, (4, 8)),
        ({"min": 4, "max": None}, None),
        ({"min": 9, "max": 4}, None),
        ({"min": 0, "max": 10**12}, None),
        ([None, True, "x"], None),
    ],
)
def test_durations_are_read_from_a_list_or_bounds(durations: Any, expected: Any) -> None:
    assert read_model(response({"data": {"slug": "m", "durations": durations}})).durations == expected


@pytest.mark.parametrize(
    ("multipliers", "expected"),
    [
        ([], {}),
        (None, {}),
        ({"4k": "3"}, {"4k": 3}),
        ({"4k": None, "720p": 1.5}, {"720p": Decimal("1.5")}),
        ({"4k": []}, {}),
    ],
)
def test_multipliers_are_read_as_far_as_they_are_numbers(multipliers: Any, expected: Any) -> None:
    model = read_model(response({"data": {"slug": "m", "resolution_multipliers": multipliers}}))
    assert model.resolution_multipliers == expected


@pytest.mark.parametrize(("flag", "per_second"), [(True, True), (1, True), ("1", True), (0, False), (None, False)])
def test_billing_per_second_is_read_from_php_spellings(flag: Any, per_second: bool) -> None:
    assert (
        read_model(response({"data": {"slug": "m", "multiply_by_duration": flag}})).multiply_by_duration is per_second
    )


def test_unparseable_models_are_skipped() -> None:
    body = {"data": [DOCUMENTED_MODEL, {"label": "no slug"}, None], "meta": {"last_page": 2}}
    page = read_models(response(body), 1)
    assert ([model.slug for model in page.items], page.has_more) == (["veo-3.1-fast"], True)


def test_money_of_the_account_is_read_from_both_endpoints() -> None:
    account = read_account(response({"data": {"name": "Alex", "usd_balance": 4.25, "usd_spent": "3.78"}}))
    assert (account.remaining_usd, account.spent_usd) == (Decimal("4.25"), Decimal("3.78"))
    balance = read_balance(response({"remaining_balance": 42.5, "used_balance": None}))
    assert (balance.remaining_usd, balance.spent_usd) == (Decimal("42.5"), None)


def test_the_statement_is_read_with_its_pages() -> None:
    line = {
        "id": 1042,
        "model_key": "veo_3_1_fast",
        "generation_type": "video",
        "amount_usd": 0.3,
        "source": "api",
        "created_at": "2025-01-15T10:31:15.000000Z",
    }
    body = {"current_page": 1, "data": [line, {"id": 7}, {"amount_usd": "0.02"}], "per_page": 3, "total": 28}
    page = read_usage(response(body), 1)
    assert page.has_more
    assert [(charge.id, charge.amount_usd) for charge in page.items] == [
        ("1042", Decimal("0.3")),
        ("", Decimal("0.02")),
    ]
    assert (page.items[0].kind, page.items[0].model_key) == (Kind.VIDEO, "veo_3_1_fast")
    assert page.items[0].created_at == datetime(2025, 1, 15, 10, 31, 15, tzinfo=UTC)


READERS: dict[str, Callable[[Response], Any]] = {
    "submission": lambda got: read_submission(got, NOW),
    "generation": read_generation,
    "generations": lambda got: read_generations(got, 1),
    "model": read_model,
    "models": lambda got: read_models(got, 1),
    "account": read_account,
    "balance": read_balance,
    "usage": lambda got: read_usage(got, 1),
    "error": lambda got: str(error_of(got, "a poll", NOW)),
}
KNOWN_WORDS = sorted(
    {*OLDER["data"], *DOCUMENTED_MODEL, "data", "meta", "total", "per_page", "last_page", "min", "max"}  # type: ignore[misc]
    | {"error", "errors", "message", "url", "download_url", "amount_usd", "required", "balance", "usd_balance"}
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["completed", "video", "2025-01-15T10:30:00Z", "1e9", "\ud800", 10**400, -1])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KNOWN_WORDS) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=20,
)
RECORD = st.dictionaries(st.sampled_from(KNOWN_WORDS), JSON, max_size=12).map(lambda record: {"id": "g", **record})
BODIES = (
    JSON.map(lambda value: json.dumps(value).encode())
    | RECORD.map(lambda record: json.dumps({"data": record}).encode())
    | st.lists(RECORD, max_size=3).map(lambda records: json.dumps({"data": records}).encode())
    | RECORD.map(lambda record: json.dumps({"data": {"slug": "m", **record}}).encode())
    | st.binary(max_size=40)
)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=BODIES, status=st.sampled_from([200, 201, 302, 400, 402, 404, 408, 422, 429, 500, 999]))
def test_no_body_makes_a_reader_raise_anything_but_our_errors(reader: str, body: bytes, status: int) -> None:
    value: Any
    try:
        value = READERS[reader](Response(status, {}, body))
    except VeogenError as error:
        value = error
    pickle.dumps(value)
    if isinstance(value, Generation):
        assert value.model_dump_json()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("depth", [100, 400, 900, 100_000])
@pytest.mark.parametrize("place", ["{}", '{{"data": {{"id": "g", "slug": "m", "error": {0}, "output": {0}}}}}'])
def test_a_deeply_nested_body_breaks_no_reader(reader: str, depth: int, place: str) -> None:
    nests = ("[" * depth + "]" * depth, '{"error":' * depth + "1" + "}" * depth)
    for nest in nests:
        try:
            READERS[reader](Response(500 if reader == "error" else 200, {}, place.format(nest).encode()))
        except VeogenError:
            continue


@pytest.mark.parametrize("number", [b"1e999999999999999999999", b"9" * 5000, b"NaN", b"-Infinity", b"1e400"])
@pytest.mark.parametrize("reader", READERS)
def test_a_number_beyond_all_bounds_breaks_no_reader(reader: str, number: bytes) -> None:
    body = b'{"price_usd": %s, "total": %s, "data": {"id": "g", "slug": "m", "price_usd": %s}}' % ((number,) * 3)
    try:
        READERS[reader](Response(200, {}, body))
    except VeogenError:
        return


def test_only_an_object_with_an_id_is_a_generation() -> None:
    assert generation_of({"id": 7}) == Generation(id="7")
    others: list[Any] = [None, [], "g", {"id": True}, {"id": 1.5}, {"id": " "}]
    assert [generation_of(value) for value in others] == [None] * len(others)
