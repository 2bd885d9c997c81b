"""How a campaign ended: its rows, what each has cost, and what needs attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PrivateAttr

from prefect_veogen.models import Asset, Kind, in_usd, named_by_the_package
from prefect_veogen.models.generation import Value

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

Frame = Literal["polars", "pandas", "pyarrow"]


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


@named_by_the_package
class CampaignReport(Value):
    """How a campaign ended, in numbers; `items`, `records()` and `to_frame()` give it row by row.

    The rows lie in the table at `results_uri` and are read from there when they are asked for, so that this value stays
    small: whoever asks needs access to the store, and nothing else.
    """

    name: str
    rows: int
    counts: dict[ItemStatus, int]
    """How many rows ended how."""
    price_usd: Decimal
    """What the campaign has cost, in this run or earlier ones; what rows share was paid for once."""
    undelivered_usd: Decimal
    """What of that is for generations which are not in the store yet; the next run resumes them."""
    results_uri: str
    """Where the table of results is, once the campaign has ended: JSON Lines."""
    _items: Sequence[CampaignItem] | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, name: str, items: Sequence[CampaignItem], results_uri: str = "") -> CampaignReport:
        """Return the report on items, in the manifest's order."""
        statuses: Counter[ItemStatus] = Counter()
        paid: dict[str, Decimal] = {}
        undelivered: dict[str, Decimal] = {}
        for item in items:
            statuses[item.status] += 1
            undelivered |= item.undelivered_usd
            paid |= {step.generation_id: step.price_usd or Decimal(0) for step in item.steps if step.generation_id}
        report = cls(
            name=name,
            rows=len(items),
            counts={status: statuses[status] for status in ItemStatus if statuses[status]},
            price_usd=sum(paid.values(), Decimal(0)),
            undelivered_usd=sum(undelivered.values(), Decimal(0)),
            results_uri=results_uri,
        )
        report._items = items
        return report

    @property
    def items(self) -> Sequence[CampaignItem]:
        """The rows, in the manifest's order. Free: read from the store, unless this process has just made them.

        Raises:
            ConfigurationError: there is no table of results (any more).
            StoreUnavailable, StoreRefused: it can't be read.
        """
        if self._items is None:
            from prefect_veogen.campaign.results import read_results_now

            self._items = read_results_now(self.results_uri)
        return self._items

    def records(self) -> list[dict[str, Any]]:
        """Return the table of results as a list of dicts, all with the same keys: the rows of `results_uri`. Free."""
        from prefect_veogen.campaign.table import Table

        return list(Table(self.items).records())

    def to_frame(self, kind: Frame = "polars") -> pl.DataFrame | pd.DataFrame | pa.Table:
        """Return the table of results as a DataFrame of that library, which has to be installed. Free.

        Its columns and their types are the same whatever became of the rows; money is decimal.

        Raises:
            ConfigurationError: the library is unknown, or not installed.
        """
        from prefect_veogen.campaign.result_frames import frame_of
        from prefect_veogen.campaign.table import Table

        return frame_of(Table(self.items), kind)

    @property
    def by_need(self) -> list[CampaignItem]:
        """The rows, those which need attention first."""
        return sorted(self.items, key=lambda item: item.status is ItemStatus.OK)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status.value}" for status, count in self.counts.items())
        undelivered = f", {in_usd(self.undelivered_usd)} of it not delivered yet" if self.undelivered_usd else ""
        return f"Campaign {self.name}: {counts or 'no rows'}; {in_usd(self.price_usd)}{undelivered}"
