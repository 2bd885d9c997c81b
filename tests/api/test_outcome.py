"""What a response means for the money: every status has one meaning, and an error of its own type."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_veogen import errors
from prefect_veogen.api.outcome import (
    DEFAULT_RETRY_AFTER_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Accepted,
    Busy,
    Refused,
    Unknown,
    error_of,
    failure_of,
    read_submission,
    retry_after_seconds,
)
from prefect_veogen.errors import VeogenError
from prefect_veogen.models import Generation, Kind, Status
from tests.support.responses import HTML, OLDER, response

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NEWER = {
    "data": {
        "id": "img_gptimg2_12345",
        "model": "gpt-image-2",
        "status": "pending",
        "created_at": "2026-04-22T12:00:00Z",
    }
}


def test_the_older_response_to_a_purchase_is_read_with_its_price() -> None:
    submission = read_submission(response(OLDER, 201), NOW)
    assert isinstance(submission, Accepted)
    bought = submission.generation
    assert (bought.id, bought.status, bought.type) == (OLDER["data"]["id"], Status.PENDING, Kind.VIDEO)  # type: ignore[index]
    assert str(bought.price_usd) == "0.3"
    assert bought.created_at == datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    assert (bought.output, bought.error, bought.completed_at) == (None, None, None)


def test_the_newer_response_to_a_purchase_is_read_without_a_price() -> None:
    submission = read_submission(response(NEWER, 201), NOW)
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
    assert read_submission(response(body, 201), NOW) == Accepted(Generation(id="g"))


@pytest.mark.parametrize("body", [b"", b"null", b"true", b'{"data": {"id":', HTML, [], [OLDER], {}, {"data": None}])
@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_an_unparseable_success_is_a_purchase_in_doubt(body: Any, status: int) -> None:
    assert isinstance(read_submission(response(body, status), NOW), Unknown)


@pytest.mark.parametrize("status", [300, 302, 303, 304, 408, 500, 501, 502, 503, 504, 520, 599, 999])
@pytest.mark.parametrize("body", [b"", HTML, {"message": "Server Error"}])
def test_what_may_have_been_bought_is_never_called_refused(status: int, body: Any) -> None:
    assert isinstance(read_submission(response(body, status), NOW), Unknown)


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
    submission = read_submission(response(body, status), NOW)
    assert isinstance(submission, Refused)
    assert type(submission.error) is kind
    assert submission.error.http_status == status


def test_too_many_requests_is_neither_refused_nor_bought() -> None:
    assert read_submission(response(b"", 429, retry_after="7"), NOW) == Busy(7.0)


def test_every_field_that_the_service_blames_is_a_problem() -> None:
    body = {"message": "The given data was invalid.", "errors": {"prompt": ["Too long."], "duration": "Pick 4 or 8."}}
    error = error_of(response(body, 422), "the purchase", NOW)
    assert isinstance(error, errors.InvalidRequest)
    assert [(problem.field, problem.message) for problem in error.problems] == [
        ("prompt", "the service says: Too long."),
        ("duration", "the service says: Pick 4 or 8."),
    ]


@pytest.mark.parametrize("body", [{"message": "Bad."}, {"errors": ["Bad."]}, {"errors": {}, "error": "Bad."}, b"Bad."])
def test_a_refusal_without_fields_is_about_the_request(body: Any) -> None:
    error = error_of(response(body, 422), "the purchase", NOW)
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
def test_an_insufficient_balance_carries_the_services_figures(body: Any, required: Any, balance: Any) -> None:
    error = error_of(response(body, 402), "the purchase", NOW)
    assert isinstance(error, errors.InsufficientBalance)
    assert (error.required_usd, error.balance_usd) == (required, balance)


@pytest.mark.parametrize("status", [408, 500, 502, 503, 599])
def test_a_failure_of_the_service_is_retryable(status: int) -> None:
    assert isinstance(error_of(response(HTML, status), "a poll", NOW), errors.ServiceUnavailable)


def test_a_redirect_is_an_error_with_its_target_but_without_its_query() -> None:
    error = error_of(response(b"", 302, location="https://elsewhere/login?token=secret"), "a poll", NOW)
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
def test_moderation_is_recognised_by_the_services_text(text: str | None, kind: type[VeogenError]) -> None:
    error = failure_of(Generation(id="g", status=Status.FAILED, error=text))
    assert type(error) is kind
    assert error.generation_id == "g"
    assert "not charged" in str(error)


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
def test_a_pause_is_read_from_seconds_or_a_date_and_bounded(header: str, seconds: float) -> None:
    assert retry_after_seconds({"retry-after": header}, NOW) == seconds


def test_without_a_header_there_is_a_default_pause() -> None:
    assert retry_after_seconds({}, NOW) == DEFAULT_RETRY_AFTER_SECONDS


@settings(deadline=None)
@given(header=st.text(max_size=60))
def test_every_header_makes_a_bounded_pause(header: str) -> None:
    assert 0 <= retry_after_seconds({"retry-after": header}, NOW) <= MAX_RETRY_AFTER_SECONDS
