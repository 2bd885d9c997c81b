"""What guards the money: receipts written ahead of it, budgets, and who is at work on what."""

from prefect_veogen.ledger.ledger import Entry, Intent, Ledger
from prefect_veogen.ledger.receipt import Event, Reading, Receipt, RecordedInput, RecordedRequest, attach
from prefect_veogen.ledger.transitions import EventName, State

__all__ = [
    "Entry",
    "Event",
    "EventName",
    "Intent",
    "Ledger",
    "Reading",
    "Receipt",
    "RecordedInput",
    "RecordedRequest",
    "State",
    "attach",
]
