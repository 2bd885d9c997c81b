"""What purchases and caps say to those who listen: a line in the log, an event where the session sends any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_veogen.models import in_usd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from prefect_veogen.errors import BudgetExceeded
    from prefect_veogen.ledger import Receipt
    from prefect_veogen.ledger.budgets import Crossing
    from prefect_veogen.models import Generation, GenerationRequest
    from prefect_veogen.session import Session

BOUGHT = "veogen.generation.bought"
FAILED = "veogen.generation.failed"
IN_DOUBT = "veogen.generation.in_doubt"
WARNED = "veogen.budget.warned"
REFUSED = "veogen.budget.refused"


def note_bought(session: Session, receipt: Receipt) -> None:
    """Send `veogen.generation.bought` for what a receipt has just paid for."""
    assert receipt.generation is not None
    payload = {
        "generation_id": receipt.generation.id,
        "model": receipt.request.model,
        "price_usd": _text(receipt.price_usd),
        "take": receipt.take,
        "receipt": receipt.key,
        "labels": dict(receipt.labels),
        "campaign": receipt.campaign,
    }
    session.emit(BOUGHT, f"veogen.generation.{receipt.generation.id}", _known(payload))


def note_failed(session: Session, generation: Generation, receipt: Receipt | None) -> None:
    """Send `veogen.generation.failed` for a generation that failed, and was not charged; its receipt has its labels."""
    bought_for = receipt or session
    payload = {
        "generation_id": generation.id,
        "model": generation.model,
        "error": generation.error,
        "receipt": generation.receipt,
        "labels": dict(bought_for.labels),
        "campaign": bought_for.campaign,
    }
    session.emit(FAILED, f"veogen.generation.{generation.id}", _known(payload))


def note_in_doubt(session: Session, receipt: Receipt, reason: str) -> None:
    """Send `veogen.generation.in_doubt` for a purchase whose response is lost: it may or may not have been made."""
    payload = {
        "receipt": receipt.key,
        "model": receipt.request.model,
        "price_usd": _text(receipt.quote_usd),
        "take": receipt.take,
        "reason": reason,
        "labels": dict(receipt.labels),
        "campaign": receipt.campaign,
    }
    session.emit(IN_DOUBT, f"veogen.receipt.{receipt.key}", _known(payload))


def warn_of(session: Session, crossed: Sequence[Crossing]) -> None:
    """Warn, in the log and by `veogen.budget.warned`, of caps of which 80 % are committed now."""
    for crossing in crossed:
        session.log.warning(
            "%s of the budget %r of %s are spent or reserved: %s left",
            in_usd(crossing.committed_usd),
            crossing.cap.budget,
            in_usd(crossing.cap.usd),
            in_usd(crossing.left_usd),
        )
        payload = {
            "budget": crossing.cap.budget,
            "cap_usd": _text(crossing.cap.usd),
            "committed_usd": _text(crossing.committed_usd),
            "left_usd": _text(crossing.left_usd),
        }
        session.emit(WARNED, _resource(crossing.cap.budget), payload)


def note_refused(session: Session, refusal: BudgetExceeded, request: GenerationRequest | None = None) -> None:
    """Send `veogen.budget.refused` for a purchase, or for a whole list of them, that a cap did not allow.

    What has no price is refused by every cap.
    """
    amounts = {name: _text(getattr(refusal, name)) for name in ("wanted_usd", "left_usd", "cap_usd")}
    payload = {**amounts, "model": request and request.model, "labels": dict(session.labels)}
    for budget in (refusal.budget,) if refusal.budget else [cap.budget for cap in session.caps]:
        session.emit(REFUSED, _resource(budget), _known({"budget": budget, **payload}))


def _resource(budget: str) -> str:
    return f"veogen.budget.{budget}"


def _text(usd: Decimal | None) -> str | None:
    return None if usd is None else f"{usd:f}"


def _known(payload: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if value is not None}
