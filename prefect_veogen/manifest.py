"""A campaign's rows, from a list, a file or a link: CSV, JSON, JSON Lines or YAML; every problem is told at once."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from prefect_veogen.errors import ConfigurationError, InvalidManifest, InvalidRequest
from prefect_veogen.iothread import on_io
from prefect_veogen.models import Asset, GenerationRequest
from prefect_veogen.store import open_store
from prefect_veogen.transport import fetch_text

MOTION = "motion_"
DEFAULT_MOTION_MODEL = "veo-3.1-fast"
MOTION_FIELDS = ("prompt", "model", "aspect_ratio", "resolution", "duration", "mode", "style")
_ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".yaml": "yaml", ".yml": "yaml"}
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")

Manifest = Sequence[Mapping[str, Any]] | str | Path


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a campaign: what to make, and, if there is a `motion`, how to animate that picture."""

    id: str
    request: GenerationRequest
    motion: Mapping[str, Any] | None = None

    def motion_request(self, image: Asset) -> GenerationRequest:
        """Return the request for the clip that begins with the picture."""
        assert self.motion is not None
        return GenerationRequest(**{**self.motion, "image_urls": [image], "take": self.request.take})


async def read_manifest(manifest: Manifest, take: int | str = 1) -> list[Row]:
    """Return the rows of a manifest: a list of dicts, or the path or link (http(s), s3, file) of a file. Free.

    A row has an `id`, a `GenerationRequest`'s fields and, for image-then-animate, `motion_prompt` (with
    `motion_model`, `motion_aspect_ratio`, `motion_resolution`, `motion_duration`, `motion_mode`, `motion_style`).
    A row without a `take` of its own has the campaign's. In CSV, empty cells are unset, and links are separated by
    spaces.

    Raises:
        InvalidManifest: rows are wrong; all of them are named.
    """
    if isinstance(manifest, str | Path):
        text, form = await _text(str(manifest))
        records = _records(text, form)
    else:
        records = list(manifest)
    return _rows(records, take)


def placeholder_image(of: str = "") -> Asset:
    """Return what stands for a picture that isn't made yet, where only the form of a request matters."""
    return Asset(uri="", sha256=f"of {of}", size=0, content_type="image/png", generation_id="")


# ---------------------------------------------------------------- reading


async def _text(source: str) -> tuple[str, str]:
    path = source.partition("?")[0]
    form = _ENDINGS.get(Path(path).suffix.lower())
    if form is None:
        raise ConfigurationError(
            f"The manifest {path} has no known ending", next_step=f"Name it one of: {', '.join(_ENDINGS)}."
        )
    return await on_io(_read(source)), form


async def _read(source: str) -> str:
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if scheme in ("http", "https"):
        return await fetch_text(source)
    if scheme not in ("", "file", "s3"):
        raise ConfigurationError(
            f"There is no way to read {source}", next_step="Give a path or a link: http(s)://, s3:// or file://."
        )
    path = unquote(urlsplit(source).path) if scheme == "file" else source
    folder, slash, name = path.rpartition("/")
    document = await open_store(folder or slash or ".").read(name)
    if document is None:
        raise ConfigurationError(f"There is no manifest at {source}", next_step="Check its path.")
    try:
        return document.body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidManifest([f"{source} is not UTF-8 text"]) from None


def _records(text: str, form: str) -> list[Any]:
    try:
        match form:
            case "csv":
                return _cells(text)
            case "jsonl":
                return _lines(text)
            case "json":
                found = json.loads(text)
            case _:
                found = yaml.load(text, _Scalars)  # noqa: S506 - a safe loader with fewer types
    except (ValueError, RecursionError, csv.Error, yaml.YAMLError) as error:
        raise InvalidManifest([f"it is no valid {form.upper()}: {error}"]) from None
    if isinstance(found, dict) and isinstance(found.get("rows"), list):
        found = found["rows"]
    if not isinstance(found, list):
        raise InvalidManifest([f"it holds {type(found).__name__}, where a list of rows is due"])
    return found


class _Scalars(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads what is written: to YAML 1.1, 16:9 is the number 969, and 2026-11-24 no text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - what the base class calls it
        first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _cells(text: str) -> list[Any]:
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="(cells without a heading)")
    names = [name.strip() for name in table.fieldnames or ()]
    if len(names) == 1 and (separator := re.search(r"[;\t|]", names[0])):
        raise InvalidManifest([f"its cells are separated by {separator[0]!r}, where commas are due"])
    problems = [
        f"it has more than one column {name!r}" for name in sorted(set(names)) if name and names.count(name) > 1
    ]
    if problems:
        raise InvalidManifest(problems)
    # Spreadsheets like to end with rows of nothing but commas.
    return [row for row in table if any(cell and str(cell).strip() for cell in row.values())]


def _lines(text: str) -> list[Any]:
    records, problems = [], []
    # Not `splitlines`: a JSON text may hold other line breaks than this one.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            records += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            problems.append(f"line {number} is no valid JSON: {error}")
    if problems:
        raise InvalidManifest(problems)
    return records


# ---------------------------------------------------------------- rows


def _rows(records: Sequence[Any], take: int | str) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = [] if records else ["it has no rows"]
    seen: dict[str, int] = {}
    for number, record in enumerate(records, start=1):
        label = (
            f"row {number} ({record['id']})" if isinstance(record, Mapping) and record.get("id") else f"row {number}"
        )
        try:
            fields = _fields(record)
            if "id" in fields and (first := seen.setdefault(str(fields["id"]), number)) != number:
                problems.append(f"{label}: id: is row {first}'s already")
            rows.append(_row(fields, take))
        except InvalidManifest as error:
            problems += [f"{label}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidManifest(problems)
    return rows


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise InvalidManifest([f"is {type(record).__name__}, where a mapping of fields is due"])
    fields = {str(name).strip(): _cell(str(name).strip(), value) for name, value in record.items()}
    return {name: value for name, value in fields.items() if value is not None}


def _row(fields: dict[str, Any], take: int | str) -> Row:
    identity = fields.pop("id", None)
    motion = {name.removeprefix(MOTION): fields.pop(name) for name in list(fields) if name.startswith(MOTION)}
    problems = ["id: is required"] if identity is None else []
    request = _collected(lambda: GenerationRequest(**{"take": take, **fields}), problems)
    if motion:
        problems += _motion_problems(motion)
    if request is None or problems:
        raise InvalidManifest(problems)
    return Row(str(identity), request, _motion_of(request, motion) if motion else None)


def _motion_problems(motion: dict[str, Any]) -> list[str]:
    problems = [f"{MOTION}{name}: is no field of a row{_nearest(name)}" for name in motion if name not in MOTION_FIELDS]
    if "prompt" not in motion:
        problems.append(f"{MOTION}prompt: is required by the other {MOTION} fields")
    known = {name: value for name, value in motion.items() if name in MOTION_FIELDS}
    # The picture isn't made yet, and says nothing about the other fields.
    _collected(
        lambda: GenerationRequest(**{"model": DEFAULT_MOTION_MODEL, "prompt": "-", **known}), problems, prefix=MOTION
    )
    return problems


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, MOTION_FIELDS, n=1)
    return f"; nearest: {MOTION}{close[0]}" if close else ""


def _motion_of(request: GenerationRequest, motion: dict[str, Any]) -> dict[str, Any]:
    ratio = {"aspect_ratio": request.aspect_ratio} if request.aspect_ratio is not None else {}
    return {"model": DEFAULT_MOTION_MODEL, **ratio, **motion}


def _collected(
    make: Callable[[], GenerationRequest], problems: list[str], prefix: str = ""
) -> GenerationRequest | None:
    try:
        return make()
    except InvalidRequest as error:
        problems += [f"{prefix}{problem}" for problem in error.problems]
        return None


def _cell(name: str, value: Any) -> Any:
    """Return a cell of a text format as the field's type, as far as it can be; the request judges the rest."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text:
        return None
    if name.removeprefix(MOTION) == "duration" or name == "take":
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
    if name in ("watermark", "private"):
        return True if text.lower() in _YES else False if text.lower() in _NO else text
    if name in ("image_urls", "video_urls", "audio_urls"):
        return text.split()
    return text
