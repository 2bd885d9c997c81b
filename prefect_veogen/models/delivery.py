"""What is known of an asset when it is delivered: what was asked for, and whether that had been paid for before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prefect_veogen.models.generation import Asset


@dataclass(frozen=True, slots=True)
class Delivery:
    """An asset, whether the store had it already, and where it comes from.

    `duration_seconds` is the length that was asked for, `made_in_seconds` how long the service took; `None` where that
    is not known. `receipt` is the ledger's key of the purchase, if it went through the ledger.
    """

    asset: Asset
    reused: bool
    prompt: str | None = None
    take: str | None = None
    duration_seconds: int | None = None
    made_in_seconds: float | None = None
    receipt: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    campaign: str | None = None
