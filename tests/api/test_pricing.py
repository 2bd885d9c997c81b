"""A request is judged and priced by the live model object alone; what that does not state is not guessed."""

from __future__ import annotations

import string
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_veogen import Asset, GenerationRequest
from prefect_veogen.api.pricing import quote, validate
from prefect_veogen.errors import InvalidRequest, Problem
from prefect_veogen.models import CatalogueModel, Certainty

CLIP = CatalogueModel(
    slug="veo-3.1-fast",
    price_usd=Decimal("0.30"),
    resolution_multipliers={"720p": Decimal(1), "4k": Decimal(3)},
    supported_params=("prompt", "duration", "aspect_ratio", "resolution", "image_urls", "mode"),
    aspect_ratios=("16:9", "9:16"),
    resolutions=("720p", "1080p", "4k"),
    durations=(4, 8, 15),
    modes=("frame", "ingredient"),
)
PER_SECOND = CLIP.model_copy(update={"multiply_by_duration": True, "supported_params": None})
SILENT = CatalogueModel(slug="silent")


def clip(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "veo-3.1-fast", "prompt": "waves", **fields})


def problems(model: CatalogueModel = CLIP, **fields: Any) -> list[Problem]:
    with pytest.raises(InvalidRequest) as caught:
        validate(clip(**fields), model)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"aspect_ratio": "16:9", "resolution": "4k", "duration": 8, "mode": "frame"},
        {"image_urls": ["https://example.org/a.png"], "take": "anything"},
    ],
)
def test_what_the_model_offers_is_valid(fields: dict[str, Any]) -> None:
    validate(clip(**fields), CLIP)


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("aspect_ratio", "16:10", "16:9"),
        ("aspect_ratio", "9:15", "9:16"),
        ("resolution", "4K", "4k"),
        ("resolution", "1080P", "1080p"),
        ("resolution", "1080", "1080p"),
        ("duration", 5, 4),
        ("duration", 100, 15),
        ("duration", -1, 4),
        ("mode", "Frames", "frame"),
    ],
)
def test_what_the_model_does_not_offer_names_value_choices_and_the_nearest(
    field: str, value: Any, nearest: Any
) -> None:
    [found] = problems(**{field: value})
    allowed = {"aspect_ratio": CLIP.aspect_ratios, "resolution": CLIP.resolutions, "duration": CLIP.durations}
    assert (found.field, found.value, found.nearest) == (field, value, nearest)
    assert found.allowed == allowed.get(field, CLIP.modes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("style", "anime"),
        ("video_urls", ["https://example.org/a.mp4"]),
        ("audio_urls", ["https://example.org/a.mp3"]),
        ("watermark", False),
        ("private", True),
    ],
)
def test_a_field_that_the_model_does_not_take_is_refused_rather_than_dropped(field: str, value: Any) -> None:
    [found] = problems(**{field: value})
    assert (found.field, found.allowed) == (field, CLIP.supported_params)
    assert "does not take" in found.message


def test_the_nearest_is_found_whatever_the_case_of_the_models_own_spelling() -> None:
    shouting = CLIP.model_copy(update={"resolutions": ("0.5K", "1K", "2K", "4K"), "modes": ("sun", "FUN")})
    assert [problem.nearest for problem in problems(shouting, resolution="4k", mode="fun")] == ["4K", "FUN"]


def test_all_problems_are_reported_together() -> None:
    found = problems(aspect_ratio="1:1", duration=5, style="anime", mode="frame")
    assert [problem.field for problem in found] == ["aspect_ratio", "duration", "style"]


def test_what_the_model_does_not_state_is_not_checked() -> None:
    validate(clip(aspect_ratio="1:7", resolution="9k", duration=99, mode="x", style="y", watermark=True), SILENT)


def test_validation_does_not_change_the_request() -> None:
    picture = Asset(uri="x", sha256="ab" * 32, size=1, content_type="image/png", generation_id="g")
    request = clip(resolution="4k", image_urls=[picture])
    before = request.receipt_key("https://x")
    validate(request, CLIP)
    quote(request, CLIP)
    assert request.receipt_key("https://x") == before


@pytest.mark.parametrize(
    ("model", "fields", "usd", "certainty"),
    [
        (CLIP, {}, "0.30", Certainty.EXACT),
        (CLIP, {"resolution": "720p"}, "0.30", Certainty.EXACT),
        (CLIP, {"resolution": "4k"}, "0.90", Certainty.EXACT),
        (CLIP, {"duration": 8}, "0.30", Certainty.EXACT),
        (PER_SECOND, {"duration": 8}, "2.40", Certainty.EXACT),
        (PER_SECOND, {"duration": 15, "resolution": "4k"}, "13.50", Certainty.EXACT),
        (PER_SECOND, {}, "4.50", Certainty.UPPER_BOUND),
        (PER_SECOND, {"duration": 8, "video_urls": ["https://example.org/a.mp4"]}, "2.40", Certainty.UPPER_BOUND),
        (PER_SECOND.model_copy(update={"durations": None}), {}, None, Certainty.UNPRICED),
        (PER_SECOND.model_copy(update={"durations": None}), {"duration": 10}, "3.00", Certainty.EXACT),
        (SILENT, {"duration": 8}, None, Certainty.UNPRICED),
    ],
)
def test_a_price_is_base_times_resolution_times_seconds(
    model: CatalogueModel, fields: dict[str, Any], usd: str | None, certainty: Certainty
) -> None:
    found = quote(clip(**fields), model)
    assert (str(found.usd) if found.usd is not None else None, found.certainty) == (usd, certainty)


@settings(deadline=None)
@given(price=st.decimals(0, 1000, places=4), factor=st.decimals(0, 20, places=2), seconds=st.integers(1, 60))
def test_no_price_is_rounded(price: Decimal, factor: Decimal, seconds: int) -> None:
    model = CatalogueModel(slug="m", price_usd=price, multiply_by_duration=True, resolution_multipliers={"4k": factor})
    assert quote(clip(resolution="4k", duration=seconds), model).usd == price * factor * seconds


@settings(deadline=None)
@given(choices=st.lists(st.text(max_size=4), min_size=1, max_size=5), value=st.text(string.printable[:95], max_size=4))
def test_the_nearest_choice_is_always_one_of_the_choices(choices: list[str], value: str) -> None:
    model = CatalogueModel(slug="m", modes=tuple(choices))
    try:
        validate(clip(mode=value), model)
    except InvalidRequest as error:
        assert error.problems[0].nearest in choices  # noqa: PT017 - both ends are right
    else:
        assert value in choices
