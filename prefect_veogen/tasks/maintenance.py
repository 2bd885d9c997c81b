"""What keeps the ledger in order from within Prefect: sweep, compare, and what to do when a run stops."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect import task
from prefect.artifacts import acreate_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.errors import VeogenError
from prefect_veogen.ledger import Ledger, Receipt
from prefect_veogen.ledger import State as ReceiptState
from prefect_veogen.models import in_usd
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.session import Session
from prefect_veogen.settings import Settings
from prefect_veogen.tasks.artifacts import courtesy, showing
from prefect_veogen.tasks.durability import check_store_is_durable
from prefect_veogen.tasks.generation import open_task_session
from prefect_veogen.tasks.markdown import literal
from prefect_veogen.tasks.run_again import run_again_later
from prefect_veogen.tasks.runs import name_task_run
from prefect_veogen.tasks.steps import FREE
from prefect_veogen.tasks.stores import StoreParameter, resolve_store, store_name
from prefect_veogen.upkeep.balance import warn_of_low_balance
from prefect_veogen.upkeep.receipts import read_receipts
from prefect_veogen.upkeep.statement import Reconciliation, reconcile
from prefect_veogen.upkeep.sweep import Swept, sweep

_UNSETTLED = (ReceiptState.SENDING, ReceiptState.IN_DOUBT, ReceiptState.BOUGHT)


@task(
    name="sweep store",
    task_run_name=name_task_run("sweep", lambda of: store_name(of["store"])),
    description="Finishes what runs that died or were cancelled left behind.",
    **FREE,
)
async def sweep_store(
    *, credentials: VeogenCredentials | str | None = None, store: StoreParameter | None = None
) -> Sequence[Swept]:
    """Return what was done about unfinished receipts: paid outputs downloaded, purchases in doubt found. Free.

    Safe to repeat, and to run beside working flows. What needs manual review is in the returned notes. A balance that
    doesn't last for three days more, at the rate of the last seven, is warned of (`veogen.balance.low`).
    """
    async with showing(await open_task_session(credentials, store)) as session:
        swept = await on_io(_sweep_and_warn(session))
    for item in swept:
        session.log.info("%s: %s → %s. %s", item.key, item.before.label, item.after.label, item.note)
    if swept:
        table = [
            {"receipt": item.key, "before": item.before.label, "after": item.after.label, "note": literal(item.note)}
            for item in swept
        ]
        async with courtesy(session):
            await acreate_table_artifact(table, key="veogen-sweep", description=f"Unfinished receipts: {len(swept)}")
    return swept


async def _sweep_and_warn(session: Session) -> list[Swept]:
    swept = await sweep(session)
    await warn_of_low_balance(session)
    return swept


@task(
    name="compare with statement",
    task_run_name=name_task_run("compare", lambda of: f"the last {of['days']} days with the statement"),
    description="Matches the ledger's purchases against what the account was charged.",
    **FREE,
)
async def compare_with_statement(
    days: int = 30, *, credentials: VeogenCredentials | str | None = None, store: StoreParameter | None = None
) -> Reconciliation:
    """Return how the ledger and the account's statement compare over the last days. Free, and safe to repeat."""
    session = await open_task_session(credentials, store)
    found = await on_io(reconcile(session, datetime.now(UTC) - timedelta(days=days)))
    say = session.log.info if found.adds_up else session.log.warning
    say(
        "%d receipts of %s, %d charges of %s: %s",
        found.receipts,
        in_usd(found.ledger_usd),
        found.charges,
        in_usd(found.statement_usd),
        "they add up" if found.adds_up else "they do not add up",
    )
    differences = _differences(found)
    said = "What does not add up" if differences else "Ledger and statement add up"
    async with courtesy(session):
        await acreate_table_artifact(differences, key="veogen-reconciliation", description=said)
    return found


async def report_unfinished(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Log what a stopped flow run has paid for and not stored; use it as `on_cancellation`, `on_crashed`, `on_failure`.

    Nothing is lost by stopping: the service can't cancel a generation, and the next run of the same request adopts it.
    """
    log = flow_run_logger(flow_run, flow)
    try:
        receipts = await on_io(_read_unsettled(flow_run))
    except VeogenError as error:
        log.warning("Can't report what this run left running: %s", error.message)
        return
    for receipt in receipts:
        name = receipt.generation.id if receipt.generation else "a purchase in doubt"
        log.warning(
            "%s: %s of %s goes on at the service, which can't cancel it; it costs %s. The next run of the same "
            "request, or `prefect-veogen sweep`, adopts it and pays nothing.",
            state.name,
            name,
            receipt.request.model,
            in_usd(receipt.price_usd),
        )


async def _read_unsettled(flow_run: FlowRun) -> list[Receipt]:
    place = flow_run.parameters.get("store") or Settings().store
    await check_store_is_durable(place, flow_run)
    store = await resolve_store(place)
    began = flow_run.start_time or flow_run.created or datetime.now(UTC)
    receipts = await read_receipts(Ledger(store), began - timedelta(minutes=1))
    return [
        receipt
        for receipt in receipts.readable
        if receipt.flow_run_id == str(flow_run.id) and receipt.state in _UNSETTLED
    ]


ON_STOP: Final[dict[str, Any]] = {
    "on_cancellation": [report_unfinished],
    "on_crashed": [report_unfinished],
    "on_failure": [run_again_later, report_unfinished],  # reading all receipts may take a while
}
"""For flows which buy: `@flow(**ON_STOP)` reports what a stopped run left, and puts one that time heals back on the
schedule."""


def _differences(found: Reconciliation) -> list[dict[str, str]]:
    ours = [
        {"only in": "ledger", "what": receipt.key, "usd": str(receipt.price_usd), "at": str(receipt.sent_at)}
        for receipt in found.only_in_ledger
    ]
    theirs = [
        {
            "only in": "statement",
            "what": literal(f"{charge.model_key} #{charge.id}"),
            "usd": str(charge.amount_usd),
            "at": str(charge.created_at),
        }
        for charge in found.only_in_statement
    ]
    return [*ours, *theirs]
