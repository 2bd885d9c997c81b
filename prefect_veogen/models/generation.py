"""Generations, assets, catalogue models and quotes; frozen, without any I/O."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr


class Kind(StrEnum):
    """What a generation makes."""

    IMAGE = "image"
    VIDEO = "video"


class Status(StrEnum):
    """A generation's status, as documented at /quickstart; UNRECOGNISED is any that the documentation lacks."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    UNRECOGNISED = "unknown"


AnyType = TypeVar("AnyType", bound=type[Any])


def named_by_the_package(cls: AnyType) -> AnyType:
    """Make stored results name a class by its public import, which stays when the code moves."""
    cls.__module__ = "prefect_veogen"
    return cls


class Value(BaseModel):
    """Frozen, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Asset(Value):
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
    """The service's own link to the same bytes, without its query; it may have expired."""

    @property
    def kind(self) -> Kind:
        """Whether it is a picture or a clip."""
        return Kind.VIDEO if self.content_type.startswith("video/") else Kind.IMAGE


@named_by_the_package
class Animated(Value):
    """A picture and the clip that was made from it."""

    image: Asset
    video: Asset


@named_by_the_package
class Approved(Value):
    """The pictures that a person was shown last, and the clips made from those that were approved, in their order.

    `approved` are the pictures' numbers, from 1: `videos[0]` moves `images[approved[0] - 1]`.
    """

    images: tuple[Asset, ...]
    videos: tuple[Asset, ...] = ()
    approved: tuple[int, ...] = ()


def _as_money(value: Any) -> Any:
    return Decimal(str(value)) if isinstance(value, float) else value


Money = Annotated[Decimal, BeforeValidator(_as_money)]


class Output(Value):
    """The service's link to the finished media; how long it stays valid is not documented."""

    url: str
    content_type: str | None = None


class Generation(Value):
    """One paid run of the API: an id, a status and, once completed, an output to download.

    `price_usd` is what the service charged; `receipt` is the ledger's key of the purchase, when it went through the
    ledger. `Generation(id="…")` is enough to wait for and download something bought elsewhere.
    """

    id: Annotated[StrictStr, Field(min_length=1)]
    status: Status = Status.UNRECOGNISED
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
        """Whether the status is final (/api-reference/generations/get)."""
        return self.status in (Status.COMPLETED, Status.FAILED)


class CatalogueModel(Value):
    """One model of the service's catalogue: its parameters and prices, as far as the service states them.

    `None` means "not stated": nothing is validated against it. Shape: /api-reference/models/get.
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
    """How sure a quote is; UNPRICED where the service states no price."""

    EXACT = "exact"
    UPPER_BOUND = "upper bound"
    UNPRICED = "unknown"


class Quote(Value):
    """What a request would cost; `usd` is None only where the service states no price."""

    usd: Decimal | None
    certainty: Certainty
