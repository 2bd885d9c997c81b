"""The values that everything else passes around: frozen, printable, picklable, without any I/O."""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import re
import reprlib
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from prefect_veogen.errors import InvalidRequest, Problem, with_masked_links
from prefect_veogen.signed_links import without_signature

MAX_PROMPT_CHARACTERS = 2000  # /api-reference/generations/create; the unit is not documented, we count code points
MAX_IMAGES = 14  # /authentication; one model's own page says more:
MAX_IMAGES_OF_MODEL = {"gpt-image-2": 16}  # /api-reference/models/gpt-image-2
MAX_DIGITS = 18

_HALF_A_CHARACTER = "holds half a character (a lone surrogate), which can't be sent"

KEY_VERSION = "v1"


class Kind(StrEnum):
    """What a generation makes."""

    IMAGE = "image"
    VIDEO = "video"


class Status(StrEnum):
    """Where a generation is; documented at /quickstart. UNKNOWN stands for any status the documentation lacks."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"


AnyType = TypeVar("AnyType", bound=type[Any])


def named_by_the_package(cls: AnyType) -> AnyType:
    """Let stored results name a class by where users import it from, which stays when the code inside moves."""
    cls.__module__ = "prefect_veogen"
    return cls


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Asset(_Value):
    """A finished file in the store, verified: `uri` says where, `sha256` says what.

    `size` is in bytes, `price_usd` what its generation cost. It may stand wherever an input URL may in a
    `GenerationRequest`; there its digest, never its link, identifies it.
    """

    uri: str
    sha256: str
    size: int
    content_type: str
    generation_id: str
    price_usd: Decimal | None = None
    model: str | None = None
    source_url: str | None = None
    """The service's own link to the same bytes, without its query; it may have gone stale."""


@named_by_the_package
class Animated(_Value):
    """A picture and the clip that was made from it."""

    image: Asset
    video: Asset


def _as_tuple(value: Any) -> Any:
    # Not any iterable: the order is part of what is bought, and a set has another one in every process.
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of URLs or Assets")
    return tuple(value)


def _as_money(value: Any) -> Any:
    return Decimal(str(value)) if isinstance(value, float) else value


Input = StrictStr | Asset
Inputs = Annotated[tuple[Input, ...], BeforeValidator(_as_tuple)]
Money = Annotated[Decimal, BeforeValidator(_as_money)]


class GenerationRequest(_Value):
    """What to make: a frozen value with the API's fields under the API's names, plus `take`.

    Only fields that are set are sent. `duration` is in seconds. `image_urls`, `video_urls` and `audio_urls` take
    http(s) URLs that the service can reach, or `Asset`s. Two equal requests are one purchase, and so are two whose
    links differ only in their signatures (S3, GCS, Azure, CloudFront) or whose prompts differ only in CRLF and LF;
    another `take` (a number, or a string such as a date) is another purchase. Building one costs nothing.
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
        return prompt

    @field_validator("image_urls", "video_urls", "audio_urls")
    @classmethod
    def _urls(cls, inputs: tuple[Input, ...] | None, info: ValidationInfo) -> tuple[Input, ...] | None:
        most = MAX_IMAGES_OF_MODEL.get(info.data.get("model", ""), MAX_IMAGES)
        if info.field_name == "image_urls" and inputs and len(inputs) > most:
            raise ValueError(f"holds {len(inputs)} images; at most {most} are allowed")
        for position, value in enumerate(inputs or ()):
            if isinstance(value, str) and (problem := text_problem(value) or _link_problem(value)):
                raise ValueError(f"item {position} ({with_masked_links(value)[:60]!r}) {problem}")
        return inputs or None

    @field_validator("take")
    @classmethod
    def _take_is_named(cls, take: int | str) -> int | str:
        if isinstance(take, str) and not take.strip():
            raise ValueError("must not be empty")
        if isinstance(take, str) and re.search("[{}]", take):
            raise ValueError("holds braces; pass it through prefect_veogen.slots.take_of_slot, which fills them in")
        return take

    def set_fields(self) -> dict[str, Any]:
        """Return the fields of the API that were set, as given, in the API's order; `take` is not the API's."""
        names = [name for name in type(self).model_fields if name != "take"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def unsigned(self) -> Self:
        """Return the request with its links without their signatures: to be compared or kept, not to be sent."""
        links = {
            name: tuple(item if isinstance(item, Asset) else without_signature(item) for item in value)
            for name, value in self.set_fields().items()
            if isinstance(value, tuple)
        }
        return self.model_copy(update=links)

    def canonical(self) -> dict[str, Any]:
        """Return what identifies the request, JSON-ready: assets by digest, links without their signatures."""
        return {name: _identity(value) for name, value in self.unsigned().set_fields().items()}

    def receipt_key(self, base_url: str) -> str:
        """Return the ledger's key: versioned digests of the canonical request and the API's base, and the take."""
        api = normal_base_url(base_url)
        visible = _digest({"api": api, "model": self.model, "prompt": self.prompt})
        content = _digest({"api": api, "request": self.canonical()})
        return str(ReceiptKey(visible[:12], content[:32], _take_part(self.take)))


class ReceiptKey(NamedTuple):
    """The ledger's key of a purchase, in parts; nothing else knows how it is written.

    `visible` covers what the service shows of a generation, so that receipts which could be confused when a purchase
    is in doubt are listed side by side; `content` covers the whole request; `take` tells its versions apart.
    """

    visible: str
    content: str
    take: str

    @classmethod
    def parse(cls, text: str) -> ReceiptKey:
        """Return the parts of a key as it is written."""
        _version, visible, content, take = text.split("-", 3)
        return cls(visible, content, take)

    def __str__(self) -> str:
        return f"{self.content_key}-{self.take}"

    @property
    def family(self) -> str:
        """The beginning which keys of purchases that look the same from outside share."""
        return f"{KEY_VERSION}-{self.visible}-"

    @property
    def content_key(self) -> str:
        """The beginning which the keys of all takes of a request share."""
        return f"{self.family}{self.content}"

    @staticmethod
    def reservation(key: str, attempt: int) -> str:
        """Return what an attempt of the purchase of that key is called in the budgets."""
        return f"{key}#{attempt}"

    @staticmethod
    def of_reservation(name: str) -> str:
        """Return the key of the purchase for which money is reserved under a name."""
        return name.rpartition("#")[0]


def with_plain_line_ends(text: str) -> str:
    """Return a text with LF for every CRLF and CR."""
    return re.sub("\r\n?", "\n", text)


def text_problem(text: str) -> str | None:
    """Return why a text can't be sent, if there is a reason."""
    if re.search("[\ud800-\udfff]", text):
        return _HALF_A_CHARACTER
    if control := re.search(r"[^\t\n\r -~\xa0-\U0010ffff]", text):
        return f"holds the control character {control[0]!r}; remove it"
    return None


def _link_problem(url: str) -> str | None:
    if re.search(r"[,;]https?://", url):
        return "holds two links; separate them by spaces"
    try:
        parts = urlsplit(url)
        if re.fullmatch(r"https?://\S+", url) and parts.hostname and parts.port != 0:
            return None
    except ValueError:  # brackets that hold no address, or a port that is none
        pass
    return "is no http:// or https:// URL; give a public URL or an Asset"


def in_usd(amount: Decimal | None) -> str:
    """Return an amount as people write it: all its digits, but at least cents."""
    if amount is None:
        return "unknown"
    whole, _, cents = f"{abs(amount).normalize():f}".partition(".")
    return f"{'-' if amount < 0 else ''}${whole}.{cents:0<2}"


def normal_base_url(base_url: str) -> str:
    """Return the base URL in the one form that keys and requests use."""
    scheme, separator, rest = base_url.strip().rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    scheme, host = scheme.lower(), host.lower()
    host = host.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))
    return f"{scheme}{separator}{host}{slash}{path}"


def without_secrets(url: str) -> str:
    """Return a link without what may be a secret in it: query, fragment, user and password."""
    address = url.partition("?")[0].partition("#")[0]
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(value: Any) -> Any:
    if isinstance(value, tuple):
        return [{"sha256": item.sha256} if isinstance(item, Asset) else {"url": item} for item in value]
    return value


def _take_part(take: int | str) -> str:
    text = str(take)
    # Keys are file names too: what a case-blind or strict file system could confuse goes in as a digest.
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", text):
        return f"take-{text}"
    return f"take.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is no field of a generation request",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_unicode": _HALF_A_CHARACTER,
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
                message = f"item {position}: must be a URL or an Asset"
        value = None if item["type"] == "missing" else _kept(item["input"])
        allowed = tuple(GenerationRequest.model_fields) if item["type"] == "extra_forbidden" else None
        nearest = next(iter(difflib.get_close_matches(field, allowed or (), n=1)), None)
        found.setdefault(field, Problem(field, value, message, allowed, nearest))
    return list(found.values())


def _kept(value: Any) -> Any:
    """Return what an error may carry along to another process: the value, or its text if it can't be pickled."""
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - any object may have been handed in, with any way of refusing
        return reprlib.repr(value)
    return value


class Output(_Value):
    """Where the service offers the finished media; how long its links live is not documented."""

    url: str
    content_type: str | None = None


class Generation(_Value):
    """One paid run of the API: an id, a status and, once completed, an output to download.

    `price_usd` is what the service charged; `receipt` is the ledger's key of the purchase, when it went through the
    ledger. `Generation(id="…")` is enough to wait for and download something bought elsewhere.
    """

    id: Annotated[StrictStr, Field(min_length=1)]
    status: Status = Status.UNKNOWN
    status_text: str | None = None
    model: str | None = None
    type: Kind | None = None
    prompt: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    output: Output | None = None
    error: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    price_usd: Money | None = None
    receipt: str | None = None

    @property
    def is_over(self) -> bool:
        """Tell whether the service will not change it any more (/api-reference/generations/get)."""
        return self.status in (Status.COMPLETED, Status.FAILED)


class CatalogueModel(_Value):
    """One model of the service's catalogue: what it takes and costs, as far as the service states it.

    `None` means "not stated": nothing is checked against it. Shape: /api-reference/models/get.
    """

    slug: str
    label: str | None = None
    type: Kind | None = None
    price_usd: Money | None = None
    multiply_by_duration: bool = False
    resolution_multipliers: dict[str, Money] = Field(default_factory=dict)
    supported_params: tuple[str, ...] | None = None
    aspect_ratios: tuple[str, ...] | None = None
    resolutions: tuple[str, ...] | None = None
    durations: tuple[int, ...] | None = None
    modes: tuple[str, ...] | None = None
    styles: tuple[str, ...] | None = None


class Certainty(StrEnum):
    """How sure a quote is."""

    EXACT = "exact"
    UPPER_BOUND = "upper bound"
    UNKNOWN = "unknown"


class Quote(_Value):
    """What a request would cost; `usd` is None only when nothing can be said."""

    usd: Decimal | None
    certainty: Certainty
