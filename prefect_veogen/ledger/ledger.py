"""The ledger: one receipt per purchase, written ahead of the money, in the same store as the assets.

A receipt is *created* by exactly one worker of the whole fleet (create if absent) and *replaced* only by the one that
read its last version (compare-and-swap), so that every step of a purchase has one author. Each method is one transition
together with its settlement in the budgets: receipt and money can't be moved apart. `receipt` draws the states.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic import ValidationError

from prefect_veogen.errors import UnreadableReceipt, VeogenError
from prefect_veogen.ledger.budgets import Budgets
from prefect_veogen.ledger.receipt import Receipt, RecordedRequest, missing_part
from prefect_veogen.ledger.transitions import EventName, State
from prefect_veogen.models import ReceiptKey
from prefect_veogen.store import AlreadyExists, VersionConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from prefect_veogen.ledger.budgets import Cap, Crossing
    from prefect_veogen.ledger.lease import Owner
    from prefect_veogen.ledger.receipt import Reading
    from prefect_veogen.models import Asset, Generation, GenerationRequest, Labels
    from prefect_veogen.store import ListedObject, Store

RECEIPTS = "receipts/"
CLAIMS = "claims/"
LOST_MONEY_COUNTS = timedelta(days=1)
"""For how long after it was given up a lost attempt is taken for one that may have been charged."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a worker is about to buy, for whom and under which caps."""

    request: GenerationRequest
    api: str
    owner: Owner
    quote_usd: Decimal | None
    caps: tuple[Cap, ...] = ()
    flow_run_id: str | None = None
    labels: Labels = field(default_factory=dict)
    campaign: str | None = None

    def __post_init__(self) -> None:
        assert self.request.is_identified, "its key would not change with the bytes of its inputs"

    @property
    def key(self) -> str:
        """The ledger's key of the purchase."""
        return self.request.receipt_key(self.api)


class Entry:
    """A receipt as it was read, together with the version it was read at."""

    __slots__ = ("crossed", "receipt", "version")

    def __init__(self, receipt: Receipt, version: str, crossed: tuple[Crossing, ...] = ()) -> None:
        self.receipt = receipt
        self.version = version
        self.crossed = crossed
        """Caps of which reserving has committed 80 % or more."""


class Ledger:
    """The receipts and claims of one store, and the budgets that they are settled in.

    Raises:
        VersionConflict: from every transition: another worker made one meanwhile; nothing was written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._budgets = Budgets(store)

    # ------------------------------------------------------------ reading

    async def read(self, key: str) -> Entry | None:
        """Return a receipt, `None` if there is none."""
        document = await self._store.read(_path(key))
        return None if document is None else Entry(_receipt_of(key, document.body), document.version)

    async def find(self, api: str, generation: Generation) -> Entry | None:
        """Return the receipt that a generation came from; of one known by its id alone, that which paid for it."""
        if generation.receipt is not None:
            return await self.read(generation.receipt)
        key = await self.find_claimant(api, generation.id)
        entry = None if key is None else await self.read(key)
        return entry if entry is not None and entry.receipt.is_about(generation) else None

    async def check_current(self, entry: Entry) -> None:
        """Validate that no other worker has made a transition since a receipt was read.

        Raises:
            VersionConflict: one has.
        """
        current = await self.read(entry.receipt.key)
        if current is None or current.version != entry.version:
            raise VersionConflict(entry.receipt.key)

    async def list_keys(self, since: datetime | None = None) -> list[str]:
        """Return the keys of all receipts, or of those written since a time."""
        found = await self._store.list_objects(RECEIPTS)
        return [
            _key_of(item) for item in found if item.key.endswith(".json") and (since is None or item.modified >= since)
        ]

    async def read_family(self, receipt: Receipt, since: datetime) -> list[Entry]:
        """Return the other receipts written since a time whose generations look the same from outside."""
        found = await self._store.list_objects(f"{RECEIPTS}{receipt.receipt_key.family}")
        keys = [_key_of(item) for item in found if item.modified >= since]
        entries = [await self.read(key) for key in keys if key != receipt.key]
        return [entry for entry in entries if entry is not None]

    async def claim(self, receipt: Receipt, generation_id: str) -> bool:
        """Claim a generation for a receipt; `False` if it belongs to another one. Claims are never given up."""
        body = json.dumps({"format": 1, "receipt": receipt.key, "generation": generation_id}, indent=1).encode()
        try:
            await self._store.create(_claim_path(receipt.api, generation_id), body)
        except AlreadyExists:
            return await self.find_claimant(receipt.api, generation_id) == receipt.key
        return True

    async def find_claimant(self, api: str, generation_id: str) -> str | None:
        """Return the key of the receipt that claimed a generation, `None` if none did."""
        document = await self._store.read(_claim_path(api, generation_id))
        return None if document is None else _claimant_of(generation_id, document.body)

    # ------------------------------------------------------------ before the money

    async def reserve(self, entry: Entry | None, intent: Intent) -> Entry:
        """Reserve a purchase and its money under every cap; of a purchase in doubt, only when it is proven absent.

        Raises:
            AlreadyExists: another worker created the receipt first.
            BudgetExceeded: a cap doesn't allow it; the receipt is released.
        """
        before = None if entry is None else entry.receipt
        entry = await self._create(intent) if entry is None else await self._write(entry, _reserved(entry, intent))
        if before is not None and before.state is not State.IN_DOUBT:
            await self._release_leftover(before, entry.receipt)
        if intent.caps:
            assert intent.quote_usd is not None
            by = f"{intent.owner.host}/{intent.owner.pid}"
            try:
                entry.crossed = await self._budgets.reserve(
                    intent.caps, entry.receipt.reservation, intent.quote_usd, by
                )
            except VeogenError as error:
                await self._write(entry, entry.receipt.released(error.message))
                raise
        return entry

    async def send(
        self, entry: Entry, owner: Owner, clock_offset: timedelta | None, links: Mapping[str, tuple[str, ...]]
    ) -> Entry:
        """Note, ahead of the purchase, that it is on its way."""
        return await self._write(entry, entry.receipt.sending(owner, clock_offset=clock_offset, links=links))

    async def wait(self, entry: Entry, owner: Owner, seconds: float) -> Entry:
        """Note that the service responded "too many requests", and that it is sent again after a pause."""
        return await self._write(entry, entry.receipt.waiting(owner, seconds))

    async def release(self, entry: Entry, reason: str) -> Entry:
        """Note that nothing was bought, and release the reserved money."""
        receipt = entry.receipt
        released = await self._write(entry, receipt.released(reason))
        await self._budgets.release(receipt.budgets, receipt.reservation)
        return released

    # ------------------------------------------------------------ in doubt

    async def doubt(self, entry: Entry, reason: str) -> Entry:
        """Note that the response to a purchase that was sent is lost; its money stays reserved."""
        return await self._write(entry, entry.receipt.in_doubt(reason))

    async def note_reading(self, entry: Entry, reading: Reading) -> Entry:
        """Note a complete reading of the service's list which showed no candidate."""
        return await self._write(entry, entry.receipt.read(reading))

    async def reopen(self, entry: Entry, reason: str) -> Entry:
        """Go back to being in doubt about the attempt before this one, and release what this one had reserved."""
        receipt = entry.receipt
        reopened = await self._write(entry, receipt.reopened(reason))
        await self._budgets.release(receipt.budgets, receipt.reservation)
        return reopened

    # ------------------------------------------------------------ bought

    async def buy(self, entry: Entry, generation: Generation, event: EventName = EventName.BOUGHT) -> Entry | None:
        """Note which generation was paid for, claimed first, and settle; `None` if it belongs to another receipt.

        Whatever other workers made of the receipt meanwhile: what was bought gets into it.
        """
        if not await self.claim(entry.receipt, generation.id):
            return None

        def note(receipt: Receipt) -> Receipt | None:
            if receipt.is_about(generation) or generation.id in {also.id for also in receipt.also_bought}:
                return None
            return receipt.bought(generation, event) if receipt.generation is None else receipt.bought_also(generation)

        before, written = await self._change(entry, note)
        if written is None:
            raise VersionConflict(entry.receipt.key)
        if written.receipt is not before and before.generation is not None:
            await self._charge_also(before, generation)
        elif written.receipt is not before:
            await self._settle_bought(before, written.receipt)
        return written

    async def decide(self, entry: Entry, generation: Generation) -> Entry:
        """Note which generation a purchase in doubt was, by a person's decision; claimed before."""
        before = entry.receipt
        entry = await self._write(entry, before.bought(generation, EventName.ADOPTED, by_a_person=True))
        await self._settle_bought(before, entry.receipt)
        return entry

    async def store(self, entry: Entry, asset: Asset, etag: str) -> None:
        """Note that the asset of a purchase is in the store, verified, whatever was noted of it meanwhile."""

        def note(receipt: Receipt) -> Receipt | None:
            return receipt.stored(asset, etag) if receipt.state in (State.BOUGHT, State.STORED) else None

        await self._change(entry, note)

    async def fail(self, entry: Entry, generation: Generation) -> Receipt:
        """Note that a generation failed and was not charged, and release its money, once; return the receipt."""

        def note(receipt: Receipt) -> Receipt | None:
            is_its_own = receipt.state is State.BOUGHT and receipt.is_about(generation)
            return receipt.failed(generation) if is_its_own else None

        before, written = await self._change(entry, note)
        # Only the author of the transition releases the money, so that it is released once.
        if written is not None and written.receipt is not before:
            await self._budgets.release(before.budgets, before.reservation, before.price_usd)
        return before if written is None else written.receipt

    async def settle(self, receipt: Receipt) -> None:
        """Complete in the budgets what a worker that died after its transition left undone. Idempotent."""
        match receipt.state:
            case State.BOUGHT | State.STORED:
                await self._settle(receipt)
                await self._release_lost(receipt)
            case State.FAILED:
                await self._budgets.release(receipt.budgets, receipt.reservation, receipt.price_usd)
            case State.RELEASED:
                await self._budgets.release(receipt.budgets, receipt.reservation)

    # ------------------------------------------------------------ inside

    async def _create(self, intent: Intent) -> Entry:
        key = intent.key
        draft = Receipt(
            key=key,
            content=ReceiptKey.parse(key).content_key,
            state=State.RESERVED,
            request=RecordedRequest.of(intent.request),
            take=str(intent.request.take),
            api=intent.api,
        )
        receipt = _reserved(Entry(draft, ""), intent)
        return Entry(receipt, await self._store.create(_path(key), _body_of(receipt)))

    async def _write(self, entry: Entry, receipt: Receipt) -> Entry:
        return Entry(receipt, await self._store.replace(_path(receipt.key), _body_of(receipt), entry.version))

    async def _change(self, entry: Entry, change: Callable[[Receipt], Receipt | None]) -> tuple[Receipt, Entry | None]:
        """Make a transition from whatever other workers have made of a receipt meanwhile; return before and after.

        Where `change` returns `None`, nothing is written, and both are the same; `None` means that it was removed.
        """
        while True:
            before = entry.receipt
            changed = change(before)
            if changed is None:
                return before, entry
            try:
                return before, await self._write(entry, changed)
            except VersionConflict:
                current = await self.read(before.key)
            if current is None:
                return before, None
            entry = current

    async def _charge_also(self, receipt: Receipt, generation: Generation) -> None:
        """Count a further generation that was charged for a receipt which had one already."""
        lost = receipt.lost_attempt_of(generation)
        price = generation.price_usd or (lost.quote_usd if lost else receipt.quote_usd)
        if price is not None:
            name = ReceiptKey.reservation(receipt.key, lost.attempt) if lost else f"{receipt.key}+{generation.id}"
            await self._budgets.charge(lost.budgets if lost else receipt.budgets, name, price)

    async def _settle_bought(self, before: Receipt, receipt: Receipt) -> None:
        if before.state is State.RELEASED and receipt.price_usd is not None:
            # A response that came after the purchase had been taken for not made: its money was released.
            await self._budgets.charge(receipt.budgets, receipt.reservation, receipt.price_usd)
        else:
            await self._settle(receipt)

    async def _settle(self, receipt: Receipt) -> None:
        if receipt.price_usd is not None:
            await self._budgets.settle(receipt.budgets, receipt.reservation, receipt.price_usd)

    async def _release_lost(self, receipt: Receipt) -> None:
        """Release what lost attempts had reserved, a day after they were given up: they may have been charged."""
        day_ago = datetime.now(UTC) - LOST_MONEY_COUNTS
        kept = {lost.attempt for lost in receipt.lost if lost.given_up_at > day_ago}
        if receipt.sent_at is not None and receipt.sent_at > day_ago:
            kept |= {*range(1, receipt.attempt)} - {lost.attempt for lost in receipt.lost}
        budgets = {name for lost in receipt.lost for name in lost.budgets} | {*receipt.budgets}
        for attempt in range(1, receipt.attempt):
            if attempt not in kept:
                await self._budgets.release(budgets, ReceiptKey.reservation(receipt.key, attempt))

    async def _release_leftover(self, before: Receipt, now: Receipt) -> None:
        """Release what an attempt that bought nothing had reserved, if its worker died before doing so."""
        kept = now.budgets if before.reservation == now.reservation else ()
        settled = before.price_usd if before.state is State.FAILED else None
        await self._budgets.release({*before.budgets} - {*kept}, before.reservation, settled)


def _reserved(entry: Entry, intent: Intent) -> Receipt:
    budgets = [cap.budget for cap in intent.caps]
    return entry.receipt.reserved(
        intent.owner,
        quote_usd=intent.quote_usd,
        budgets=budgets,
        flow_run_id=intent.flow_run_id,
        labels=intent.labels,
        campaign=intent.campaign,
    )


def _path(key: str) -> str:
    return f"{RECEIPTS}{key}.json"


def _key_of(item: ListedObject) -> str:
    return item.key.removeprefix(RECEIPTS).removesuffix(".json")


def _claim_path(api: str, generation_id: str) -> str:
    return f"{CLAIMS}{quote(api.partition('://')[2], safe='')}/{quote(generation_id, safe='')}.json"


def _body_of(receipt: Receipt) -> bytes:
    return receipt.model_dump_json(indent=1, exclude_none=True, by_alias=True).encode()


def _receipt_of(key: str, body: bytes) -> Receipt:
    try:
        receipt = Receipt.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the whole"
        raise UnreadableReceipt(f"The receipt {key} can't be read: {where}: {problem['msg']}") from None
    if receipt.key != key:
        raise UnreadableReceipt(f"The receipt {key} can't be read: it is a copy of {receipt.key}")
    missing = missing_part(receipt)
    if missing is not None:
        raise UnreadableReceipt(f"The receipt {key} can't be read: it is {receipt.state.value} without {missing}")
    return receipt


def _claimant_of(generation_id: str, body: bytes) -> str:
    try:
        return str(json.loads(body)["receipt"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnreadableReceipt(f"The claim of the generation {generation_id} can't be read") from None
