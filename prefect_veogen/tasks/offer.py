"""What a form offers: which pictures, at which prices; kept in the form, so that another process can hold to it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from prefect import get_client
from pydantic import ValidationError

from prefect_veogen.models import Asset, in_usd
from prefect_veogen.models.generation import Value
from prefect_veogen.purchase.plan import Plan

_KEY = "offer"


class Offer(Value):
    """The pictures that a form is about, by generation and digest, and what it says that each choice costs.

    An answer may come days later and to another process: the price list may have changed, or the store, and with it
    the pictures. A price is `None` where nobody knew one.
    """

    pictures: tuple[str, ...]
    clips_usd: tuple[Decimal | None, ...]
    again_usd: Decimal | None
    new_prompt_usd: Decimal | None = None

    @classmethod
    def of(cls, images: Sequence[Asset], clips: Plan, again: Plan, *, new_prompt_usd: Decimal | None) -> Offer:
        """Return what a form about these pictures offers. Free."""
        return cls(
            pictures=_identities(images),
            clips_usd=tuple(item.usd for item in clips.items),
            again_usd=_known_total(again),
            new_prompt_usd=new_prompt_usd,
        )

    def in_schema(self) -> dict[str, Any]:
        """Return what is added to the form's schema."""
        return {_KEY: self.model_dump(mode="json")}

    def differs_from(self, images: Sequence[Asset]) -> bool:
        """Tell whether the pictures are others by now. Free."""
        return self.pictures != _identities(images)

    def usd_of(self, approved: Sequence[int]) -> Decimal | None:
        """Return what clips of the approved pictures were to cost; `None` if it was not known."""
        known = [usd for usd in (self.clips_usd[number - 1] for number in approved) if usd is not None]
        return sum(known, Decimal(0)) if len(known) == len(approved) else None


def dearer(plan: Plan, offered: Decimal | None) -> str:
    """Return that a plan costs more than was offered, empty if it doesn't. What had no price then may cost anything."""
    now = _known_total(plan)
    if offered is None or (now is not None and now <= offered):
        return ""
    return f"That costs {plan.price} now, and {in_usd(offered)} was shown: prices have changed"


async def read_offer(run_id: UUID, schema_key: str) -> Offer | None:
    """Return what a form of a run offers; `None` for one of an older version, which didn't say. Free."""
    async with get_client() as client:
        stored = await client.filter_flow_run_input(run_id, schema_key, 1, set())
    try:
        return Offer.model_validate(stored[0].decoded_value[_KEY])
    except (LookupError, TypeError, ValidationError):
        return None


def _identities(images: Sequence[Asset]) -> tuple[str, ...]:
    return tuple(f"{image.generation_id}:{image.sha256}" for image in images)


def _known_total(plan: Plan) -> Decimal | None:
    return None if plan.unpriced else plan.total_usd
