"""Records from a file's bytes: CSV, JSON, JSON Lines or YAML; each value is read as its text, in linear time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from prefect_veogen.campaign.cells import TWICE
from prefect_veogen.campaign.misnamed import NAME_IT, other_form
from prefect_veogen.errors import InvalidManifest

_TAG, _TAGS, _NULLS = "tag:yaml.org,2002:", ("str", "seq", "map", "null"), ("", "~", "null", "Null", "NULL")
# A list of rows of fields of links is 3 deep, and YAML's time grows with the square of the depth.
_MAX_DEPTH = 20
_MAX_CHARACTERS = 100_000  # an anchored text may be referred to from every row

_NOTHING_BOUGHT = "Nothing was bought. "
_AS_CSV = (
    f"{_NOTHING_BOUGHT}Save it as CSV (Excel: File > Save As > CSV UTF-8 (Comma delimited); Google Sheets: File > "
    "Download > Comma-separated values) and give that file."
)
_AS_UTF8 = (
    f"{_NOTHING_BOUGHT}Save it as UTF-8 (Excel: File > Save As > CSV UTF-8 (Comma delimited); LibreOffice: Save As > "
    "Edit filter settings > Unicode (UTF-8)) and run it again."
)
_BEGINNINGS = {
    b"PK\x03\x04": ("is a workbook (Excel, LibreOffice, Numbers) or another zip archive", _AS_CSV),
    b"\xd0\xcf\x11\xe0": ("is an Excel workbook", _AS_CSV),
    b"PAR1": ("is a Parquet file, whose name ends in .parquet", NAME_IT),
    b"ARROW1": ("is an Arrow file, whose name ends in .arrow or .feather", NAME_IT),
    b"\x1f\x8b": ("is compressed", f"{_NOTHING_BOUGHT}Decompress it first."),
}


def known_beginning(body: bytes) -> tuple[str, str] | None:
    """Return what a file is by its first bytes, and what to do with it; `None` if they say nothing."""
    return next((known for beginning, known in _BEGINNINGS.items() if body.startswith(beginning)), None)


def text_of(body: bytes) -> str:
    """Return the text of a file in UTF-8, with or without byte order marks, or in UTF-16 with one.

    Raises:
        InvalidManifest: it isn't text, or in another encoding.
    """
    if (known := known_beginning(body)) is not None:
        raise InvalidManifest([f"it {known[0]}, where text is expected"], next_step=known[1])
    is_utf_16 = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # Two marks, when a program adds one to a text that has one.
        text = body.decode("utf-16" if is_utf_16 else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        before = body[: error.start].decode("utf-16" if is_utf_16 else "utf-8", "replace")
        encoding, byte = "UTF-16" if is_utf_16 else "UTF-8", f"0x{body[error.start]:02X}"
        problem = f"line {_lines_in(before)}: it is not {encoding} text (the byte {byte} can't be read)"
        raise InvalidManifest([problem], next_step=_AS_UTF8) from None
    if "\0" in text:
        line = _lines_in(text[: text.index("\0")])
        raise InvalidManifest([f"line {line}: it is not text, but binary (it contains NUL)"], next_step=_AS_CSV)
    return text


def document(text: str, form: str) -> Any:
    """Return what a text in JSON or YAML holds, `None` if it is blank.

    Raises:
        InvalidManifest: it isn't valid in that format.
    """
    try:
        return _json(text) if form == "json" and text.strip() else _yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        problem = f"it is not valid {form.upper()}: {_with_backslashes(error)}"
        if (other := other_form(text, form)) is not None:
            raise InvalidManifest([f"{problem}; {other}"], next_step=NAME_IT) from None
        raise InvalidManifest([problem]) from None


def json_lines(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of a text in JSON Lines, each with its line.

    Raises:
        InvalidManifest: at the end, if lines are not valid; all of them are named.
    """
    if text.lstrip().startswith("[") and (other := other_form(text, "jsonl")) is not None:
        raise InvalidManifest([f"it is not JSON Lines; {other}"], next_step=NAME_IT)
    problems = []
    # Not `splitlines`: a JSON text may hold other line breaks than these.
    for number, line in enumerate(re.finditer(r"[^\r\n]*(?:\r\n|\r|\n|\Z)", text), start=1):
        try:
            if line[0].strip():
                yield f"line {number}", _json(line[0])
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not valid JSON: {_with_backslashes(error)}")
    if problems and (other := other_form(text, "jsonl")) is not None:
        raise InvalidManifest([f"it is not JSON Lines; {other}"], next_step=NAME_IT)
    if problems:
        raise InvalidManifest(problems)


def mapping(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return pairs as a dict in which the value of a duplicate key is `TWICE`."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        found[name] = TWICE if name in found else value
    return found


def _lines_in(text: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", text)) + 1


def _with_backslashes(error: Exception) -> str:
    r"""Return an error's text; to JSON and to YAML in double quotes, a prompt's `\{` is no valid escape."""
    is_escape = re.search(r"Invalid \\escape|unknown escape character", str(error))
    return f"{error}; a backslash is written as two, such as \\\\{{color\\\\}}" if is_escape else str(error)


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=mapping)


def _yaml(text: str) -> Any:
    """Return the YAML document with all scalars as text: to YAML 1.1, 16:9 is the number 969, and 2026-11-24 a date."""
    anchored: dict[str | None, Any] = {}
    opened: list[tuple[Any, list[Any]]] = [(yaml.StreamStartEvent(), [])]
    # Events, not nodes: nodes recurse and expand aliases, so that a few lines become gigabytes.
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in anchored:
                    raise _error(event, f"*{event.anchor} refers to no complete anchor before it")
                opened[-1][1].append(anchored[event.anchor])
            case yaml.CollectionStartEvent():
                if len(opened) > _MAX_DEPTH:
                    raise _error(event, "is nested too deeply")
                opened.append((event, []))
            case yaml.ScalarEvent() | yaml.CollectionEndEvent():
                start, values = (event, []) if isinstance(event, yaml.ScalarEvent) else opened.pop()
                value = _value(start, values)
                anchored[start.anchor] = value
                opened[-1][1].append(value)
    documents = opened[0][1]
    if len(documents) > 1:
        raise ValueError("it holds more than one document")
    return documents[0] if documents else None


def _value(start: Any, values: list[Any]) -> Any:
    if start.tag not in (None, "!", *(_TAG + name for name in _TAGS)):
        raise _error(start, f"the tag {start.tag[:60]} is not supported; write plain text")
    match start:
        case yaml.SequenceStartEvent():
            return values
        case yaml.MappingStartEvent():
            return _merged(start, values[::2], values[1::2])
    if len(start.value) > _MAX_CHARACTERS:
        raise _error(start, f"is a text of {len(start.value)} characters; at most {_MAX_CHARACTERS} are allowed")
    is_null = start.tag == _TAG + "null" or (start.tag is None and start.implicit[0] and start.value in _NULLS)
    return None if is_null else start.value


def _merged(start: yaml.Event, names: list[Any], values: list[Any]) -> dict[Any, Any]:
    """Return a mapping with its own keys and those of the mappings that `<<` refers to; its own win."""
    if not all(isinstance(name, str | None) for name in names):
        raise _error(start, "has a key that is not text")
    own = mapping(zip(names, values, strict=True))
    referred = own.pop("<<", [])
    merged: dict[Any, Any] = {}
    for source in reversed(referred if isinstance(referred, list) else [referred]):
        if not isinstance(source, dict):
            raise _error(start, "<< must refer to mappings, and be used once")
        merged |= source
    return merged | own


def _error(event: Any, problem: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {problem}")
