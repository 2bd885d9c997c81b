"""The API's contract as an OpenAPI document, for checking the sandbox: endpoints, requests, shapes of responses.

Pages named in docstrings are the vendor's. The bodies of 401, 404 for generations, 422, 429 and 500 are not documented:
those are the sandbox's inventions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from prefect_veogen.sandbox.app import PREFIX
from prefect_veogen.sandbox.catalogue import PROMPT_LIMIT, Model
from prefect_veogen.sandbox.validation import MAX_PAGE, MAX_PER_PAGE, NOT_BLANK, URL_LIMIT, URL_PATTERN

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


class CreateResponse(Shape):
    """Documented at /api-reference/generations/create."""

    data: GenerationShape
    price_usd: float


class ShortCreateResponse(Shape):
    """The other documented response to a purchase, at /api-reference/models/gpt-image-2."""

    data: NewGenerationShape


class GenerationResponse(Shape):
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


class ModelResponse(Shape):
    data: ModelShape


class ModelList(Shape):
    data: list[ModelShape]


class AccountShape(Shape):
    name: str
    email: str
    usd_balance: float
    usd_spent: float


class AccountResponse(Shape):
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


class BalanceResponse(Shape):
    """Documented at /api-reference/account/balance."""

    remaining_balance: float
    used_balance: float


class ErrorResponse(Shape):
    error: str
    message: str | None = None


class InsufficientBalanceResponse(Shape):
    """Documented at /authentication."""

    error: str
    message: str
    required: float
    balance: float


class InvalidResponse(Shape):
    message: str
    errors: dict[str, list[str]]


_RESPONSES: tuple[type[Shape], ...] = (
    AccountResponse,
    BalanceResponse,
    CreateResponse,
    ErrorResponse,
    GenerationList,
    GenerationPage,
    GenerationResponse,
    InsufficientBalanceResponse,
    InvalidResponse,
    ModelList,
    ModelResponse,
    UsagePage,
)


# ---------------------------------------------------------------- the document


def openapi_document(models: Iterable[Model]) -> dict[str, Any]:
    """Build the OpenAPI document of the API that sells these models."""
    request = {"oneOf": [request_schema(model) for model in models]}
    _, definitions = models_json_schema(
        [(shape, "serialization") for shape in _RESPONSES], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Veogen Studio", "version": "1"},
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
        "paths": {PREFIX + path: operations for path, operations in _paths(request).items()},
    }


def request_schema(model: Model) -> dict[str, Any]:
    """Describe the requests that a model accepts."""
    properties: dict[str, Any] = {
        "model": {"type": "string", "const": model.slug},
        "prompt": {"type": "string", "minLength": 1, "maxLength": PROMPT_LIMIT, "pattern": NOT_BLANK},
    }
    for name, choices in model.choices().items():
        properties[name] = {"type": "integer" if name == "duration" else "string", "enum": list(choices)}
    for name, limit in model.url_limits().items():
        url = {"type": "string", "pattern": URL_PATTERN, "maxLength": URL_LIMIT}
        properties[name] = {"type": "array", "items": url, "maxItems": limit}
    for name in model.flags:
        properties[name] = {"type": "boolean"}
    return {
        "title": model.label,
        "type": "object",
        "properties": properties,
        "required": ["model", "prompt"],
        "additionalProperties": False,
    }


def _paths(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    kind, model = _query("type", {"enum": ["video", "image"]}), _query("model", {})
    page, pages_of_20, pages_of_25 = _number("page", 1, MAX_PAGE), _per_page(20), _per_page(25)
    refused: dict[int, type[Shape]] = {402: InsufficientBalanceResponse, 422: InvalidResponse}
    unpaged_or_paged = (GenerationPage, GenerationList)
    return {
        "/generations": {
            "get": _operation(unpaged_or_paged, {422: InvalidResponse}, kind, pages_of_20, page),
            "post": {
                **_operation((CreateResponse,), refused, status=201),
                "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
            },
        },
        "/generations/{id}": {"get": _operation((GenerationResponse,), {404: ErrorResponse}, _path("id"))},
        "/models": {"get": _operation((ModelList,))},
        "/models/{slug}": {"get": _operation((ModelResponse,), {404: ErrorResponse}, _path("slug"))},
        "/account": {"get": _operation((AccountResponse,))},
        "/account/usage": {"get": _operation((UsagePage,), {422: InvalidResponse}, kind, model, pages_of_25)},
        "/balance": {"get": _operation((BalanceResponse,))},
    }


def _operation(
    shapes: tuple[type[Shape], ...],
    refusals: Mapping[int, type[Shape]] | None = None,
    *parameters: dict[str, Any],
    status: int = 200,
) -> dict[str, Any]:
    retry_after = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    errors: dict[int, type[Shape]] = {401: ErrorResponse, 429: ErrorResponse, 500: ErrorResponse, **(refusals or {})}
    responses = {str(status): _response(*shapes), **{str(code): _response(shape) for code, shape in errors.items()}}
    responses["429"]["headers"] = retry_after
    return {"parameters": list(parameters), "responses": responses}


def _response(*shapes: type[Shape]) -> dict[str, Any]:
    schema = {"anyOf": [{"$ref": f"#/components/schemas/{shape.__name__}"} for shape in shapes]}
    return {"description": shapes[0].__name__, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": {"type": "string", **schema}}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _per_page(default: int) -> dict[str, Any]:
    return _number("per_page", default, MAX_PER_PAGE)


def _number(name: str, default: int, most: int) -> dict[str, Any]:
    return _query(name, {"type": "integer", "minimum": 1, "maximum": most, "default": default})
