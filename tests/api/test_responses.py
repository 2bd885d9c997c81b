"""Every answer the API may give has one meaning, and no answer whatever breaks a reader."""

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
from prefect_veogen.api.responses import (
    DEFAULT_RETRY_AFTER_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Accepted,
    Answer,
    Busy,
    Refused,
    Unknown,
    error_of,
    failure_of,
    generation_of,
    money,
    read_account,
    read_balance,
    read_date,
    read_generation,
    read_generations,
    read_model,
    read_models,
    read_submission,
    read_usage,
    retry_after_seconds,
    service_text,
    timestamp,
)
from prefect_veogen.errors import VeogenError
from prefect_veogen.models import Generation, Kind, Output, Status

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
HTML = b"<!doctype html><html><head><title>502 Bad\nGateway</title></head><body>nginx</body></html>"
OLDER = {
    "data": {
        "id": "01928abc-0000-4000-8000-000000000000",
        "status": "pending",
        "model": "veo-3.1-fast",
        "type": "video",
        "prompt": "waves",
        "parameters": {"aspect_ratio": "16:9"},
        "output": None,
        "error": None,
        "created_at": "2025-01-15T10:30:00+00:00",
        "completed_at": None,
    },
    "price_usd": 0.3,
}
NEWER = {
    "data": {
        "id": "img_gptimg2_12345",
        "model": "gpt-image-2",
        "status": "pending",
        "created_at": "2026-04-22T12:00:00Z",
    }
}


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


# ---------------------------------------------------------------- purchases


def test_the_older_answer_to_a_purchase_is_read_with_its_price() -> None:
    submission = read_submission(answer(OLDER, 201), NOW)
    assert isinstance(submission, Accepted)
    bought = submission.generation
    assert (bought.id, bought.status, bought.type) == (OLDER["data"]["id"], Status.PENDING, Kind.VIDEO)  # type: ignore[index]
    assert str(bought.price_usd) == "0.3"
    assert bought.created_at == datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    assert (bought.output, bought.error, bought.completed_at) == (None, None, None)


def test_the_newer_answer_to_a_purchase_is_read_without_a_price() -> None:
    submission = read_submission(answer(NEWER, 201), NOW)
    assert isinstance(submission, Accepted)
    assert submission.generation == Generation(
        id="img_gptimg2_12345",
        model="gpt-image-2",
        status=Status.PENDING,
        status_text="pending",
        created_at=datetime(2026, 4, 22, 12, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    "body",
    [{"id": "g"}, {"data": {"id": "g"}}, {"data": {"id": "g", "status": None, "parameters": [], "output": []}}],
)
def test_an_id_is_all_that_a_purchase_needs(body: Any) -> None:
    assert read_submission(answer(body, 201), NOW) == Accepted(Generation(id="g"))


@pytest.mark.parametrize("body", [b"", b"null", b"true", b'{"data": {"id":', HTML, [], [OLDER], {}, {"data": None}])
@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_success_that_nobody_can_read_is_an_unknown_purchase(body: Any, status: int) -> None:
    assert isinstance(read_submission(answer(body, status), NOW), Unknown)


@pytest.mark.parametrize("status", [300, 302, 303, 304, 408, 500, 501, 502, 503, 504, 520, 599, 999])
@pytest.mark.parametrize("body", [b"", HTML, {"message": "Server Error"}])
def test_what_may_have_been_bought_is_never_called_refused(status: int, body: Any) -> None:
    assert isinstance(read_submission(answer(body, status), NOW), Unknown)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"message": "Bad."}, errors.InvalidRequest),
        (401, {"message": "Unauthenticated."}, errors.AuthenticationError),
        (402, {"error": "Insufficient balance."}, errors.InsufficientBalance),
        (403, b"", errors.AuthenticationError),
        (404, {"error": "Model not found."}, errors.ModelNotFound),
        (404, HTML, errors.ChangeTheRequest),
        (405, b"", errors.ChangeTheRequest),
        (409, b"", errors.ChangeTheRequest),
        (413, HTML, errors.ChangeTheRequest),
        (415, b"", errors.ChangeTheRequest),
        (422, {"message": "No.", "errors": {"style": ["Wrong."]}}, errors.InvalidRequest),
        (301, b"", errors.UnexpectedAnswer),
        (307, b"", errors.UnexpectedAnswer),
        (308, b"", errors.UnexpectedAnswer),
    ],
)
def test_a_refused_purchase_has_a_typed_error(status: int, body: Any, kind: type[VeogenError]) -> None:
    submission = read_submission(answer(body, status), NOW)
    assert isinstance(submission, Refused)
    assert type(submission.error) is kind
    assert submission.error.http_status == status


def test_too_many_requests_is_neither_refused_nor_bought() -> None:
    assert read_submission(answer(b"", 429, retry_after="7"), NOW) == Busy(7.0)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": "Model not found."}, "Model not found."),
        ({"message": "Unauthenticated."}, "Unauthenticated."),
        ({"error": "Short.", "message": "Costs 0.30, holds 0.05."}, "Short. Costs 0.30, holds 0.05."),
        ({"error": "Twice.", "message": "Twice."}, "Twice."),
        ({"error": {"message": "Nested.", "code": 7}}, "Nested. 7"),
        ({"error": {"type": "weird"}}, "type: weird"),
        ({"message": "No.", "errors": {"prompt": ["Too long.", "Rude."]}}, "No. prompt: Too long. Rude."),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "loc: body msg: field required"),
        ({"errors": ["one", "two"]}, "one two"),
        (["one", {"error": "two"}], "one two"),
        ("just text", "just text"),
        (b"plain text", "plain text"),
        (HTML, "an HTML page: 502 Bad Gateway"),
        (b"<p>no title", "an HTML page"),
        (b"\xff\xfe\x00", "��"),
        (b"", None),
        (b"   ", None),
        (b"null", "null"),
        ({}, None),
        ([], None),
        ({"error": None, "message": ""}, None),
        ({"message": "x" * 999}, "x" * 300 + "…"),
    ],
)
def test_the_services_words_are_found_in_every_shape_of_body(body: Any, text: str | None) -> None:
    found = service_text(answer(body, 500))
    assert (found or "").replace("\x00", "") == (text or "").replace("\x00", "")


def test_every_field_that_the_service_blames_is_a_problem() -> None:
    body = {"message": "The given data was invalid.", "errors": {"prompt": ["Too long."], "duration": "Pick 4 or 8."}}
    error = error_of(answer(body, 422), "the purchase", NOW)
    assert isinstance(error, errors.InvalidRequest)
    assert [(problem.field, problem.message) for problem in error.problems] == [
        ("prompt", "the service says: Too long."),
        ("duration", "the service says: Pick 4 or 8."),
    ]


@pytest.mark.parametrize("body", [{"message": "Bad."}, {"errors": ["Bad."]}, {"errors": {}, "error": "Bad."}, b"Bad."])
def test_a_refusal_without_fields_is_about_the_request(body: Any) -> None:
    error = error_of(answer(body, 422), "the purchase", NOW)
    assert isinstance(error, errors.InvalidRequest)
    assert [(problem.field, problem.message) for problem in error.problems] == [("request", "the service says: Bad.")]


@pytest.mark.parametrize(
    ("body", "required", "balance"),
    [
        ({"error": "Insufficient balance.", "required": 0.30, "balance": 0.05}, Decimal("0.3"), Decimal("0.05")),
        ({"required": "0.3000", "balance": None}, Decimal("0.3000"), None),
        ([], None, None),
        (HTML, None, None),
    ],
)
def test_a_short_balance_tells_the_services_figures(body: Any, required: Any, balance: Any) -> None:
    error = error_of(answer(body, 402), "the purchase", NOW)
    assert isinstance(error, errors.InsufficientBalance)
    assert (error.required_usd, error.balance_usd) == (required, balance)


@pytest.mark.parametrize("status", [408, 500, 502, 503, 599])
def test_a_failed_look_is_worth_trying_again(status: int) -> None:
    assert isinstance(error_of(answer(HTML, status), "a look", NOW), errors.ServiceUnavailable)


def test_a_redirect_is_an_error_which_says_where_to_but_not_what_was_asked() -> None:
    error = error_of(answer(b"", 302, location="https://elsewhere/login?token=secret"), "a look", NOW)
    assert isinstance(error, errors.UnexpectedAnswer)
    assert "https://elsewhere/login;" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Blocked by our content policy.", errors.ContentRejected),
        ("NSFW content detected", errors.ContentRejected),
        ("GPU on fire", errors.GenerationFailed),
        (None, errors.GenerationFailed),
    ],
)
def test_moderation_is_told_apart_where_the_service_says_so(text: str | None, kind: type[VeogenError]) -> None:
    error = failure_of(Generation(id="g", status=Status.FAILED, error=text))
    assert type(error) is kind
    assert error.generation_id == "g"
    assert "not charged" in str(error)


# ---------------------------------------------------------------- Retry-After


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 7.5 ", 7.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("100000", MAX_RETRY_AFTER_SECONDS),
        ("9" * 400, DEFAULT_RETRY_AFTER_SECONDS),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 13:00:30 +0100", 30.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("Tue, 24 Nov 2099 11:00:00 GMT", MAX_RETRY_AFTER_SECONDS),
        ("Tue, 24 Nov 2026 12:00:30 -0000", DEFAULT_RETRY_AFTER_SECONDS),
        ("Tue, 24 Nov 2026 12:00:30 +99999999999999999", DEFAULT_RETRY_AFTER_SECONDS),
        ("1 Jan 99999999999999999999 00:00:00 GMT", DEFAULT_RETRY_AFTER_SECONDS),
        ("soon", DEFAULT_RETRY_AFTER_SECONDS),
        ("inf", DEFAULT_RETRY_AFTER_SECONDS),
        ("nan", DEFAULT_RETRY_AFTER_SECONDS),
        ("", DEFAULT_RETRY_AFTER_SECONDS),
    ],
)
def test_a_pause_is_read_from_seconds_or_a_date_and_never_unreasonable(header: str, seconds: float) -> None:
    assert retry_after_seconds({"retry-after": header}, NOW) == seconds


def test_without_a_header_there_is_a_pause_too() -> None:
    assert retry_after_seconds({}, NOW) == DEFAULT_RETRY_AFTER_SECONDS


@settings(deadline=None)
@given(header=st.text(max_size=60))
def test_no_header_makes_a_pause_that_is_none(header: str) -> None:
    assert 0 <= retry_after_seconds({"retry-after": header}, NOW) <= MAX_RETRY_AFTER_SECONDS


# ---------------------------------------------------------------- generations


@pytest.mark.parametrize("status", ["pending", "processing", "completed", "failed"])
def test_a_documented_status_is_read(status: str) -> None:
    assert read_generation(answer({"data": {"id": "g", "status": status}})).status == status


@pytest.mark.parametrize("status", ["queued", "cancelled", "COMPLETED", 7, "", None, ["failed"], True])
def test_an_undocumented_status_ends_nothing(status: Any) -> None:
    generation = read_generation(answer({"data": {"id": "g", "status": status}}))
    assert generation.status is Status.UNRECOGNISED
    assert not generation.is_over


@pytest.mark.parametrize("body", [[], {"data": []}, {"data": {"id": ""}}, {"data": {"id": None}}, {"data": {"id": {}}}])
def test_an_answer_without_an_id_is_unexpected(body: Any) -> None:
    with pytest.raises(errors.UnexpectedAnswer):
        read_generation(answer(body))


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
    assert read_generation(answer({"data": {"id": "g", "error": error}})).error == text


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
    assert read_generation(answer({"data": {"id": "g", "output": output}})).output == expected


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-01-15T10:30:00+00:00", datetime(2025, 1, 15, 10, 30, tzinfo=UTC)),
        ("2025-01-15T10:31:15.000000Z", datetime(2025, 1, 15, 10, 31, 15, tzinfo=UTC)),
        ("2026-04-22T12:00:00Z", datetime(2026, 4, 22, 12, tzinfo=UTC)),
        ("2026-04-22T14:00:00+02:00", datetime(2026, 4, 22, 12, tzinfo=UTC)),
        ("2026-04-22 12:00:00", datetime(2026, 4, 22, 12, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
        (None, None),
        (1764000000, None),
        ({}, None),
    ],
)
def test_a_time_is_read_from_all_three_spellings_and_is_never_naive(text: Any, moment: datetime | None) -> None:
    found = timestamp(text)
    assert found == moment
    assert found is None or found.utcoffset() is not None


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (0.02, "0.02"),
        ("0.0200", "0.0200"),
        (" 42.5000 ", "42.5000"),
        (3, "3"),
        (-1, "-1"),
        (Decimal("0.1"), "0.1"),
        (True, None),
        (None, None),
        ("", None),
        ("free", None),
        ("NaN", None),
        ("Infinity", None),
        ([], None),
        ({}, None),
    ],
)
def test_money_is_read_exactly_as_written(value: Any, amount: str | None) -> None:
    assert (str(money(value)) if money(value) is not None else None) == amount


def test_no_price_is_rounded_on_its_way_through_json() -> None:
    price = b"0.1234567890123456789012345678"
    generation = read_generation(answer(b'{"data": {"id": "g"}, "price_usd": ' + price + b"}"))
    assert str(generation.price_usd) == price.decode()


def test_a_cut_emoji_breaks_neither_a_reader_nor_what_is_written_of_it() -> None:
    body = b'{"data": {"id": "g", "prompt": "smile \\ud83d", "error": "\\udc00", "parameters": {"\\ud800": "\\ud801"}}}'
    generation = read_generation(answer(body))
    assert (generation.prompt, generation.error, generation.parameters) == ("smile ?", "?", {"?": "?"})
    assert Generation.model_validate_json(generation.model_dump_json()) == generation
    assert read_generation(answer('{"data": {"id": "g", "prompt": "smile 😀"}}'.encode())).prompt == "smile 😀"


# ---------------------------------------------------------------- pages


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
def test_every_shape_of_page_tells_its_items_and_whether_more_follow(body: Any, page: int, more: bool) -> None:
    found = read_generations(answer(body), page)
    assert [generation.id for generation in found.items] == ["a", "b"]
    assert found.has_more is more


def test_an_empty_page_is_the_last_whatever_it_claims() -> None:
    assert not read_generations(answer({"data": [], "meta": {"last_page": 9}}), 1).has_more


def test_what_is_no_generation_is_passed_over_and_twins_are_one() -> None:
    body: Any = {"data": [None, 7, {}, {"id": ""}, {"id": "a"}, [], {"id": "a", "status": "failed"}]}
    assert [(one.id, one.status) for one in read_generations(answer(body), 1).items] == [("a", Status.FAILED)]


# ---------------------------------------------------------------- models


DOCUMENTED_MODEL = {
    "slug": "veo-3.1-fast",
    "label": "Veo 3.1 Fast",
    "type": "video",
    "price_usd": 0.30,
    "multiply_by_duration": False,
    "resolution_multipliers": {"720p": 1, "1080p": 1, "4k": 3},
    "supported_params": ["prompt", "duration", "aspect_ratio", "resolution", "image_urls", "mode"],
    "aspect_ratios": ["16:9", "9:16"],
    "resolutions": ["720p", "1080p", "4k"],
    "durations": [8],
    "modes": ["frame", "ingredient"],
    "docs_url": "https://veogen.studio/api-reference/models/veo-3.1-fast",
}


@pytest.mark.parametrize("body", [{"data": DOCUMENTED_MODEL}, DOCUMENTED_MODEL])
def test_the_documented_model_is_read_whole(body: Any) -> None:
    model = read_model(answer(body))
    assert (model.type, str(model.price_usd), model.multiply_by_duration) == (Kind.VIDEO, "0.3", False)
    assert model.resolution_multipliers == {"720p": 1, "1080p": 1, "4k": 3}
    assert (model.durations, model.modes, model.styles) == ((8,), ("frame", "ingredient"), None)
    assert model.supported_params == tuple(DOCUMENTED_MODEL["supported_params"])  # type: ignore[arg-type]


@pytest.mark.parametrize("nothing", [None, [], {}, "", 7])
@pytest.mark.parametrize(
    "field", ["supported_params", "aspect_ratios", "resolutions", "durations", "modes", "styles", "price_usd", "label"]
)
def test_what_the_model_does_not_state_is_not_stated(field: str, nothing: Any) -> None:
    expected = {"price_usd": Decimal(7), "label": "7"} if nothing == 7 else {}
    model = read_model(answer({"data": {"slug": "m", field: nothing}}))
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
    assert read_model(answer({"data": {"slug": "m", "durations": durations}})).durations == expected


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
    model = read_model(answer({"data": {"slug": "m", "resolution_multipliers": multipliers}}))
    assert model.resolution_multipliers == expected


@pytest.mark.parametrize(("flag", "per_second"), [(True, True), (1, True), ("1", True), (0, False), (None, False)])
def test_billing_per_second_is_read_from_php_spellings(flag: Any, per_second: bool) -> None:
    assert read_model(answer({"data": {"slug": "m", "multiply_by_duration": flag}})).multiply_by_duration is per_second


def test_a_catalogue_passes_over_what_is_no_model() -> None:
    body = {"data": [DOCUMENTED_MODEL, {"label": "no slug"}, None], "meta": {"last_page": 2}}
    page = read_models(answer(body), 1)
    assert ([model.slug for model in page.items], page.has_more) == (["veo-3.1-fast"], True)


# ---------------------------------------------------------------- the account


def test_money_of_the_account_is_read_from_both_endpoints() -> None:
    account = read_account(answer({"data": {"name": "Alex", "usd_balance": 4.25, "usd_spent": "3.78"}}))
    assert (account.remaining_usd, account.spent_usd) == (Decimal("4.25"), Decimal("3.78"))
    balance = read_balance(answer({"remaining_balance": 42.5, "used_balance": None}))
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
    page = read_usage(answer(body), 1)
    assert page.has_more
    assert [(charge.id, charge.amount_usd) for charge in page.items] == [
        ("1042", Decimal("0.3")),
        ("", Decimal("0.02")),
    ]
    assert (page.items[0].kind, page.items[0].model_key) == (Kind.VIDEO, "veo_3_1_fast")
    assert page.items[0].created_at == datetime(2025, 1, 15, 10, 31, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("date", "told"),
    [
        ("Wed, 15 Jan 2025 10:30:00 GMT", datetime(2025, 1, 15, 10, 30, tzinfo=UTC)),
        ("Wed, 15 Jan 2025 10:30:00 -0000", None),
        ("soon", None),
        (None, None),
    ],
)
def test_the_services_clock_is_read_where_it_tells(date: str | None, told: datetime | None) -> None:
    headers = {} if date is None else {"date": date}
    assert read_date(Answer(200, headers, b"")) == told


# ---------------------------------------------------------------- whatever comes


READERS: dict[str, Callable[[Answer], Any]] = {
    "submission": lambda got: read_submission(got, NOW),
    "generation": read_generation,
    "generations": lambda got: read_generations(got, 1),
    "model": read_model,
    "models": lambda got: read_models(got, 1),
    "account": read_account,
    "balance": read_balance,
    "usage": lambda got: read_usage(got, 1),
    "error": lambda got: str(error_of(got, "a look", NOW)),
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
def test_no_body_whatever_makes_a_reader_raise_anything_but_ours(reader: str, body: bytes, status: int) -> None:
    value: Any
    try:
        value = READERS[reader](Answer(status, {}, body))
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
            READERS[reader](Answer(500 if reader == "error" else 200, {}, place.format(nest).encode()))
        except VeogenError:
            continue


@pytest.mark.parametrize("number", [b"1e999999999999999999999", b"9" * 5000, b"NaN", b"-Infinity", b"1e400"])
@pytest.mark.parametrize("reader", READERS)
def test_a_number_beyond_all_bounds_breaks_no_reader(reader: str, number: bytes) -> None:
    body = b'{"price_usd": %s, "total": %s, "data": {"id": "g", "slug": "m", "price_usd": %s}}' % ((number,) * 3)
    try:
        READERS[reader](Answer(200, {}, body))
    except VeogenError:
        return


def test_only_an_object_with_an_id_is_a_generation() -> None:
    assert generation_of({"id": 7}) == Generation(id="7")
    others: list[Any] = [None, [], "g", {"id": True}, {"id": 1.5}, {"id": " "}]
    assert [generation_of(value) for value in others] == [None] * len(others)
