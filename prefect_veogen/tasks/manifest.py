"""A manifest as a flow's parameter, read: its rows, or all that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.campaign.manifest import find_problems_of_the_rest
from prefect_veogen.campaign.options import Carry, RowOptions
from prefect_veogen.campaign.reading import read_rows
from prefect_veogen.campaign.records import Manifest, read_records
from prefect_veogen.campaign.rows import Rows
from prefect_veogen.errors import InvalidManifest, VeogenError
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.schedule import take_of_slot
from prefect_veogen.tasks.generation import open_task_session
from prefect_veogen.tasks.stores import StoreParameter, store_for


async def read_manifest(
    manifest: Manifest,
    take: int | str = 1,
    *,
    carry: Carry = (),
    labels: Mapping[str, str] | None = None,
    prompt_template: str | None = None,
    motion_template: str | None = None,
    variants: int = 1,
    scheduled: datetime | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> Rows:
    """Return the rows of a manifest, with all takes filled in by `take_of_slot`, for the slot `scheduled`. Free.

    A manifest is a list (or generator) of mappings, a DataFrame (pandas, Polars, PyArrow, DuckDB, whatever Narwhals
    knows), or the path or link (http(s), s3, file) of a CSV, TSV, JSON, JSON Lines, YAML, Parquet or Arrow file; one in
    the bucket of `store` is read as that is. A table of results is one, too: what ended well is not made again.

    A row has an `id`, a `GenerationRequest`'s fields and, for image-then-animate, `motion_prompt` (with
    `motion_model`, `motion_aspect_ratio`, `motion_resolution`, `motion_duration`, `motion_mode`, `motion_style`). An
    input `row:ID` in `image_urls` is the picture of another row. `label_…` columns are the row's labels, beside
    `labels`, of which its own win. Columns in `carry` ("*": all that are no field) come along into results and sidecars
    and are no part of what is bought. `prompt_template` and `motion_template`, such as "A {color} {name}", make the
    prompts of rows without one from their columns. `variants`, an option or a column, makes a row in several takes: T,
    T.2, T.3 …

    Raises:
        InvalidManifest: rows are wrong; all of them are named, and where the service can be asked (with `credentials`,
            or the environment's token), also those which ask for what their models don't offer. Nothing was bought.
        ConfigurationError: an option is wrong, there is no such file, or it can't be read.
    """
    options = RowOptions(
        take=take_of_slot(take, scheduled),
        take_of=partial(take_of_slot, scheduled=scheduled),
        carry=carry,
        labels=labels or {},
        prompt_template=prompt_template,
        motion_template=motion_template,
        variants=variants,
    )
    rows, problems = read_rows(await on_io(read_records(manifest, await store_for(manifest, store))), options)
    if problems:
        raise InvalidManifest([*problems, *await _find_problems_of_the_rest(rows, credentials, store)])
    return rows


async def _find_problems_of_the_rest(
    rows: Rows, credentials: VeogenCredentials | str | None, store: StoreParameter | None
) -> list[str]:
    """Return what the service has against other rows; what is wrong with the setup is told once the rows are right."""
    with suppress(VeogenError):
        session = await open_task_session(credentials, store)
        return await on_io(find_problems_of_the_rest(session, rows))
    return []
