"""A campaign's manifest, whatever it is, as rows."""

from __future__ import annotations

from typing import Any

from prefect_veogen.campaign.options import RowOptions, TakeOf
from prefect_veogen.campaign.records import Manifest, read_records
from prefect_veogen.campaign.rows import Rows, rows_of


async def read_manifest(
    manifest: Manifest, take: int | str = 1, take_of: TakeOf = lambda take: take, **options: Any
) -> Rows:
    """Return the rows of a manifest; all problems are reported together, nothing is guessed. Free.

    `options` are those of `RowOptions`, which are the same for all rows.

    Raises:
        InvalidManifest: rows are wrong; all of them are named.
        ConfigurationError: an option is wrong, there is no such file, or it can't be read.
    """
    made = RowOptions(take=take_of(take), take_of=take_of, **options)
    return rows_of(await read_records(manifest), made)
