"""Records from text: CSV, JSON, JSON Lines or YAML; each value is read as its text, in linear time and memory."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from prefect_veogen.errors import InvalidManifest

ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".yaml": "yaml", ".yml": "yaml"}
TWICE = object()
"""Sentinel for the value of a duplicate key, until the row it belongs to is known."""

_TAG, _TAGS, _NULLS = "tag:yaml.org,2002:", ("str", "seq", "map", "null"), ("", "~", "null", "Null", "NULL")
# A list of rows of fields of links is 3 deep, and YAML's time grows with the square of the depth.
_MAX_DEPTH = 20
_MAX_CHARACTERS = 100_000  # an anchored text may be referred to from every row


def parsed(text: str, form: str) -> Any:
    """Return the records of a text in one of the formats of `ENDINGS`.

    Raises:
        InvalidManifest: it isn't valid in that format.
    """
    try:
        match form:
            case "csv":
                return _csv(text)
            case "jsonl":
                return _json_lines(text)
            case "json":
                return _json(text)
            case _:
                return _yaml(text)
    except (ValueError, RecursionError, csv.Error, yaml.YAMLError) as error:
        raise InvalidManifest([f"it is not valid {form.upper()}: {error}"]) from None


def mapping(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return pairs as a dict in which the value of a duplicate key is `TWICE`."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        found[name] = TWICE if name in found else value
    return found


def _csv(text: str) -> list[Any]:
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="(no heading)")
    names = [name.strip() for name in table.fieldnames or ()]
    if len(names) == 1 and (separator := re.search(r"[;\t|]", names[0])):
        raise InvalidManifest([f"its cells are separated by {separator[0]!r}, where commas are expected"])
    problems = [
        f"it has more than one column {name!r}" for name in sorted(set(names)) if name and names.count(name) > 1
    ]
    if problems:
        raise InvalidManifest(problems)
    # Spreadsheets often end with rows of nothing but commas.
    return [row for row in table if any(cell and str(cell).strip() for cell in row.values())]


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=mapping)


def _json_lines(text: str) -> list[Any]:
    records, problems = [], []
    # Not `splitlines`: a JSON text may hold other line breaks than this one.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            records += [_json(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not valid JSON: {error}")
    if problems:
        raise InvalidManifest(problems)
    return records


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
