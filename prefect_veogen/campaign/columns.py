"""The columns of a campaign's table: a row's own fields, what becomes of it, and what it takes along."""

from __future__ import annotations

from typing import Final

from prefect_veogen.models import GenerationRequest, Kind

MOTION: Final = "motion_"
MOTION_FIELDS: Final = ("prompt", "model", "aspect_ratio", "resolution", "duration", "mode", "style")
LABEL: Final = "label_"
BOUGHT_WITH: Final = tuple(f"{kind}_{LABEL}" for kind in Kind)
"""The prefixes of the columns with the labels that a picture or a clip was bought with."""

FIELDS: Final = (
    "id",
    *GenerationRequest.model_fields,
    *(f"{MOTION}{name}" for name in MOTION_FIELDS),
    "variants",
)
"""The fields of a manifest's row."""

LISTS: Final = ("image_urls", "video_urls", "audio_urls")
INTEGERS: Final = ("duration", f"{MOTION}duration")
BOOLEANS: Final = ("watermark", "private")

ASSET_COLUMNS: Final = {
    "uri": "text",
    "sha256": "text",
    "bytes": "integer",
    "content_type": "text",
    "model": "text",
    "generation_id": "text",
    "price_usd": "money",
    "receipt": "text",
}
"""The columns of an asset, after `image_` or `video_`, and the kinds of their values."""

OUTCOME_COLUMNS: Final = {
    "id": "text",
    "take": "text",
    "status": "text",
    "error": "text",
    "error_type": "text",
    **{f"image_{name}": kind for name, kind in ASSET_COLUMNS.items()},
    **{f"video_{name}": kind for name, kind in ASSET_COLUMNS.items()},
    "price_usd": "money",
    "flow_run_id": "text",
    "finished_at": "time",
    "reused": "boolean",
}
"""What became of a row, and the kinds of the values."""


def kind_of_field(name: str) -> str:
    """Return the kind of a row's own field: text, texts (a list), integer or boolean."""
    if name in LISTS:
        return "texts"
    return "integer" if name in INTEGERS else "boolean" if name in BOOLEANS else "text"


FIELD_COLUMNS: Final = {name: kind_of_field(name) for name in FIELDS if name not in ("id", "take", "variants")}
"""The row's own fields as the results repeat them, so that a table of results is a manifest too."""

RESULT_COLUMNS: Final = {**OUTCOME_COLUMNS, **FIELD_COLUMNS}
_KNOWN: Final = {*FIELDS, *RESULT_COLUMNS}


def is_of_results(name: str) -> bool:
    """Tell whether the results have a column of that name, but for the labels that a row may have too."""
    return name in RESULT_COLUMNS or name.startswith(BOUGHT_WITH)


def own_column_problem(name: str) -> str | None:
    """Return why a column which is no field of a row can't be one of the manifest's own; `None` if it can.

    `Motion_Prompt` taken along would be a clip that is silently not made, and most databases take it for
    `motion_prompt`.
    """
    if not name:
        return "is a column without a name; name it, or leave it out of your table"
    if is_of_results(name):
        return "is a column of the results; rename it to something else"
    if (lower := name.lower()) in _KNOWN or lower.startswith((LABEL, *BOUGHT_WITH)):
        is_ours = lower in FIELDS or lower.startswith(LABEL)
        step = f"name it {lower!r}, or something else" if is_ours else "rename it to something else"
        return f"differs from {lower!r} in upper and lower case only; {step}"
    return None
