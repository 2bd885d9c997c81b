"""A request: validated as far as is possible without the catalogue, and what identifies it."""

from __future__ import annotations

import pickle
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from prefect_veogen.errors import InvalidRequest, Problem
from prefect_veogen.masking import with_masked_links
from prefect_veogen.models.generation import Asset, Value
from prefect_veogen.models.locations import is_public, location_of, location_of_file
from prefect_veogen.models.receipt_key import ReceiptKey, digest, take_part
from prefect_veogen.models.signed_links import without_signature
from prefect_veogen.models.text import (
    HALF_A_CHARACTER,
    MAX_DIGITS,
    nearest,
    normal_base_url,
    text_problem,
    with_plain_line_ends,
)

MAX_PROMPT_CHARACTERS = 2000  # /api-reference/generations/create; the unit is not documented, we count code points
MAX_IMAGES = 14  # /authentication; one model's own page says more:
MAX_IMAGES_OF_MODEL = {"gpt-image-2": 16}  # /api-reference/models/gpt-image-2


def _as_tuple(value: Any) -> Any:
    # Not any iterable: the order is part of what is bought, and a set's differs between processes.
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of URLs, local files or Assets")
    return tuple(location_of_file(item) if isinstance(item, Path) else item for item in value)


Input = StrictStr | Asset
Inputs = Annotated[tuple[Input, ...], BeforeValidator(_as_tuple)]


class GenerationRequest(Value):
    """What to make: a frozen value with the API's fields under the API's names, plus `take`.

    Only fields that are set are sent. `duration` is in seconds. `image_urls`, `video_urls` and `audio_urls` take
    http(s) URLs that the service can reach, `s3://bucket/key`, local files (a `pathlib.Path`, or text that begins with
    `file:///`, `/`, `./`, `../` or `~/`; the store has to be a bucket) and `Asset`s. Of an object or a file, its bytes
    at the time of buying count, not where it lies. Two equal requests are one purchase, and so are two whose links
    differ only in their signatures (S3, GCS, Azure, CloudFront) or whose prompts differ only in CRLF and LF; another
    `take` (a number, or a string such as a date) is another purchase. Building one costs nothing, and reads nothing.
    Fields: /api-reference/generations/create.

    Raises:
        InvalidRequest: a field is wrong; all problems are listed at once.
    """

    model: Annotated[StrictStr, Field(min_length=1)]
    prompt: StrictStr
    aspect_ratio: StrictStr | None = None
    resolution: StrictStr | None = None
    duration: StrictInt | None = None
    mode: StrictStr | None = None
    style: StrictStr | None = None
    image_urls: Inputs | None = None
    video_urls: Inputs | None = None
    audio_urls: Inputs | None = None
    watermark: StrictBool | None = None
    private: StrictBool | None = None
    take: StrictInt | StrictStr = 1

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InvalidRequest(_problems_of(error)) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise InvalidRequest(_problems_of(error)) from None

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            raise InvalidRequest(_problems_of(error)) from None

    @field_validator("*")
    @classmethod
    def _can_be_sent(cls, value: Any) -> Any:
        if isinstance(value, str) and (problem := text_problem(value)):
            raise ValueError(problem)
        if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
            raise ValueError(f"has more than {MAX_DIGITS} digits")
        return value

    @field_validator("prompt")
    @classmethod
    def _prompt_length(cls, prompt: str) -> str:
        # The same text from another editor or spreadsheet must not be bought again.
        prompt = with_plain_line_ends(prompt)
        if not prompt.strip():
            raise ValueError("must not be empty")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"is {len(prompt)} characters long; at most {MAX_PROMPT_CHARACTERS} are allowed")
        if slot := re.search(r"\{scheduled:[^{}]*\}?", prompt):
            raise ValueError(f"holds {slot[0]}, which only takes and published names may; write what is meant")
        return prompt

    @field_validator("image_urls", "video_urls", "audio_urls")
    @classmethod
    def _urls(cls, inputs: tuple[Input, ...] | None, info: ValidationInfo) -> tuple[Input, ...] | None:
        max_images = MAX_IMAGES_OF_MODEL.get(info.data.get("model", ""), MAX_IMAGES)
        if info.field_name == "image_urls" and inputs and len(inputs) > max_images:
            raise ValueError(f"holds {len(inputs)} images; at most {max_images} are allowed")
        is_list = len(inputs or ()) > 1
        return tuple(_located(item, value, is_list=is_list) for item, value in enumerate(inputs or ())) or None

    @field_validator("take")
    @classmethod
    def _take_is_named(cls, take: int | str) -> int | str:
        if isinstance(take, str) and not take.strip():
            raise ValueError("must not be empty")
        if isinstance(take, str) and re.search("[{}]", take):
            raise ValueError("contains braces; prefect_veogen.schedule.take_of_slot fills them in")
        return take

    def set_fields(self) -> dict[str, Any]:
        """Return the fields of the API that were set, as given, in the API's order; `take` is not the API's."""
        names = [name for name in type(self).model_fields if name != "take"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def unsigned(self) -> Self:
        """Return the request with unsigned links: for comparing and storing, not for sending."""
        links = {
            name: tuple(item if isinstance(item, Asset) else without_signature(item) for item in value)
            for name, value in self.set_fields().items()
            if isinstance(value, tuple)
        }
        return self.model_copy(update=links)

    @property
    def is_identified(self) -> bool:
        """Whether it is known what is bought: an object of a bucket or a local file has to be read first."""
        inputs = [item for value in self.set_fields().values() if isinstance(value, tuple) for item in value]
        return all(isinstance(item, Asset) or is_public(item) for item in inputs)

    def canonical(self) -> dict[str, Any]:
        """Return what identifies the request, JSON-ready: assets by digest, links without their signatures."""
        return {name: _identity(value) for name, value in self.unsigned().set_fields().items()}

    def receipt_key(self, base_url: str) -> str:
        """Return the ledger's key: versioned digests of the canonical request and the API's base, and the take.

        That of a request which is not `is_identified` is a name, and no key of the ledger.
        """
        api = normal_base_url(base_url)
        visible = digest({"api": api, "model": self.model, "prompt": self.prompt})
        content = digest({"api": api, "request": self.canonical()})
        return str(ReceiptKey(visible[:12], content[:32], take_part(self.take)))


def place_of(given: Any) -> str:
    """Return where an input lies in the one form in which requests hold it, whatever form it is given in."""
    if isinstance(given, Asset):
        return place_of(given.uri)
    try:
        return without_signature(location_of_file(given) if isinstance(given, Path) else location_of(given))
    except (ValueError, TypeError, AttributeError):  # none that can be bought: the request says what is wrong
        return str(given)


def _located(position: int, value: Input, *, is_list: bool) -> Input:
    if isinstance(value, Asset):
        return value
    problem = text_problem(value)
    # A link may hold commas, so one alone may end in one; of several, it would be bought with the separator.
    if problem is None and is_list and value.strip(",;") != value:
        problem = "begins or ends with a comma or semicolon; separate links in a cell by nothing but spaces"
    if problem is None:
        try:
            return location_of(value)
        except ValueError as refused:
            problem = str(refused)
    raise ValueError(f"item {position} ({with_masked_links(value)[:60]!r}) {problem}")


def _identity(value: Any) -> Any:
    if isinstance(value, tuple):
        return [{"sha256": item.sha256} if isinstance(item, Asset) else {"url": item} for item in value]
    return value


_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a field of a generation request",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_unicode": HALF_A_CHARACTER,
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
}


def _problems_of(error: ValidationError) -> list[Problem]:
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        if isinstance(nested := item.get("ctx", {}).get("error"), InvalidRequest):
            return list(nested.problems)
        field = str(item["loc"][0]) if item["loc"] else "request"
        message = _WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
        match item["loc"]:
            case ("take", "int" | "str"):
                message = "must be text or a whole number"
            case (_, int(position), *_):
                message = f"item {position}: must be a URL, a local file or an Asset"
        value = None if item["type"] == "missing" else _picklable(item["input"])
        allowed = tuple(GenerationRequest.model_fields) if item["type"] == "extra_forbidden" else None
        found.setdefault(field, Problem(field, value, message, allowed, nearest(field, allowed or ())))
    return list(found.values())


def _picklable(value: Any) -> Any:
    """Return the value if it can be pickled, else its text: errors travel between processes."""
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - any object may have been passed, and raise anything
        return reprlib.repr(value)
    return value
