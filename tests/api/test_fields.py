"""Money, times and texts are read from every documented shape, and nothing is rounded."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from prefect_veogen.api.fields import Response, money, read_date, service_text, timestamp
from prefect_veogen.api.responses import (
    read_generation,
)
from prefect_veogen.models import Generation
from tests.support.responses import HTML, response


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
def test_the_text_of_an_error_is_found_in_every_shape_of_body(body: Any, text: str | None) -> None:
    found = service_text(response(body, 500))
    assert (found or "").replace("\x00", "") == (text or "").replace("\x00", "")


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
def test_a_time_is_read_from_all_three_formats_and_is_never_naive(text: Any, moment: datetime | None) -> None:
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
    generation = read_generation(response(b'{"data": {"id": "g"}, "price_usd": ' + price + b"}"))
    assert str(generation.price_usd) == price.decode()


def test_a_truncated_emoji_breaks_neither_a_reader_nor_a_file() -> None:
    body = b'{"data": {"id": "g", "prompt": "smile \\ud83d", "error": "\\udc00", "parameters": {"\\ud800": "\\ud801"}}}'
    generation = read_generation(response(body))
    assert (generation.prompt, generation.error, generation.parameters) == ("smile ?", "?", {"?": "?"})
    assert Generation.model_validate_json(generation.model_dump_json()) == generation
    assert read_generation(response('{"data": {"id": "g", "prompt": "smile 😀"}}'.encode())).prompt == "smile 😀"


@pytest.mark.parametrize(
    ("date", "reported"),
    [
        ("Wed, 15 Jan 2025 10:30:00 GMT", datetime(2025, 1, 15, 10, 30, tzinfo=UTC)),
        ("Wed, 15 Jan 2025 10:30:00 -0000", None),
        ("soon", None),
        (None, None),
    ],
)
def test_the_services_time_is_read_from_a_valid_date(date: str | None, reported: datetime | None) -> None:
    headers = {} if date is None else {"date": date}
    assert read_date(Response(200, headers, b"")) == reported
