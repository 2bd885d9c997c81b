"""The record of one purchase, and each transition as a method: values only, no I/O.

What can't happen can't be written: `transitions` draws the states and refuses every step that they don't have.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictStr,
    model_serializer,
    model_validator,
)

from prefect_veogen.ledger.lease import Owner
from prefect_veogen.ledger.transitions import EventName, IllegalTransition, State, next_state
from prefect_veogen.models import Asset, Generation, GenerationRequest, Labels, ReceiptKey, Status, without_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BY_A_PERSON = ", by a person's decision"
READINGS_NEEDED = 2
"""How many readings of the service's list prove that a purchase was never made."""


class Event(BaseModel):
    """One line of a receipt's history."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    event: EventName
    detail: str | None = None
    generation_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _id_of_older_receipts(cls, value: Any) -> Any:
        """Take the generation's id out of the prose in which earlier versions wrote it."""
        if isinstance(value, dict) and value.get("event") in ("bought", "adopted", "also bought"):
            detail = value.get("detail")
            if "generation_id" not in value and isinstance(detail, str):
                return {**value, "generation_id": detail.removesuffix(_BY_A_PERSON)}
        return value


class RecordedInput(BaseModel):
    """An input of a request as a receipt shows it: an asset by its digest, a link without its query."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str | None = None
    url: str | None = None


class RecordedRequest(BaseModel):
    """A request as a receipt shows it: the fields that were set, without secrets.

    A field that is not known here was written by a newer version, and makes the receipt unreadable: what can't be
    compared must not be taken for equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: StrictStr
    prompt: StrictStr
    aspect_ratio: str | None = None
    resolution: str | None = None
    duration: int | None = None
    mode: str | None = None
    style: str | None = None
    image_urls: tuple[RecordedInput, ...] | None = None
    video_urls: tuple[RecordedInput, ...] | None = None
    audio_urls: tuple[RecordedInput, ...] | None = None
    watermark: bool | None = None
    private: bool | None = None

    @classmethod
    def of(cls, request: GenerationRequest) -> RecordedRequest:
        """Return what a receipt shows of a request; a link's query may be a secret and is left out."""
        shown = request.canonical()
        for name, value in shown.items():
            if isinstance(value, list):
                shown[name] = [{kind: without_secrets(text) for kind, text in item.items()} for item in value]
        return cls.model_validate(shown)

    @property
    def options(self) -> dict[str, Any]:
        """What was asked for besides model and prompt, by field."""
        return self.model_dump(exclude={"model", "prompt"}, exclude_none=True)


class Reading(BaseModel):
    """One complete reading of the service's list that showed no candidate for a purchase in doubt."""

    model_config = ConfigDict(frozen=True)

    began_at: datetime
    """When it began, by the service's clock."""
    ended_at: datetime
    """When it ended, by the service's clock."""
    generations: int
    """How many generations it showed."""
    recognised: str
    """A generation of this ledger's which it showed: the list does show what this account buys."""


class _Labelled(BaseModel):
    """What has labels: stored without them where there are none, as before there were any."""

    @model_serializer(mode="wrap")
    def _without_empty_labels(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stored: dict[str, Any] = serialize(self)
        return stored if stored.get("labels") else {name: value for name, value in stored.items() if name != "labels"}


class LostAttempt(_Labelled):
    """An attempt whose purchase was proven absent and made again; it is searched for a while longer."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    sent_at: datetime
    clock_offset_seconds: float | None = None
    links: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    quote_usd: Decimal | None = None
    budgets: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    given_up_at: datetime
    labels: dict[str, str] = Field(default_factory=dict)
    campaign: str | None = None


class Receipt(_Labelled):
    """The ledger's record of one purchase: readable, versioned, without secrets."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    format: Literal[1] = 1
    key: StrictStr
    content: str
    state: State
    request: RecordedRequest
    take: str
    api: str
    attempt: int = 1
    quote_usd: Decimal | None = None
    budgets: tuple[str, ...] = ()
    owner: Owner | None = Field(default=None, alias="holder")
    flow_run_id: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    """The caller's own words on the present attempt; those of a purchase stay, whoever reuses it."""
    campaign: str | None = None
    """The campaign for which the present attempt was made."""
    links: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    sent_at: datetime | None = None
    """When the present attempt was sent, by the sender's clock."""
    clock_offset_seconds: float | None = None
    """How far the sender's clock was ahead of the service's then; unknown if the service had sent no `Date` before."""
    readings: tuple[Reading, ...] = ()
    lost: tuple[LostAttempt, ...] = ()
    generation: Generation | None = None
    also_bought: tuple[Generation, ...] = ()
    """Further generations that were charged for this receipt: what must not happen, recorded when it does."""
    asset: Asset | None = None
    etag: str | None = None
    history: tuple[Event, ...] = Field(default=())
    revision: int = 0

    # ------------------------------------------------------------ what it says

    @property
    def receipt_key(self) -> ReceiptKey:
        """Its key in parts."""
        return ReceiptKey.parse(self.key)

    @property
    def reservation(self) -> str:
        """What this attempt is called in the budgets."""
        return ReceiptKey.reservation(self.key, self.attempt)

    @property
    def price_usd(self) -> Decimal | None:
        """What was charged, as the service said it; else what was quoted."""
        if self.generation is not None and self.generation.price_usd is not None:
            return self.generation.price_usd
        return self.quote_usd

    @property
    def known_ids(self) -> frozenset[str]:
        """The generations which this receipt has ever bought, those of earlier attempts included."""
        return frozenset(event.generation_id for event in self.history if event.generation_id is not None)

    @property
    def is_abandoned(self) -> bool:
        """Whether another worker may take it over."""
        if self.owner is None or self.owner.is_dead():
            return True
        # Nothing can have been sent yet: the write-ahead note of an owner whose lease expired fails as a conflict.
        return self.state is State.RESERVED and self.owner.is_expired()

    def is_about(self, generation: Generation) -> bool:
        """Tell whether it paid for a generation."""
        return self.generation is not None and self.generation.id == generation.id

    # ------------------------------------------------------------ what may become of it

    def reserved(
        self,
        owner: Owner,
        *,
        quote_usd: Decimal | None,
        budgets: Sequence[str],
        flow_run_id: str | None,
        labels: Labels | None = None,
        campaign: str | None = None,
    ) -> Receipt:
        """Return it as reserved for an owner: the same attempt if nothing was sent, else the next one."""
        changes: dict[str, Any] = {
            "owner": owner,
            "quote_usd": quote_usd,
            "budgets": tuple(budgets),
            "flow_run_id": flow_run_id,
            "labels": dict(labels or {}),
            "campaign": campaign,
        }
        detail = None
        if self.state is not State.RESERVED:
            changes |= {"attempt": self.attempt + 1, "generation": None, **_NOTHING_SENT}
        if self.state is State.IN_DOUBT:
            if len(self.readings) < READINGS_NEEDED:
                raise IllegalTransition(f"{self.key} is in doubt: {len(self.readings)} readings prove no absence")
            changes["lost"] = (*self.lost, self._given_up())
            detail = f"proven absent: not listed at {' and '.join(f'{r.began_at:%H:%M:%S}' for r in self.readings)} UTC"
        return self._after(EventName.RESERVED, detail, **changes)

    def sending(self, owner: Owner, *, clock_offset: timedelta | None, links: Mapping[str, tuple[str, ...]]) -> Receipt:
        """Return it with the note, written ahead, that the purchase is on its way."""
        return self._after(
            EventName.SENDING,
            owner=owner,
            sent_at=datetime.now(UTC),
            clock_offset_seconds=None if clock_offset is None else clock_offset.total_seconds(),
            links=dict(links),
        )

    def waiting(self, owner: Owner, seconds: float) -> Receipt:
        """Return it after "too many requests": surely not accepted, and reserved until it is sent again."""
        return self._after(EventName.WAITING, f"too many requests: {seconds:g} s", owner=owner, **_NOTHING_SENT)

    def bought(self, generation: Generation, event: EventName, *, by_a_person: bool = False) -> Receipt:
        """Return it with the generation that it paid for."""
        detail = generation.id + (_BY_A_PERSON if by_a_person else "")
        return self._after(event, detail, generation_id=generation.id, generation=self.recorded(generation), owner=None)

    def bought_also(self, generation: Generation) -> Receipt:
        """Return it with a further generation that was charged."""
        return self._after(
            EventName.ALSO_BOUGHT,
            generation.id,
            generation_id=generation.id,
            also_bought=(*self.also_bought, self.recorded(generation)),
            lost=tuple(lost for lost in self.lost if lost is not self.lost_attempt_of(generation)),
        )

    def stored(self, asset: Asset, etag: str) -> Receipt:
        """Return it with the verified asset."""
        return self._after(EventName.STORED, asset.uri, asset=asset, etag=etag, owner=None)

    def failed(self, generation: Generation) -> Receipt:
        """Return it with the news that its generation failed and was not charged."""
        return self._after(EventName.FAILED, generation.error, generation=self.recorded(generation))

    def released(self, reason: str) -> Receipt:
        """Return it free for any worker: nothing was bought."""
        return self._after(EventName.RELEASED, reason, owner=None)

    def in_doubt(self, reason: str) -> Receipt:
        """Return it as in doubt: it was sent, and the response is lost."""
        return self._after(EventName.IN_DOUBT, reason)

    def read(self, reading: Reading) -> Receipt:
        """Return it with one more reading that showed no candidate."""
        detail = f"{reading.generations} generations listed, none can be it"
        return self._after(EventName.READ, detail, readings=(*self.readings, reading))

    def reopened(self, reason: str) -> Receipt:
        """Return it in doubt about its last lost attempt again: the reading before the next note spoke against it."""
        if not self.lost:
            raise IllegalTransition(f"{self.key} has no lost attempt to be in doubt about")
        lost = self.lost[-1]
        return self._after(EventName.REOPENED, reason, **_doubt_about(lost), lost=self.lost[:-1])

    def as_in_doubt(self, lost: LostAttempt) -> Receipt:
        """Return it as it was while a lost attempt was in doubt, to search for that; never written."""
        return self.model_copy(update={"state": State.IN_DOUBT, **_doubt_about(lost)})

    def recorded(self, generation: Generation) -> Generation:
        """Return a generation as a receipt may hold it: with its price, without links, which may be signed."""
        price = generation.price_usd
        if price is None and self.generation is not None and self.generation.id == generation.id:
            price = self.generation.price_usd
        return generation.model_copy(
            update={
                "output": None,
                "parameters": {},
                "price_usd": price,
                "receipt": self.key,
                "model": generation.model or self.request.model,
            }
        )

    def lost_attempt_of(self, generation: Generation) -> LostAttempt | None:
        """Return the lost attempt to which a generation that turned up belongs: the latest one sent before it."""
        made_at = generation.created_at
        sent = [lost for lost in self.lost if made_at is None or lost.sent_at <= made_at + timedelta(hours=1)]
        return sent[-1] if sent else None

    def _given_up(self) -> LostAttempt:
        assert self.sent_at is not None
        return LostAttempt(
            attempt=self.attempt,
            sent_at=self.sent_at,
            clock_offset_seconds=self.clock_offset_seconds,
            links=self.links,
            quote_usd=self.quote_usd,
            budgets=self.budgets,
            readings=self.readings,
            given_up_at=datetime.now(UTC),
            labels=self.labels,
            campaign=self.campaign,
        )

    def _after(
        self, event: EventName, detail: str | None = None, *, generation_id: str | None = None, **changes: Any
    ) -> Receipt:
        line = Event(at=datetime.now(UTC), event=event, detail=detail, generation_id=generation_id)
        return self.model_copy(
            update={
                "state": next_state(self.key, self.state, event),
                "history": (*self.history, line),
                "revision": self.revision + 1,
                **changes,
            }
        )


def _doubt_about(lost: LostAttempt) -> dict[str, Any]:
    return {
        "owner": None,
        "attempt": lost.attempt,
        "sent_at": lost.sent_at,
        "clock_offset_seconds": lost.clock_offset_seconds,
        "links": lost.links,
        "quote_usd": lost.quote_usd,
        "budgets": lost.budgets,
        "readings": lost.readings,
        "labels": lost.labels,
        "campaign": lost.campaign,
    }


_NOTHING_SENT: Mapping[str, Any] = {"sent_at": None, "clock_offset_seconds": None, "links": {}, "readings": ()}


def attach(receipt: Receipt) -> Generation:
    """Return the generation a receipt paid for; completed if its asset is in the store."""
    generation = receipt.generation
    assert generation is not None
    done = {"status": Status.COMPLETED} if receipt.state is State.STORED else {}
    return generation.model_copy(update={"receipt": receipt.key, "price_usd": receipt.price_usd, **done})


def missing_part(receipt: Receipt) -> str | None:
    """Return what a receipt in its state can't do without and doesn't have."""
    if not receipt.history:
        return "a history"
    if receipt.state in (State.BOUGHT, State.STORED) and receipt.generation is None:
        return "a generation"
    if receipt.state in (State.SENDING, State.IN_DOUBT) and receipt.sent_at is None:
        return "the time of its sending"
    return None
