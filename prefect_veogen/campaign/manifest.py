"""A campaign's rows, from a list, a file or a link; all problems are reported together, nothing is guessed."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prefect_veogen.api.http import fetch_text
from prefect_veogen.campaign.parse import ENDINGS, TWICE, mapping, parsed
from prefect_veogen.errors import ConfigurationError, InvalidManifest, InvalidRequest, Problem, StoreUnavailable
from prefect_veogen.models import (
    MAX_DIGITS,
    Asset,
    GenerationRequest,
    text_problem,
    with_plain_line_ends,
    without_secrets,
)
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.store import open_store

MOTION = "motion_"
DEFAULT_MOTION_MODEL = "veo-3.1-fast"
MOTION_FIELDS = ("prompt", "model", "aspect_ratio", "resolution", "duration", "mode", "style")
MAX_ID_CHARACTERS = 200
_FIELDS = ("id", *GenerationRequest.model_fields, *(f"{MOTION}{name}" for name in MOTION_FIELDS))
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")

Manifest = Sequence[Mapping[str, Any]] | Mapping[str, Any] | str | Path
TakeOf = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a campaign: the request for a picture and, with `motion`, how to animate it."""

    id: str
    request: GenerationRequest
    motion: Mapping[str, Any] | None = None

    def motion_request(self, image: Asset) -> GenerationRequest:
        """Return the request for the clip that begins with the picture."""
        assert self.motion is not None
        return GenerationRequest(**{**self.motion, "image_urls": [image], "take": self.request.take})


async def read_manifest(manifest: Manifest, take: int | str = 1, take_of: TakeOf = lambda take: take) -> list[Row]:
    """Return the rows of a manifest: a list of dicts, or the path or link (http(s), s3, file) of a file. Free.

    A row has an `id`, a `GenerationRequest`'s fields and, for image-then-animate, `motion_prompt` (with
    `motion_model`, `motion_aspect_ratio`, `motion_resolution`, `motion_duration`, `motion_mode`, `motion_style`).
    A row without a `take` of its own has the campaign's; `take_of` fills in either. In CSV, empty cells are unset,
    and links are separated by spaces.

    Raises:
        InvalidManifest: rows are wrong; all of them are named.
        ConfigurationError: there is no such file, or it can't be read.
    """
    take = take_of(take)
    found = parsed(*await _text(str(manifest))) if isinstance(manifest, str | Path) else manifest
    if isinstance(found, Mapping) and isinstance(found.get("rows"), list):
        found = found["rows"]
    if not isinstance(found, Sequence) or isinstance(found, str | bytes | bytearray):
        raise InvalidManifest([f"it holds {type(found).__name__}, where a list of rows is expected"])
    return _rows(found, take, take_of)


def placeholder_image(of: str = "") -> Asset:
    """Return a stand-in for a picture that isn't made yet, where only the form of a request matters."""
    return Asset(uri="", sha256=f"of {of}", size=0, content_type="image/png", generation_id="")


# ---------------------------------------------------------------- reading


async def _text(source: str) -> tuple[str, str]:
    # An S3 key may hold any character; in other links the query is not part of the name.
    path = without_secrets(source) if "://" in source and not source.lower().startswith("s3:") else source
    form = ENDINGS.get(Path(path).suffix.lower())
    if form is None:
        raise ConfigurationError(
            f"The manifest {path} has an unknown file extension", next_step=f"Name it one of: {', '.join(ENDINGS)}."
        )
    return await on_io(_read(source)), form


async def _read(source: str) -> str:
    match source.partition("://")[0].lower() if "://" in source else "":
        case "http" | "https":
            return await fetch_text(source)
        case "s3":
            body = await _object(source)
        case "file":
            body = await asyncio.to_thread(_file, source, unquote(urlsplit(source).path))
        case "":
            body = await asyncio.to_thread(_file, source, source)
        case _:
            raise ConfigurationError(
                f"{without_secrets(source)} is not a supported link",
                next_step="Give a path or a link: http(s)://, s3:// or file://.",
            )
    if body is None:
        raise ConfigurationError(f"There is no manifest at {source}", next_step="Check its path.")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidManifest([f"{source} is not UTF-8 text"]) from None


async def _object(source: str) -> bytes | None:
    bucket, _, key = source.partition("://")[2].partition("/")
    try:
        document = await open_store(f"s3://{bucket}").read(key)
    except StoreUnavailable as error:
        raise ConfigurationError(f"The manifest {source} can't be read: {error.message}") from None
    return document.body if document else None


def _file(source: str, path: str) -> bytes | None:
    try:
        return Path(path).expanduser().read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RuntimeError) as error:  # a directory, an invalid file name, an unresolvable `~user`
        raise ConfigurationError(
            f"The manifest {source} can't be read: {getattr(error, 'strerror', error)}",
            next_step="Check its path, and who may read it.",
        ) from None


# ---------------------------------------------------------------- rows


def _rows(records: Sequence[Any], take: int | str, take_of: TakeOf) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = [] if records else ["it has no rows"]
    ids: dict[str, int] = {}
    reported: set[str] = set()
    for number, record in enumerate(records, start=1):
        label = f"row {number}"
        try:
            fields = _fields(record)
            identity = fields.get("id")
            if _id_problem(identity) is None:
                label += f" ({identity})"
                if (first := ids.setdefault(str(identity), number)) != number:
                    problems.append(f"{label}: id: is used by row {first} already")
            # An unknown heading is reported once, not once per row.
            unknown = {name: fields.pop(name) for name in list(fields) if name not in _FIELDS}
            problems += [f"{label}: {_unknown(name, unknown[name])}" for name in unknown if name not in reported]
            reported |= unknown.keys()
            rows.append(_row(fields, take, take_of))
        except InvalidManifest as error:
            problems += [f"{label}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidManifest(problems)
    return rows


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise InvalidManifest([f"is {type(record).__name__}, where a mapping of fields is expected"])
    fields = mapping((str(name).strip(), value) for name, value in record.items())
    if TWICE in fields.values():
        raise InvalidManifest([f"{name}: is set twice" for name, value in fields.items() if value is TWICE])
    cells = {name: _cell(name, value) for name, value in fields.items()}
    return {name: value for name, value in cells.items() if value is not None}


def _row(fields: dict[str, Any], take: int | str, take_of: TakeOf) -> Row:
    identity = fields.pop("id", None)
    motion = {name.removeprefix(MOTION): fields.pop(name) for name in list(fields) if name.startswith(MOTION)}
    wrong = _id_problem(identity)
    problems = [] if wrong is None else [str(Problem("id", identity, wrong))]
    request = _collect_problems(
        lambda: GenerationRequest(**fields | {"take": take_of(fields.get("take", take))}), problems
    )
    if motion:
        problems += _motion_problems(motion)
    if request is None or problems:
        raise InvalidManifest(problems)
    return Row(str(identity), request, _motion_of(request, motion) if motion else None)


def _id_problem(value: Any) -> str | None:
    if value is None:
        return "is required"
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "must be text or a whole number"
    if isinstance(value, int):
        return None if abs(value) < 10**MAX_DIGITS else f"has more than {MAX_DIGITS} digits"
    if len(value) > MAX_ID_CHARACTERS:
        return f"is {len(value)} characters long; at most {MAX_ID_CHARACTERS} are allowed"
    return "must be one line" if re.search(r"[\t\r\n]", value) else text_problem(value)


def _unknown(name: str, value: Any) -> Problem:
    nearest = next(iter(difflib.get_close_matches(name.lower(), _FIELDS, n=1)), None)
    return Problem(name or "(no heading)", value, "is not a field of a row", _FIELDS, nearest)


def _motion_problems(motion: dict[str, Any]) -> list[str]:
    problems = [] if "prompt" in motion else [f"{MOTION}prompt: is required by the other {MOTION} fields"]
    # Without the picture, which isn't made yet and doesn't affect the other fields.
    _collect_problems(
        lambda: GenerationRequest(**{"model": DEFAULT_MOTION_MODEL, "prompt": "-", **motion}), problems, prefix=MOTION
    )
    return problems


def _motion_of(request: GenerationRequest, motion: dict[str, Any]) -> dict[str, Any]:
    ratio = {"aspect_ratio": request.aspect_ratio} if request.aspect_ratio is not None else {}
    return {"model": DEFAULT_MOTION_MODEL, **ratio, **motion}


def _collect_problems(
    make: Callable[[], GenerationRequest], problems: list[str], prefix: str = ""
) -> GenerationRequest | None:
    try:
        return make()
    except InvalidRequest as error:
        problems += [f"{prefix}{problem}" for problem in error.problems]
    except ConfigurationError as error:
        problems.append(f"take: {error.message}")
    return None


def _cell(name: str, value: Any) -> Any:
    """Return a cell of a text format as the field's type, as far as possible; the request validates the rest."""
    if not isinstance(value, str):
        return value
    text = with_plain_line_ends(value).strip()
    if not text:
        return None
    if name.removeprefix(MOTION) == "duration" or name == "take":
        # 007 is not another spelling of 7: it is another take, and another purchase.
        return int(text) if re.fullmatch(rf"0|-?[1-9][0-9]{{0,{MAX_DIGITS - 1}}}", text) else text
    if name in ("watermark", "private"):
        return True if text.lower() in _YES else False if text.lower() in _NO else text
    if name in ("image_urls", "video_urls", "audio_urls"):
        return text.split()
    return text
