"""The values of the domain: frozen, printable, picklable, without any I/O."""

from prefect_veogen.models.delivery import Delivery
from prefect_veogen.models.generation import (
    Animated,
    Approved,
    Asset,
    CatalogueModel,
    Certainty,
    Generation,
    Kind,
    Output,
    Quote,
    Status,
    named_by_the_package,
)
from prefect_veogen.models.labels import (
    LabelBudget,
    Labels,
    checked_labels,
    label_budgets,
    label_name_problem,
)
from prefect_veogen.models.locations import file_at, is_public, object_at
from prefect_veogen.models.receipt_key import KEY_VERSION, ReceiptKey
from prefect_veogen.models.request import MAX_PROMPT_CHARACTERS, GenerationRequest, place_of
from prefect_veogen.models.text import (
    MAX_DIGITS,
    in_usd,
    nearest,
    normal_base_url,
    plain_name,
    text_problem,
    with_plain_line_ends,
    without_secrets,
)

__all__ = [
    "KEY_VERSION",
    "MAX_DIGITS",
    "MAX_PROMPT_CHARACTERS",
    "Animated",
    "Approved",
    "Asset",
    "CatalogueModel",
    "Certainty",
    "Delivery",
    "Generation",
    "GenerationRequest",
    "Kind",
    "LabelBudget",
    "Labels",
    "Output",
    "Quote",
    "ReceiptKey",
    "Status",
    "checked_labels",
    "file_at",
    "in_usd",
    "is_public",
    "label_budgets",
    "label_name_problem",
    "named_by_the_package",
    "nearest",
    "normal_base_url",
    "object_at",
    "place_of",
    "plain_name",
    "text_problem",
    "with_plain_line_ends",
    "without_secrets",
]
