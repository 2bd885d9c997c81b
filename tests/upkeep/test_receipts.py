"""The receipts read for all of upkeep: a damaged one hides no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.upkeep import all_receipts, bought, picture, reconcile


async def test_a_damaged_receipt_hides_no_other_from_the_books(sandbox: Sandbox) -> None:
    damaged, whole = await bought(picture("damaged")), await bought(picture("whole"))
    await on_io(open_session().store.put(f"receipts/{damaged}.json", b"{", "application/json"))
    known = await all_receipts(open_session())
    assert [item.key for item in known.readable] == [whole]
    assert damaged in known.damaged[0].message
    found = await reconcile(open_session(), datetime.now(UTC) - timedelta(days=1))
    assert (found.receipts, found.only_in_ledger, found.adds_up) == (1, (), False)
    assert damaged in found.damaged[0]
