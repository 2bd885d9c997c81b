"""The write-ahead note that a purchase is on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.errors import NotSent
from prefect_veogen.ledger.lease import boot_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect_veogen.ledger import Entry

_NOTE_HOLDS_SECONDS = 10.0
"""How long after its note a purchase may still be sent: a process that was frozen for longer must not send it."""


class Note:
    """The write-ahead note that a purchase is on its way, written when nothing but its body is left to be sent.

    Connecting takes long enough to be killed in; after the note, whether money was spent has to be reconciled.
    """

    def __init__(self, entry: Entry, write: Callable[[Entry], Awaitable[Entry]]) -> None:
        self.entry = entry
        self.is_written = False
        self._write = write

    async def write(self) -> None:
        """Write it; the body may follow at once, and only at once.

        Raises:
            NotSent: writing took so long that others may have given the purchase up.
        """
        began = boot_seconds()
        self.entry = await self._write(self.entry)
        self.is_written = True
        # Nothing is awaited between here and the sending of the body.
        if boot_seconds() - began > _NOTE_HOLDS_SECONDS:
            raise NotSent(
                f"The note of a purchase took longer than {_NOTE_HOLDS_SECONDS:g} s to write",
                next_step="Nothing was bought. Check the store and the machine, then run it again.",
            )
