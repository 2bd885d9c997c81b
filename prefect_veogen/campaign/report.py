"""How a campaign ended: its rows, what each has cost, and what needs attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from decimal import Decimal
from enum import StrEnum

from pydantic.dataclasses import dataclass

from prefect_veogen.models import Asset, in_usd, named_by_the_package


class ItemStatus(StrEnum):
    """How a row ended."""

    OK = "ok"
    """Its assets are in the store."""
    FAILED = "failed"
    """It could not be made; what was bought for it is kept, and running again tries the rest."""
    BLOCKED = "blocked"
    """A cap, the balance or the setup does not allow the purchase of what is missing."""
    UNSETTLED = "unknown"
    """Paid for and not delivered yet, or in doubt, or it needs manual review."""


@named_by_the_package
@dataclass(frozen=True)
class CampaignItem:
    """How one row ended; `assets` holds the picture and, if it was animated, the clip.

    `price_usd` is what the row has cost; `undelivered_usd` shows, by generation, what of that is not in the store yet.
    """

    id: str
    status: ItemStatus
    assets: tuple[Asset, ...] = ()
    price_usd: Decimal = Decimal(0)
    error: str | None = None
    undelivered_usd: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def asset(self) -> Asset | None:
        """The row's last asset: the clip, if there is one."""
        return self.assets[-1] if self.assets else None


@named_by_the_package
@dataclass(frozen=True)
class CampaignReport:
    """How a campaign ended, row by row in the manifest's order."""

    name: str
    items: tuple[CampaignItem, ...]

    @property
    def price_usd(self) -> Decimal:
        """What the campaign has cost, in this run or earlier ones; what rows share was paid for once."""
        paid = {asset.generation_id: asset.price_usd or Decimal(0) for item in self.items for asset in item.assets}
        return sum(paid.values(), self.undelivered_usd)

    @property
    def undelivered_usd(self) -> Decimal:
        """What of that is for generations which are not in the store yet; the next run resumes them."""
        return sum(
            {name: usd for item in self.items for name, usd in item.undelivered_usd.items()}.values(), Decimal(0)
        )

    @property
    def counts(self) -> dict[ItemStatus, int]:
        """How many rows ended how."""
        found = Counter(item.status for item in self.items)
        return {status: found[status] for status in ItemStatus if found[status]}

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status.value}" for status, count in self.counts.items())
        undelivered = f", {in_usd(self.undelivered_usd)} of it not delivered yet" if self.undelivered_usd else ""
        return f"Campaign {self.name}: {counts or 'no rows'}; {in_usd(self.price_usd)}{undelivered}"

    @property
    def by_need(self) -> list[CampaignItem]:
        """The rows, those which need attention first."""
        return sorted(self.items, key=lambda item: item.status is ItemStatus.OK)
