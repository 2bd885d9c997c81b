"""Validation and price of a request, by the service's live model object alone."""

from __future__ import annotations

import difflib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from prefect_veogen.errors import InvalidRequest, Problem
from prefect_veogen.models import CatalogueModel, Certainty, GenerationRequest, Quote

if TYPE_CHECKING:
    from collections.abc import Sequence

# A field of the request → the model object's list of values for it.
_CHOICES = {
    "aspect_ratio": "aspect_ratios",
    "resolution": "resolutions",
    "duration": "durations",
    "mode": "modes",
    "style": "styles",
}


def validate(request: GenerationRequest, model: CatalogueModel) -> None:
    """Validate a request against a model; nothing is clamped, dropped or guessed.

    Raises:
        InvalidRequest: fields the model doesn't support, or values it doesn't offer; all of them together.
    """
    problems = [problem for field, value in request.set_fields().items() if (problem := _problem(field, value, model))]
    if problems:
        raise InvalidRequest(problems)


def quote(request: GenerationRequest, model: CatalogueModel) -> Quote:
    """Return the price of a request: base price x resolution multiplier x seconds where billed per second.

    The documentation states the three factors (/api-reference/models/get) but never the formula, and says that
    a reference video makes some models cheaper without saying by how much: that quote is an upper bound.
    """
    if model.price_usd is None:
        return Quote(usd=None, certainty=Certainty.UNPRICED)
    certainty = Certainty.UPPER_BOUND if request.video_urls else Certainty.EXACT
    usd = model.price_usd * model.resolution_multipliers.get(request.resolution or "", Decimal(1))
    if model.multiply_by_duration:
        seconds = request.duration
        if seconds is None:
            if not model.durations:
                return Quote(usd=None, certainty=Certainty.UNPRICED)
            seconds, certainty = max(model.durations), Certainty.UPPER_BOUND
        usd *= seconds
    return Quote(usd=usd, certainty=certainty)


def _problem(field: str, value: Any, model: CatalogueModel) -> Problem | None:
    if field == "model":
        return None
    if model.supported_params is not None and field not in ("prompt", *model.supported_params):
        return Problem(field, value, f"{model.slug} does not take this field", model.supported_params)
    allowed = getattr(model, _CHOICES[field]) if field in _CHOICES else None
    if allowed is None or value in allowed:
        return None
    return Problem(field, value, f"{model.slug} does not offer this", allowed, _nearest(value, allowed))


def _nearest(value: Any, allowed: Sequence[Any]) -> Any:
    if isinstance(value, int):
        return min(allowed, key=lambda choice: abs(choice - value))
    by_case = {str(choice).lower(): choice for choice in allowed}
    close = difflib.get_close_matches(str(value).lower(), by_case, n=1, cutoff=0)
    return by_case[close[0]] if close else None
