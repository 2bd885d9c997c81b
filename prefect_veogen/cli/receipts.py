"""`receipts`, `sweep` and `reconcile`: show, finish and check what was bought."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING

from prefect_veogen.cli.arguments import a_month_ago
from prefect_veogen.cli.connection import check_store, connect, open_offline
from prefect_veogen.cli.terminal import complain, say, shortened, table, write_json
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger import Receipt, State
from prefect_veogen.models import in_usd
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.in_doubt import still_in_doubt
from prefect_veogen.session import Session
from prefect_veogen.upkeep import decisions
from prefect_veogen.upkeep.receipts import find_receipt, read_receipts
from prefect_veogen.upkeep.statement import reconcile as reconcile_statement
from prefect_veogen.upkeep.sweep import sweep as sweep_store

if TYPE_CHECKING:
    from argparse import Namespace


def receipts(options: Namespace) -> int:
    """List, show, adopt or release."""
    match options.action:
        case "show":
            return _show(options)
        case "adopt":
            adopting = decisions.adopt(_session(options), options.key, options.generation_id, force=options.force)
            receipt = asyncio.run(on_io(adopting))
            return _report_decision(
                options, receipt, "The next run of this request uses that generation and buys nothing."
            )
        case "release":
            receipt = asyncio.run(on_io(decisions.release(open_offline(options), options.key)))
            return _report_decision(options, receipt, "The next run of this request buys.")
        case "list" | None:
            return _list(options)
        case action:
            raise NotImplementedError(action)


def sweep(options: Namespace) -> int:
    """Finish what can be finished; return 1 if anything needs manual review."""
    session = _session(options)
    swept = asyncio.run(on_io(sweep_store(session)))
    if options.json:
        write_json(swept)
    elif not swept:
        say("Nothing to do: everything that was bought is in the store, verified.")
    else:
        for item in swept:
            moved = item.after.label if item.before is item.after else f"{item.before.label} → {item.after.label}"
            say(f"{item.key}  {moved}", style="bold")
            say(*(f"    {line}" for line in item.note.splitlines()))
    return 1 if any(item.after is State.IN_DOUBT for item in swept) else 0


def reconcile(options: Namespace) -> int:
    """Compare the receipts with the statement; return 1 if they don't add up."""
    session = _session(options)
    found = asyncio.run(on_io(reconcile_statement(session, options.since or a_month_ago())))
    if options.json:
        write_json({name: getattr(found, name) for name in found.__dataclass_fields__} | {"adds_up": found.adds_up})
        return 0 if found.adds_up else 1
    say(f"Since {found.since:%Y-%m-%d %H:%M} UTC", "")
    table(
        ("", "PURCHASES", "USD"),
        [
            ("receipts in this store", str(found.receipts), in_usd(found.ledger_usd)),
            ("charges on the statement", str(found.charges), in_usd(found.statement_usd)),
        ],
        right=("PURCHASES", "USD"),
    )
    say("")
    if found.adds_up:
        say("They add up.")
        return 0
    say(*found.damaged, style="bold")
    if found.only_in_ledger:
        say("In this store's receipts, but not on the statement:", style="bold")
        table(_HEADS, [_row(receipt) for receipt in found.only_in_ledger], right=("PRICE",))
    if found.only_in_statement:
        say("On the statement, but not in this store's receipts:", style="bold")
        rows = [
            (
                f"{charge.created_at:%Y-%m-%d %H:%M}" if charge.created_at else "?",
                in_usd(charge.amount_usd),
                charge.model_key or "?",
                charge.id,
            )
            for charge in found.only_in_statement
        ]
        table(("WHEN", "PRICE", "MODEL KEY", "CHARGE"), rows, right=("PRICE",))
    return 1


# ---------------------------------------------------------------- receipts


_HEADS = ("STATE", "MODEL", "PRICE", "WHEN", "PROMPT", "KEY")


def _list(options: Namespace) -> int:
    wanted = None if options.state is None else _state(options.state)
    session = open_offline(options)
    known, damaged = asyncio.run(on_io(read_receipts(session.ledger)))
    found = [item for item in known if wanted in (None, item.state)]
    found.sort(key=lambda item: item.history[0].at if item.history else a_month_ago())
    if options.json:
        write_json(found)
    elif not found:
        say(f"There are no{f' {wanted.label}' if wanted else ''} receipts in {session.store.uri('')}")
    else:
        table(_HEADS, [_row(item) for item in found], right=("PRICE",))
        count = f"{len(found)} receipt{'' if len(found) == 1 else 's'}"
        say("", f"{count}, {in_usd(_paid(found))} paid. Details: prefect-veogen receipts show KEY")
    for error in damaged:
        complain(error)
    return 1 if damaged else 0


def _show(options: Namespace) -> int:
    session = open_offline(options)
    found = asyncio.run(on_io(find_receipt(session.ledger, options.key))).receipt
    if options.json:
        write_json(found)
        return 0
    say(f"{found.key}  {found.state.label}", style="bold")
    say("")
    asset, generation = found.asset, found.generation
    facts = {
        "model": found.request.model,
        "prompt": found.request.prompt,
        "options": ", ".join(f"{name}={value}" for name, value in found.request.options.items()),
        "take": found.take,
        "price": in_usd(found.price_usd)
        + ("" if generation is None or generation.price_usd is None else ", as charged"),
        "generation": generation.id if generation else "",
        "asset": asset.uri if asset else "",
        "sha256": asset.sha256 if asset else "",
        "budgets": ", ".join(found.budgets),
        "labels": ", ".join(f"{name}={value}" for name, value in found.labels.items()),
        "campaign": found.campaign or "",
        "api": found.api,
    }
    table(("", ""), [(name, value) for name, value in facts.items() if value])
    say("")
    table(
        ("WHEN (UTC)", "WHAT", ""),
        [(f"{line.at:%Y-%m-%d %H:%M:%S}", line.event, line.detail or "") for line in found.history],
    )
    if found.state is State.IN_DOUBT:
        say("", still_in_doubt(session, found, "").next_step)
    return 0


def _state(text: str) -> State:
    for state in State:
        if text.replace("-", " ") in (state.value, state.label):
            return state
    raise ConfigurationError(
        f"{text!r} is not a state of a receipt",
        next_step=f"Choose one of: {', '.join(state.label.replace(' ', '-') for state in State)}.",
    )


def _report_decision(options: Namespace, receipt: Receipt, consequence: str) -> int:
    if options.json:
        write_json(receipt)
    else:
        say(f"{receipt.key} is {receipt.state.label} now. {consequence}")
    return 0


def _row(receipt: Receipt) -> tuple[str, ...]:
    when = receipt.sent_at or (receipt.history[0].at if receipt.history else None)
    price = receipt.price_usd if receipt.state not in (State.FAILED, State.RELEASED) else None
    return (
        receipt.state.label,
        receipt.request.model,
        "-" if price is None else in_usd(price),
        f"{when:%Y-%m-%d %H:%M}" if when else "",
        shortened(receipt.request.prompt, 40),
        receipt.key,
    )


def _paid(found: list[Receipt]) -> Decimal:
    return sum(
        (item.price_usd or Decimal(0) for item in found if item.state in (State.BOUGHT, State.STORED)), Decimal(0)
    )


def _session(options: Namespace) -> Session:
    return check_store(connect(options))
