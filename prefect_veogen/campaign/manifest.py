"""A campaign's rows, from a list, a file or a link; all problems are reported together, nothing is guessed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_veogen.campaign.cells import FIELDS, MOTION
from prefect_veogen.campaign.records import Manifest, Record, read_records
from prefect_veogen.errors import ConfigurationError, InvalidManifest, InvalidRequest, Problem
from prefect_veogen.models import MAX_DIGITS, Asset, GenerationRequest, text_problem

DEFAULT_MOTION_MODEL = "veo-3.1-fast"
MAX_ID_CHARACTERS = 200

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
    """Return the rows of a manifest: mappings, a DataFrame, or the path or link (http(s), s3, file) of a file. Free.

    A row has an `id`, a `GenerationRequest`'s fields and, for image-then-animate, `motion_prompt` (with
    `motion_model`, `motion_aspect_ratio`, `motion_resolution`, `motion_duration`, `motion_mode`, `motion_style`).
    A row without a `take` of its own has the campaign's; `take_of` fills in either. Blank cells are unset, and in
    CSV, links are separated by spaces.

    Raises:
        InvalidManifest: rows are wrong; all of them are named.
        ConfigurationError: there is no such file, or it can't be read.
    """
    take = take_of(take)
    return _rows(await read_records(manifest), take, take_of)


def placeholder_image(of: str = "") -> Asset:
    """Return a stand-in for a picture that isn't made yet, where only the form of a request matters."""
    return Asset(uri="", sha256=f"of {of}", size=0, content_type="image/png", generation_id="")


# ---------------------------------------------------------------- rows


def _rows(records: Iterable[Record], take: int | str, take_of: TakeOf) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    ids: dict[str, str] = {}
    reported: set[str] = set()
    for record in records:
        label, fields = record.where, dict(record.fields)
        identity = fields.get("id")
        if _id_problem(identity) is None:
            label += f" ({identity})"
            if (first := ids.setdefault(str(identity), record.where)) != record.where:
                problems.append(f"{label}: id: is used by {first} already")
        problems += [f"{label}: {problem}" for problem in record.problems]
        # An unknown heading is reported once, not once per row.
        unknown = {name: fields.pop(name) for name in list(fields) if name not in FIELDS}
        problems += [f"{label}: {_unknown(name, unknown[name])}" for name in unknown if name not in reported]
        reported |= unknown.keys()
        if record.problems:
            continue
        try:
            rows.append(_row(fields, take, take_of))
        except InvalidManifest as error:
            problems += [f"{label}: {problem}" for problem in error.problems]
    if problems or not rows:
        raise InvalidManifest(problems or ["it has no rows"])
    return rows


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
    nearest = next(iter(difflib.get_close_matches(name.lower(), FIELDS, n=1)), None)
    return Problem(name or "(no heading)", value, "is not a field of a row", FIELDS, nearest)


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
