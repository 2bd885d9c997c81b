"""`plan`: what requests would cost, before anything is bought."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.campaign.run import plan_rows
from prefect_veogen.cli.connection import connect
from prefect_veogen.cli.terminal import say, shortened, table, write_json
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger.budgets import Cap
from prefect_veogen.models import Certainty, GenerationRequest, in_usd
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.plan import Plan, PlanItem, make_plan
from prefect_veogen.schedule import take_of_slot

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from prefect_veogen.campaign.rows import Rows
    from prefect_veogen.session import Session

_FIELDS = (
    "aspect_ratio",
    "resolution",
    "duration",
    "mode",
    "style",
    "image_urls",
    "video_urls",
    "audio_urls",
)
_OF_A_MANIFEST = ("carry", "prompt_template", "motion_template", "variants")


def plan(options: Namespace) -> int:
    """Write what the requests would cost; return 1 if any would be refused or could not be paid."""
    cap = Cap.of("this plan", options.budget_usd)
    session = connect(options, () if cap is None else (cap,))
    made, kept = asyncio.run(on_io(_make(session, options)))
    if options.json:
        write_json(_described(made))
    else:
        _write(made, kept)
    return 0 if made.is_affordable and not made.problems else 1


async def _make(session: Session, options: Namespace) -> tuple[Plan, int]:
    """Return the plan, and how many rows of a table of results ended well, so that they are not in it."""
    labels = _labels(options)
    if options.prompt is None:
        rows = await _read_rows(session, options, labels)
        return await plan_rows(session, rows, itemised=True), len(rows.kept)
    if given := _given(options, _OF_A_MANIFEST):
        raise ConfigurationError(
            f"{', '.join(given)} would be ignored: a single request has no columns and no rows",
            next_step="Leave it out, or plan a manifest: give its path or link, and no prompt.",
        )
    fields = {name: getattr(options, name) for name in _FIELDS}
    request = GenerationRequest(model=options.what, prompt=options.prompt, take=_fill_in_take(options.take), **fields)
    return await make_plan(session.labelled(labels), [request]), 0


def _given(options: Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _labels(options: Namespace) -> dict[str, str]:
    labels: dict[str, str] = {}
    for name, value in options.labels or ():
        if name in labels:
            raise ConfigurationError(f"--label {name} is given twice", next_step="A purchase has one value per label.")
        labels[name] = value
    return labels


async def _read_rows(session: Session, options: Namespace, labels: dict[str, str]) -> Rows:
    if given := _given(options, _FIELDS):
        raise ConfigurationError(
            f"{', '.join(given)} would be ignored: the rows of a manifest have their own",
            next_step="Write it into the rows, or plan one request: give a model and a prompt.",
        )
    columns = _given(options, _OF_A_MANIFEST)
    try:
        return await read_manifest(options.what, options.take, _fill_in_take, session, labels=labels, **columns)
    except ConfigurationError as error:
        if _may_be_a_model(options.what):
            error.next_step = f"{error.next_step} If it is a model: give a prompt, too.".lstrip()
        raise


def _may_be_a_model(what: str) -> bool:
    """Tell whether a single word may be a model's: it is neither a link nor a file, nor does it end as files do."""
    if "://" in what or re.fullmatch(r"\.[a-z]+", Path(what).suffix.lower()):
        return False
    with contextlib.suppress(OSError):  # too long for a file's name
        return not Path(what).exists()
    return True


def _fill_in_take(take: int | str) -> int | str:
    """Return a take with `{scheduled:…}` filled in as a run started now would."""
    return take_of_slot(take, datetime.now(UTC))


def _described(made: Plan) -> dict[str, Any]:
    return {
        "items": [
            {
                "row": item.where,
                "request": item.request.canonical(),
                "take": item.request.take,
                "usd": item.usd,
                "certainty": item.certainty,
                "already_bought": item.already_bought,
                "in_doubt": item.in_doubt,
                "problem": item.problem and item.problem.message,
                "next_step": item.problem and item.problem.next_step,
            }
            for item in made.items
        ],
        "total_usd": made.total_usd,
        "in_doubt_usd": made.in_doubt_usd,
        "certainty": made.certainty,
        "balance_usd": made.balance_usd,
        "budgets": made.budgets,
        "is_affordable": made.is_affordable,
    }


def _write(made: Plan, kept: int) -> None:
    seen: list[str] = []
    rows = []
    for item in made.items:
        row = () if item.where is None else (shortened(item.where, 30),)
        rows.append((*row, item.request.model, shortened(item.request.prompt), *_price_and_note(item, seen)))
        seen.append(item.request.receipt_key(""))
    heads = ("ROW", "MODEL", "PROMPT", "PRICE", "")
    table(heads[-len(rows[0]) :] if rows else heads, rows, right=("PRICE",))
    if kept:
        say(f"Rows that ended well before and are kept: {kept}")
    for item in made.items:
        if item.problem is not None:
            say("", f"{item.where or 'It'} would be refused. {item.problem}", style="red")
    say("", f"Total: {_total(made)}", style="bold")
    say(f"Balance: {in_usd(made.balance_usd)}")
    for budget in made.budgets:
        say(f"Budget {budget.budget}: {in_usd(budget.left_usd)} of {in_usd(budget.cap_usd)} left")
    if not made.is_affordable:
        say("This can't be paid: it costs more than is left.", style="red")


def _price_and_note(item: PlanItem, seen: list[str]) -> tuple[str, str]:
    if item.problem is not None:
        return "-", "would be refused"
    if item.already_bought:
        return in_usd(item.usd), "same as above" if item.request.receipt_key("") in seen else "already bought"
    if item.in_doubt:
        return in_usd(item.usd), "in doubt: may be paid already"
    return in_usd(item.usd), "" if item.certainty is Certainty.EXACT else _note_on(item.certainty)


def _note_on(certainty: Certainty) -> str:
    return {
        Certainty.EXACT: "exact",
        Certainty.UPPER_BOUND: "at most",
        Certainty.UNPRICED: "the catalogue states no price",
    }[certainty]


def _total(made: Plan) -> str:
    match made.certainty:
        case Certainty.EXACT:
            return in_usd(made.total_usd)
        case Certainty.UPPER_BOUND:
            return f"at most {in_usd(made.total_usd)}"
        case _:
            return f"at least {in_usd(made.total_usd)}: some prices are unknown"
