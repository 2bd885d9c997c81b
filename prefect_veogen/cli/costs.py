"""`costs`: what was spent, by model, day, campaign or label."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from typing import TYPE_CHECKING

from prefect_veogen.cli.connection import open_offline
from prefect_veogen.cli.terminal import complain, say, table
from prefect_veogen.models import in_usd
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.upkeep.costs import Cost, Costs, Grouping, read_costs

if TYPE_CHECKING:
    from argparse import Namespace

_AMOUNTS = ("spent_usd", "reserved_usd", "in_doubt_usd")
_HEADS = ("SPENT", "RESERVED", "IN DOUBT")


def costs(options: Namespace) -> int:
    """Write what the store's purchases cost; return 1 if receipts are damaged, which are then not in the sums."""
    session = open_offline(options)
    found = asyncio.run(on_io(read_costs(session.ledger, options.by, options.since)))
    if options.json:
        _write_json(found)
    elif options.csv:
        _write_csv(found)
    elif not found.rows:
        say(f"Nothing was bought in {session.store.uri('')}{f' since {options.since}' if options.since else ''}")
    else:
        _write_table(found, options.by)
    for error in found.damaged:
        complain(error)
    return 1 if found.damaged else 0


def _write_json(found: Costs) -> None:
    """Write the rows with amounts as JSON numbers: all their digits, which floats would not keep."""
    rows = [
        f'  {{"key": {json.dumps(row.key, ensure_ascii=False)}, '
        + ", ".join(f'"{name}": {getattr(row, name):f}' for name in _AMOUNTS)
        + "}"
        for row in found.rows
    ]
    lines = ",\n".join(rows)
    sys.stdout.write(f'{{"rows": [\n{lines}\n]}}\n' if rows else '{"rows": []}\n')


def _write_csv(found: Costs) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("key", *_AMOUNTS))
    writer.writerows((row.key, *(f"{getattr(row, name):f}" for name in _AMOUNTS)) for row in found.rows)


def _write_table(found: Costs, grouping: Grouping) -> None:
    # The column of amounts comes last of all, so that a long key moves none of them out of sight.
    head = (grouping.label or grouping.by).upper()
    rows = [(row.key or "(none)", *_amounts(row)) for row in found.rows]
    table((head, *_HEADS), [*rows, ("TOTAL", *_amounts(found.total))], right=_HEADS)


def _amounts(row: Cost) -> tuple[str, ...]:
    return tuple(in_usd(getattr(row, name)) for name in _AMOUNTS)
