"""The shapes of the API's answers, as its OpenAPI document states them; only documentation, nothing is parsed by it.

Bodies of 401, 404 for generations, 422, 429 and 500 are not documented by the vendor: those are inventions, in the one
error format that /authentication prints (`error`, `message`) and, for 422, in the way of a Laravel server.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["image", "video"]
Status = Literal["pending", "processing", "completed", "failed"]


class Shape(BaseModel):
    """An object with no other fields than these."""

    model_config = ConfigDict(extra="forbid")


class Output(Shape):
    url: str
    content_type: Literal["image/png", "video/mp4"]


class VideoOutput(Output):
    download_url: str


class GenerationShape(Shape):
    """Documented at /api-reference/generations/get."""

    id: str
    status: Status
    model: str
    type: Kind
    prompt: str
    parameters: dict[str, Any]
    output: Output | VideoOutput | None
    error: str | dict[str, Any] | None
    created_at: str
    completed_at: str | None


class NewGenerationShape(Shape):
    """The four fields documented at /api-reference/models/gpt-image-2."""

    id: str
    model: str
    status: Status
    created_at: str


class CreateAnswer(Shape):
    """Documented at /api-reference/generations/create."""

    data: GenerationShape
    price_usd: float


class ShortCreateAnswer(Shape):
    data: NewGenerationShape


class GenerationAnswer(Shape):
    data: GenerationShape


class Meta(Shape):
    current_page: int
    last_page: int
    per_page: int
    total: int


class GenerationList(Shape):
    """Every kind at once: no page data, documented at /api-reference/generations/list."""

    data: list[GenerationShape]


class GenerationPage(GenerationList):
    meta: Meta


class ModelShape(Shape):
    """Documented at /api-reference/models/get."""

    slug: str
    label: str
    type: Kind
    price_usd: float
    multiply_by_duration: bool
    resolution_multipliers: dict[str, float] | list[Any]
    supported_params: list[str]
    aspect_ratios: list[str]
    resolutions: list[str]
    durations: list[int]
    modes: list[str]
    docs_url: str


class ModelAnswer(Shape):
    data: ModelShape


class ModelList(Shape):
    data: list[ModelShape]


class AccountShape(Shape):
    name: str
    email: str
    usd_balance: float
    usd_spent: float


class AccountAnswer(Shape):
    """Documented at /api-reference/account/get."""

    data: AccountShape


class UsageLine(Shape):
    id: int
    model_key: str
    generation_type: Kind
    amount_usd: float
    source: str
    created_at: str


class UsagePage(Shape):
    """Documented at /api-reference/account/get."""

    current_page: int
    data: list[UsageLine]
    per_page: int
    total: int


class BalanceAnswer(Shape):
    """Documented at /api-reference/account/balance."""

    remaining_balance: float
    used_balance: float


class ErrorAnswer(Shape):
    error: str
    message: str | None = None


class InsufficientBalanceAnswer(Shape):
    """Documented at /authentication."""

    error: str
    message: str
    required: float
    balance: float


class InvalidAnswer(Shape):
    message: str
    errors: dict[str, list[str]]
