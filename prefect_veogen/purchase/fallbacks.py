"""Requests that stand in for one another when one fails: which comes first, and whether each could be bought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prefect_veogen.errors import InvalidRequest, Problem
from prefect_veogen.ledger import State
from prefect_veogen.purchase.inputs import find_receipt_key
from prefect_veogen.purchase.plan import make_plan, require_money

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_veogen.models import GenerationRequest
    from prefect_veogen.session import Session

_BEGUN: Final = (State.RESERVED, State.SENDING, State.IN_DOUBT, State.BOUGHT, State.STORED)


async def check_fallbacks(session: Session, requests: Sequence[GenerationRequest]) -> int:
    """Return at which of the requests to begin, after validating and pricing it and all behind it. Free.

    Only one of them is paid for in the end, so each alone has to be affordable. Where one was begun already, nothing is
    asked any more: going on with it must not fail for what would come after it, and that is checked when it is bought.

    Raises:
        ChangeTheRequest: a model does not offer what one of them asks for, or makes clips in place of pictures.
        BudgetExceeded, InsufficientBalance: the money would not do for one of them.
    """
    begin, is_begun = await _find_beginning(session, requests)
    for request in () if is_begun else requests[begin:]:
        await _check_kind(session, request, requests[0])
        plan = await make_plan(session, [request])
        for item in plan.problems:
            assert item.problem is not None
            raise item.problem
        require_money(session, plan, f"{request.model} (take {request.take})", request)
    return begin


async def _check_kind(session: Session, request: GenerationRequest, first: GenerationRequest) -> None:
    made, wanted = [await session.catalogue.find_kind(one.model) for one in (request, first)]
    if made is not None and wanted is not None and made is not wanted:
        problem = f"makes a {made.value}, and can't stand in for the {wanted.value} of {first.model}"
        raise InvalidRequest([Problem("model", request.model, problem)])


async def _find_beginning(session: Session, requests: Sequence[GenerationRequest]) -> tuple[int, bool]:
    """Return the position of the one that an earlier call had come to when all before it had failed; else the first.

    And whether that one was begun.

    A failed request may be bought again. Where another was made in its place, that would be a second purchase.
    """
    for position, request in enumerate(requests):
        entry = await session.ledger.read(await find_receipt_key(session, request))
        state = entry.receipt.state if entry else None
        if state is not State.FAILED:
            return (position, True) if state in _BEGUN else (0, False)
    return 0, False
