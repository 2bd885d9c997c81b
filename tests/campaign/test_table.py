"""The table of results: the kinds of the columns that came along, and that nothing of them is lost."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.result_frames import frame_of
from prefect_veogen.campaign.table import Table


def carried(*values: Any) -> tuple[str, list[Any]]:
    """Return the kind and the values of a column in the table of results."""
    items = [CampaignItem(str(number), ItemStatus.OK, carried={"key": value}) for number, value in enumerate(values)]
    table = Table(items)
    records = [record["key"] for record in table.records()]
    frames: Any = frame_of(table, "pyarrow")
    assert frames["key"].to_pylist() == records
    return table.columns["key"], records


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([Decimal(9007199254740993), None], "integer", [9007199254740993, None]),
        ([Decimal(7), 8], "integer", [7, 8]),
        ([Decimal("1.50"), Decimal("2.00")], "number", [1.5, 2.0]),
        ([Decimal("0.1234567890123456789")], "text", ["0.1234567890123456789"]),
        ([Decimal(2**64), Decimal(1)], "text", [str(2**64), "1"]),
        ([2**64, 1], "text", [str(2**64), "1"]),
        ([Decimal("Infinity")], "number", [None]),
        ([1, 2.5], "number", [1.0, 2.5]),
        ([1, "one", True], "text", ["1", "one", "true"]),
        ([{"size": [1, 2]}, ["ä"]], "text", ['{"size": [1, 2]}', '["ä"]']),
        ([None, None], "text", [None, None]),
    ],
)
def test_a_column_that_came_along_keeps_every_digit(values: list[Any], kind: str, kept: list[Any]) -> None:
    assert carried(*values) == (kind, kept)
