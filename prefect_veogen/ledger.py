"""The ledger: one receipt per purchase, written ahead of the money, in the same store as the assets.

A receipt is *created* by exactly one caller of the whole fleet and *replaced* only by whoever saw its last version, so
that every step of a purchase has one author. Its states:

    RESERVED ──► SENDING ──► BOUGHT ──► STORED       the good way
        │  ▲      │ │ │         │
        │  └─429──┘ │ │         └──────► FAILED      it failed, and was not charged
        ▼           │ ▼
     RELEASED ◄─────┘ UNKNOWN ──► BOUGHT             the answer was lost: looked for, and found;
     (nothing was        │                           else a person decides (BOUGHT or RELEASED),
      bought)            └──────► RESERVED           or a setting says to buy again

RELEASED and FAILED become RESERVED when somebody asks for the same thing again.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_veogen.errors import UnreadableReceipt
from prefect_veogen.liveness import Holder
from prefect_veogen.models import Asset, Generation
from prefect_veogen.store import AlreadyThere

if TYPE_CHECKING:
    from prefect_veogen.store import Found, Store

RECEIPTS = "receipts/"
CLAIMS = "claims/"


class State(StrEnum):
    """How far a purchase is."""

    RESERVED = "reserved"
    """Somebody is about to buy; surely nothing was sent yet."""
    SENDING = "sending"
    """The purchase is on its way; it may or may not have been made."""
    BOUGHT = "bought"
    """Paid for: the generation's id is known."""
    STORED = "stored"
    """The asset is in the store, verified."""
    FAILED = "failed"
    """The generation failed and was not charged."""
    RELEASED = "released"
    """Nothing was bought; anybody may try again."""
    UNKNOWN = "unknown"
    """The answer was lost: whether a purchase was made is to be looked for."""


class Event(BaseModel):
    """One line of a receipt's history."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    event: str
    detail: str | None = None


class Receipt(BaseModel):
    """The ledger's record of one purchase: readable, versioned, without secrets."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    key: str
    content: str
    state: State
    request: dict[str, Any]
    take: str
    api: str
    attempt: int = 1
    quote_usd: Decimal | None = None
    budgets: tuple[str, ...] = ()
    holder: Holder | None = None
    flow_run_id: str | None = None
    links: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    sent_at: datetime | None = None
    generation: Generation | None = None
    asset: Asset | None = None
    etag: str | None = None
    history: tuple[Event, ...] = Field(default=())
    revision: int = 0

    @property
    def reservation(self) -> str:
        """What this attempt is called in the budgets."""
        return f"{self.key}#{self.attempt}"

    @property
    def earlier_reservations(self) -> tuple[str, ...]:
        """What the attempts before this one were called; all but those that were lost have been settled."""
        return tuple(f"{self.key}#{attempt}" for attempt in range(1, self.attempt))

    @property
    def price_usd(self) -> Decimal | None:
        """What was charged, as the service said it; else what was quoted."""
        if self.generation is not None and self.generation.price_usd is not None:
            return self.generation.price_usd
        return self.quote_usd

    def moved(self, state: State, event: str, detail: str | None = None, **changes: Any) -> Receipt:
        """Return the receipt in its next state, with a line of history."""
        line = Event(at=datetime.now(UTC), event=event, detail=detail)
        return self.model_copy(
            update={"state": state, "history": (*self.history, line), "revision": self.revision + 1, **changes}
        )


class Entry:
    """A receipt as it was read, together with the version it was read at."""

    __slots__ = ("receipt", "version")

    def __init__(self, receipt: Receipt, version: str) -> None:
        self.receipt = receipt
        self.version = version


class Ledger:
    """The receipts and claims of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, key: str) -> Entry | None:
        """Return a receipt, `None` if there is none."""
        document = await self._store.read(_path(key))
        return None if document is None else Entry(_receipt_of(key, document.body), document.version)

    async def create(self, receipt: Receipt) -> Entry:
        """Write a receipt that is not there yet.

        Raises:
            AlreadyThere: another caller was first.
        """
        return Entry(receipt, await self._store.create(_path(receipt.key), _body_of(receipt)))

    async def move(self, entry: Entry, state: State, event: str, detail: str | None = None, **changes: Any) -> Entry:
        """Write a receipt's next state.

        Raises:
            Changed: another caller moved it meanwhile; nothing was written.
        """
        receipt = entry.receipt.moved(state, event, detail, **changes)
        return Entry(receipt, await self._store.replace(_path(receipt.key), _body_of(receipt), entry.version))

    async def claim(self, receipt: Receipt, generation_id: str) -> bool:
        """Claim a generation for a receipt; `False` if it belongs to another one. Claims are never given up."""
        body = json.dumps({"format": 1, "receipt": receipt.key, "generation": generation_id}, indent=1).encode()
        try:
            await self._store.create(_claim_path(receipt.api, generation_id), body)
        except AlreadyThere:
            return await self.claimant(receipt.api, generation_id) == receipt.key
        return True

    async def claimant(self, api: str, generation_id: str) -> str | None:
        """Return the key of the receipt that claimed a generation, `None` if nobody did."""
        document = await self._store.read(_claim_path(api, generation_id))
        return None if document is None else _claimant_of(generation_id, document.body)

    async def family(self, receipt: Receipt, since: datetime) -> list[Entry]:
        """Return the other receipts written since a time whose generations look the same from outside."""
        visible = receipt.content.rpartition("-")[0]
        found = await self._store.find(f"{RECEIPTS}{visible}-")
        keys = [_key_of(item) for item in found if item.modified >= since]
        entries = [await self.read(key) for key in keys if key != receipt.key]
        return [entry for entry in entries if entry is not None]

    async def keys(self, since: datetime | None = None) -> list[str]:
        """Return the keys of all receipts, or of those written since a time."""
        found = await self._store.find(RECEIPTS)
        return [
            _key_of(item) for item in found if item.key.endswith(".json") and (since is None or item.modified >= since)
        ]


def _path(key: str) -> str:
    return f"{RECEIPTS}{key}.json"


def _key_of(item: Found) -> str:
    return item.key.removeprefix(RECEIPTS).removesuffix(".json")


def _claim_path(api: str, generation_id: str) -> str:
    return f"{CLAIMS}{quote(api.partition('://')[2], safe='')}/{quote(generation_id, safe='')}.json"


def _body_of(receipt: Receipt) -> bytes:
    return receipt.model_dump_json(indent=1, exclude_none=True).encode()


def _receipt_of(key: str, body: bytes) -> Receipt:
    try:
        receipt = Receipt.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise UnreadableReceipt(f"The receipt {key} can't be read: {problem['loc']} {problem['msg']}") from None
    if receipt.key != key:
        raise UnreadableReceipt(f"The receipt {key} can't be read: it is a copy of {receipt.key}")
    missing = _missing(receipt)
    if missing is not None:
        raise UnreadableReceipt(f"The receipt {key} can't be read: it is {receipt.state.value} without {missing}")
    return receipt


def _missing(receipt: Receipt) -> str | None:
    """Return what a receipt in its state can't do without."""
    if not all(isinstance(receipt.request.get(name), str) for name in ("model", "prompt")):
        return "a request"
    if not receipt.history:
        return "a history"
    if receipt.state in (State.BOUGHT, State.STORED) and receipt.generation is None:
        return "a generation"
    if receipt.state in (State.SENDING, State.UNKNOWN) and receipt.sent_at is None:
        return "the time of its sending"
    return None


def _claimant_of(generation_id: str, body: bytes) -> str:
    try:
        return str(json.loads(body)["receipt"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnreadableReceipt(f"The claim of the generation {generation_id} can't be read") from None
