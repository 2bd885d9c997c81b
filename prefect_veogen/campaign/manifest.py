"""A campaign's manifest, whatever it is, as rows; or all that is wrong with it, as far as it can be told at once."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefect_veogen.campaign.options import RowOptions, TakeOf
from prefect_veogen.campaign.reading import read_rows
from prefect_veogen.campaign.records import Manifest, read_records
from prefect_veogen.campaign.rows import Rows
from prefect_veogen.campaign.run import find_problems
from prefect_veogen.errors import InvalidManifest, VeogenError

if TYPE_CHECKING:
    from prefect_veogen.session import Session


async def read_manifest(
    manifest: Manifest,
    take: int | str = 1,
    take_of: TakeOf = lambda take: take,
    session: Session | None = None,
    **options: Any,
) -> Rows:
    """Return the rows of a manifest; all problems are reported together, nothing is guessed. Free.

    `options` are those of `RowOptions`, which are the same for all rows. With a session, what the service has against
    the other rows is reported with what is wrong with some.

    Raises:
        InvalidManifest: rows are wrong; all of them are named.
        ConfigurationError: an option is wrong, there is no such file, or it can't be read.
    """
    made = RowOptions(take=take_of(take), take_of=take_of, **options)
    rows, problems = read_rows(await read_records(manifest), made)
    if problems:
        rest = [] if session is None else await find_problems_of_the_rest(session, rows)
        raise InvalidManifest([*problems, *rest])
    return rows


async def find_problems_of_the_rest(session: Session, rows: Rows) -> list[str]:
    """Return what the service has against the rows of a manifest that are right, where others are not. Free.

    It saves a person from correcting a table twice. Where the service can't be asked, there is nothing to add.
    """
    # A row that uses the picture of a wrong one can't be put behind it.
    known = Rows(row for row in rows if not row.uses) if rows.reference_problems() else rows
    with suppress(VeogenError):
        return await find_problems(session, known)
    return []
