"""How a campaign ended: in numbers, and row by row from its table of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.result_frames import Frame, frame_of
from prefect_veogen.campaign.results import read_results_now
from prefect_veogen.campaign.table import Table
from prefect_veogen.models import in_usd, named_by_the_package
from prefect_veogen.models.generation import Value

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


@named_by_the_package
class CampaignReport(Value):
    """How a campaign ended, in numbers; `items`, `records()` and `to_frame()` give it row by row.

    The rows lie in the table at `results_uri` and are read from there when they are asked for, so that this value stays
    small: a caller needs access to the store, and nothing else.
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

        Where the credentials of the store are in a block: `prefect_veogen.tasks.stores.read_report(report, store)`.

        Raises:
            ConfigurationError: there is no table of results (any more).
            StoreUnavailable, StoreRefused: it can't be read.
        """
        if self._items is None:
            self._items = read_results_now(self.results_uri)
        return self._items

    def with_items(self, items: Sequence[CampaignItem]) -> Self:
        """Return the report with these rows, so that they are not read from the store. Free."""
        report = self.model_copy()
        report._items = items  # noqa: SLF001 - of this class
        return report

    def records(self) -> list[dict[str, Any]]:
        """Return the table of results as a list of dicts, all with the same keys: the rows of `results_uri`. Free."""
        return list(Table(self.items).records())

    def to_frame(self, kind: Frame = "polars") -> pl.DataFrame | pd.DataFrame | pa.Table:
        """Return the table of results as a DataFrame of that library, which has to be installed. Free.

        Its columns and their types are the same whatever became of the rows; money is decimal.

        Raises:
            ConfigurationError: the library is unknown, or not installed.
        """
        return frame_of(Table(self.items), kind)

    @property
    def by_need(self) -> list[CampaignItem]:
        """The rows, those which need attention first."""
        return sorted(self.items, key=lambda item: item.status is ItemStatus.OK)

    def __eq__(self, other: object) -> bool:
        # Whether its rows were read already makes no difference.
        return isinstance(other, CampaignReport) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment] # as before: its counts are a dict

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status.value}" for status, count in self.counts.items())
        undelivered = f", {in_usd(self.undelivered_usd)} of it not delivered yet" if self.undelivered_usd else ""
        return f"Campaign {self.name}: {counts or 'no rows'}; {in_usd(self.price_usd)}{undelivered}"
