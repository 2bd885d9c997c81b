"""Text from bytes, and records from text: what is no text is told to be that, with its line."""

from __future__ import annotations

import codecs

import pytest

from prefect_veogen.campaign.cells import TWICE
from prefect_veogen.campaign.parse import document, json_lines, text_of
from prefect_veogen.errors import InvalidManifest


@pytest.mark.parametrize(
    "body",
    [
        "id\né".encode(),
        "\ufeffid\né".encode(),
        "\ufeff\ufeffid\né".encode(),
        "id\né".encode("utf-16"),
        codecs.BOM_UTF16_LE + "id\né".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "id\né".encode("utf-16-be"),
        codecs.BOM_UTF16_BE + "\ufeffid\né".encode("utf-16-be"),
    ],
)
def test_a_text_is_the_same_in_every_encoding_that_names_itself(body: bytes) -> None:
    assert text_of(body) == "id\né"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"a\xe9", "line 1: it is not UTF-8 text (the byte 0xE9 can't be read)"),
        (b"\xef\xbb\xbfa\r\nb\r\n\xfc", "line 3: it is not UTF-8 text (the byte 0xFC can't be read)"),
        (b"a\rb\r\r\xfc", "line 4: it is not UTF-8 text"),
        (b"a\n\xe2\x82", "line 2: it is not UTF-8 text"),
        (codecs.BOM_UTF16_LE + b"a\0\n\0b", "line 2: it is not UTF-16 text"),
        (b"a\nb\0", "line 2: it is not text, but binary"),
        ("id".encode("utf-16-le"), "line 1: it is not text, but binary"),
        (b"PK\x03\x04", "it is a workbook (Excel, LibreOffice, Numbers) or another zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "it is an Excel workbook"),
        (b"PAR1\x15", "it is a Parquet file, whose name ends in .parquet"),
        (b"ARROW1\0\0", "it is an Arrow file"),
        (b"\x1f\x8b\x08", "it is compressed"),
    ],
)
def test_what_is_no_text_is_told_with_its_line_and_what_to_do(body: bytes, told: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        text_of(body)
    assert caught.value.problems[0].startswith(told)
    assert caught.value.next_step.startswith("Nothing was bought. ")
    assert caught.value.next_step != InvalidManifest.default_next_step


def test_json_lines_come_one_by_one_and_what_is_wrong_at_the_end() -> None:
    lines = json_lines('{"a": 1}\n[\n\n{"a": 1, "a": 2}\n{]\n')
    assert next(lines) == ("line 1", {"a": 1})
    assert next(lines) == ("line 4", {"a": TWICE})
    with pytest.raises(InvalidManifest) as caught:
        next(lines)
    assert [problem[:27] for problem in caught.value.problems] == [
        "line 2 is not valid JSON: E",
        "line 5 is not valid JSON: E",
    ]


@pytest.mark.parametrize(("form", "text"), [("json", '{"rows": [{"a": null}]}'), ("yaml", "rows: [{a: ~}]")])
def test_a_document_is_what_it_says(form: str, text: str) -> None:
    assert document(text, form) == {"rows": [{"a": None}]}
