"""How the rows of a campaign ended, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from prefect_veogen.models import Asset, Kind, named_by_the_package


class ItemStatus(StrEnum):
    """How a row ended."""

    OK = "ok"
    """Its assets are in the store."""
    FAILED = "failed"
    """It could not be made; what was bought for it is kept, and running again tries the rest."""
    BLOCKED = "blocked"
    """A cap, the balance, the setup or a row whose picture it uses does not allow the purchase of what is missing."""
    UNSETTLED = "unknown"
    """Paid for and not delivered yet, or in doubt, or it needs manual review."""


@dataclass(frozen=True, slots=True)
class Step:
    """One purchase of a row, picture or clip: its receipt, and how far it has come."""

    kind: Kind
    receipt: str
    asset: Asset | None = None
    generation_id: str | None = None
    price_usd: Decimal | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """The labels that it was bought with, by this run or an earlier one."""


@named_by_the_package
@dataclass(frozen=True, slots=True)
class CampaignItem:
    """How one row ended, or one of its variants, which differ in the take.

    `reused` tells that this run paid nothing for it; `None` where nothing was bought at all. `fields` are the row's
    own, as a manifest has them; `labels` and `carried` come from there, too.
    """

    id: str
    status: ItemStatus
    steps: tuple[Step, ...] = ()
    error: str | None = None
    error_type: str | None = None
    take: str = "1"
    reused: bool | None = None
    flow_run_id: str | None = None
    finished_at: datetime | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What distinguishes it: the row's id and the take."""
        return self.id, self.take

    @property
    def assets(self) -> tuple[Asset, ...]:
        """The picture and, if it was animated, the clip."""
        return tuple(step.asset for step in self.steps if step.asset is not None)

    @property
    def asset(self) -> Asset | None:
        """The row's last asset: the clip, if there is one."""
        return self.assets[-1] if self.assets else None

    @property
    def price_usd(self) -> Decimal:
        """What the row has cost, whenever that was paid."""
        return sum((step.price_usd or Decimal(0) for step in self.steps), Decimal(0))

    @property
    def undelivered_usd(self) -> dict[str, Decimal]:
        """What of that is not in the store yet, by generation; the next run resumes it."""
        return {
            step.generation_id: step.price_usd or Decimal(0)
            for step in self.steps
            if step.asset is None and step.generation_id is not None
        }
