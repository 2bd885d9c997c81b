"""A campaign's rows, from a list, a file or a link: CSV, JSON, JSON Lines or YAML; every problem is told at once."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def placeholder_image(row_id: str = "") -> Asset:
    """Return what stands for the picture of a row that isn't made yet, where only the form of a request matters."""
    return Asset(uri="", sha256=f"of {row_id}", size=0, content_type="image/png", generation_id="")


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
    if source.startswith(("http://", "https://")):
        return await fetch_text(source)
    folder, _, name = source.rpartition("/")
    document = await open_store(folder or ("/" if source.startswith("/") else ".")).read(name)
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
                return list(csv.DictReader(io.StringIO(text), strict=True, restkey="(cells without a heading)"))
            case "jsonl":
                return [json.loads(line) for line in text.splitlines() if line.strip()]
            case "json":
                found = json.loads(text)
            case _:
                found = yaml.safe_load(text)
    except (ValueError, csv.Error, yaml.YAMLError) as error:
        raise InvalidManifest([f"it is no valid {form.upper()}: {error}"]) from None
    if isinstance(found, dict) and isinstance(found.get("rows"), list):
        found = found["rows"]
    if not isinstance(found, list):
        raise InvalidManifest([f"it holds {type(found).__name__}, where a list of rows is due"])
    return found


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
            row = _row(record, take)
        except InvalidManifest as error:
            problems += [f"{label}: {problem}" for problem in error.problems]
            continue
        if row.id in seen:
            problems.append(f"{label}: id: is row {seen[row.id]}'s already")
        seen[row.id] = number
        rows.append(row)
    if problems:
        raise InvalidManifest(problems)
    return rows


def _row(record: Any, take: int | str) -> Row:
    if not isinstance(record, Mapping):
        raise InvalidManifest([f"is {type(record).__name__}, where a mapping of fields is due"])
    fields = {str(name).strip(): _cell(str(name).strip(), value) for name, value in record.items()}
    fields = {name: value for name, value in fields.items() if value is not None}
    identity = fields.pop("id", None)
    motion = {name.removeprefix(MOTION): fields.pop(name) for name in list(fields) if name.startswith(MOTION)}
    problems = []
    if identity is None:
        problems.append("id: is required")
    unknown = [name for name in motion if name not in MOTION_FIELDS]
    problems += [f"{MOTION}{name}: is no field of a row" for name in unknown]
    if motion and "prompt" not in motion:
        problems.append(f"{MOTION}prompt: is required by the other {MOTION} fields")
    request = _collected(lambda: GenerationRequest(**{"take": take, **fields}), problems)
    if request is None or problems:
        raise InvalidManifest(problems)
    row = Row(str(identity), request, _motion_of(request, motion) if motion else None)
    if row.motion is not None:
        _collected(lambda: row.motion_request(placeholder_image()), problems, prefix=MOTION)
    if problems:
        raise InvalidManifest(problems)
    return row


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
        return int(text) if text.lstrip("-").isdigit() else text
    if name in ("watermark", "private"):
        return True if text.lower() in _YES else False if text.lower() in _NO else text
    if name in ("image_urls", "video_urls", "audio_urls"):
        return text.split()
    return text
