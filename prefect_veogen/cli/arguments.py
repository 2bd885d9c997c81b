"""The command line's commands and options, with an example for each."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prefect_veogen.cli.argument_parts import Formatter
from prefect_veogen.cli.argument_parts import add_command as _command
from prefect_veogen.cli.argument_parts import add_shared as _shared
from prefect_veogen.cli.server_arguments import add_deploy, add_doctor, add_setup

if TYPE_CHECKING:
    from prefect_veogen.upkeep.costs import Grouping

_ABOUT = """Paid images and videos as safe steps of a Prefect pipeline."""

_EXAMPLES = """\
start here:
  prefect-veogen demo                        an image, then a video: offline, no account, no money

with an account:
  export VEOGEN_API_TOKEN=...                veogen.studio → Settings → API Tokens
  export VEOGEN_STORE=s3://bucket/prefix     where assets and receipts live; or a path
  prefect-veogen models                      what the service offers, and what it costs
  prefect-veogen plan rows.csv               what it would cost, before anything is bought

`prefect-veogen COMMAND --help` shows the details. None of these commands buys anything; flows do."""

_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)

_SWEEP_STOPPED = "Stopped. Nothing was bought and nothing is lost: run it again to finish the rest."
_DEMO_STOPPED = (
    "Stopped. The sandbox and Prefect's local server are gone; nothing is still running, nothing cost money."
)
_KEY_HELP = "its key, or a unique prefix of it"
_DECISION_STOPPED = "Stopped. `prefect-veogen receipts show KEY` shows whether the decision was recorded."


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; its result has `command` and, by command, its options."""
    top = argparse.ArgumentParser(
        prog="prefect-veogen",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=Formatter,
    )
    top.add_argument("--version", action="version", version=f"prefect-veogen {version('prefect-veogen')}")
    top.set_defaults(credentials=None, base_url=None, store=None, json=False, state=None, stopped=None)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    _demo(commands)
    _command(commands, "sandbox", "a local Veogen Studio to try pipelines on", "prefect-veogen sandbox --port 8765")
    _models(commands)
    _balance(commands)
    _plan(commands)
    _receipts(commands)
    _sweep(commands)
    _reconcile(commands)
    _costs(commands)
    add_setup(commands)
    add_deploy(commands)
    add_doctor(commands)
    _explain(commands)
    return top


def _demo(commands: Any) -> None:
    command = _command(
        commands,
        "demo",
        "an image, then a video, in a minute: offline, no account, no money",
        "prefect-veogen demo\nprefect-veogen demo --keep     # and then try things on its sandbox yourself",
        about="Starts a sandbox and a private Prefect server, runs the flow image_then_animate on them, runs it once "
        "more to show that nothing is bought twice, and leaves the picture and the clip for you to look at. It never "
        "connects to the real service, whatever token is set.",
    )
    command.add_argument(
        "--store",
        metavar="DIR",
        default="veogen-demo",
        help="each demo creates a new folder in it (default: %(default)s)",
    )
    command.add_argument("--keep", action="store_true", help="leave the sandbox running until Ctrl-C")
    command.set_defaults(stopped=_DEMO_STOPPED)


def _models(commands: Any) -> None:
    command = _command(
        commands,
        "models",
        "what the service offers, and what it costs",
        "prefect-veogen models\nprefect-veogen models veo-3.1-fast",
    )
    command.add_argument("slug", nargs="?", metavar="MODEL", help="one model, with its parameters and prices")
    _shared(command, "--credentials", "--base-url", "--json")


def _balance(commands: Any) -> None:
    command = _command(
        commands, "balance", "the account's balance, and what it has spent", "prefect-veogen balance --json"
    )
    _shared(command, "--credentials", "--base-url", "--json")


def _plan(commands: Any) -> None:
    command = _command(
        commands,
        "plan",
        "what a request or a whole manifest would cost; buys nothing",
        'prefect-veogen plan veo-3.1-fast "waves at night" --resolution 4k\n'
        "prefect-veogen plan rows.csv --budget-usd 5\n"
        "prefect-veogen plan products.parquet --carry '*' --prompt-template 'a {color} {name}' --label project=spring",
        about="Checks and prices requests against the live catalogue, the receipts, the balance and the budgets. "
        "Exit code 1 if something would be refused or could not be paid.",
    )
    command.add_argument("what", metavar="MODEL | MANIFEST", help="a model, or the path or link of a table of rows")
    command.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt, if the first argument is a model")
    for name in ("aspect-ratio", "resolution", "mode", "style"):
        command.add_argument(f"--{name}", metavar="TEXT")
    command.add_argument("--duration", type=int, metavar="SECONDS")
    for kind in ("image", "video", "audio"):
        command.add_argument(
            f"--{kind}-url",
            action="append",
            dest=f"{kind}_urls",
            metavar="WHERE",
            help="a URL, s3://bucket/key or ./path; may be repeated",
        )
    command.add_argument("--take", type=_take, default=1, help="a number or a name (default: 1)")
    command.add_argument("--budget-usd", type=_amount, metavar="USD", help="also compare with this cap")
    command.add_argument(
        "--label",
        type=_label,
        action="append",
        dest="labels",
        metavar="NAME=VALUE",
        help="a label that it would be bought with, for the caps that go by it; may be repeated",
    )
    _table_options(command.add_argument_group("options of a manifest, as a campaign has them"))
    _shared(command, "--credentials", "--base-url", "--store", "--json")


def _table_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--carry", action="append", metavar="COLUMN", help="a column to take along, or '*' for all; may be repeated"
    )
    for name, made in (("prompt", "prompts"), ("motion", "motion prompts")):
        about = f"makes the {made} that rows lack: 'a {{color}} hat'"
        group.add_argument(f"--{name}-template", metavar="TEXT", help=about)
    group.add_argument("--variants", type=int, metavar="N", help="make each row in so many takes")


def _receipts(commands: Any) -> None:
    command = _command(
        commands,
        "receipts",
        "what was bought, and decisions about purchases in doubt",
        "prefect-veogen receipts\n"
        "prefect-veogen receipts show KEY\n"
        "prefect-veogen receipts adopt KEY GENERATION_ID     # it was that generation\n"
        "prefect-veogen receipts release KEY                 # it was never made; the next run buys",
    )
    _shared(command, "--store", "--json")
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    listing = _command(
        actions, "list", "all receipts in the store (the default)", "prefect-veogen receipts list --json"
    )
    listing.add_argument("--state", metavar="STATE", help="only these, such as in-doubt")
    show = _command(actions, "show", "one receipt, with its history", "prefect-veogen receipts show v1-4be1c2")
    show.add_argument("key", metavar="KEY", help=_KEY_HELP)
    adopt = _command(
        actions,
        "adopt",
        "record which generation a purchase in doubt was; the next run uses it",
        "prefect-veogen receipts adopt v1-4be1c2 0193…",
    )
    adopt.add_argument("key", metavar="KEY", help=_KEY_HELP)
    adopt.add_argument("generation_id", metavar="GENERATION_ID")
    adopt.add_argument("--force", action="store_true", help="even if the generation's content differs from the request")
    adopt.set_defaults(stopped=_DECISION_STOPPED)
    release = _command(
        actions,
        "release",
        "record that a purchase in doubt was never made; the next run BUYS",
        "prefect-veogen receipts release v1-4be1c2",
        about="COSTS MONEY if it is wrong: the next run buys again. Check the account's generations first.",
    )
    release.add_argument("key", metavar="KEY", help=_KEY_HELP)
    release.set_defaults(stopped=_DECISION_STOPPED)
    _shared(adopt, "--credentials", "--base-url")
    for action in (listing, show, adopt, release):
        _shared(action, "--store", "--json")


def _sweep(commands: Any) -> None:
    command = _command(
        commands,
        "sweep",
        "finish what killed or cancelled runs left behind; free",
        "prefect-veogen sweep",
        about="Downloads what was paid for, searches for purchases in doubt, and releases money that was reserved by "
        "runs that died. Safe beside running flows. Exit code 1 if anything needs manual review.",
    )
    _shared(command, "--credentials", "--base-url", "--store", "--json")
    command.set_defaults(stopped=_SWEEP_STOPPED)


def _reconcile(commands: Any) -> None:
    command = _command(
        commands,
        "reconcile",
        "compare the receipts with the account's statement; free",
        "prefect-veogen reconcile --since 2026-11-01",
        about="Exit code 1 if they don't add up. Purchases of another store or by hand show up as a difference, too.",
    )
    command.add_argument(
        "--since",
        type=_moment,
        metavar="DATE",
        help="a date or time, UTC unless it has an offset (default: 30 days ago)",
    )
    _shared(command, "--credentials", "--base-url", "--store", "--json")


def _costs(commands: Any) -> None:
    command = _command(
        commands,
        "costs",
        "what was spent, by model, day, campaign or label; free",
        "prefect-veogen costs --by label:project\nprefect-veogen costs --by day --since 2026-11-01 --csv > costs.csv",
        about="Sums up the receipts in the store: spent, reserved for what is being bought, and in doubt. Needs no "
        "token. Exit code 1 if receipts are damaged; they are named, and not in the sums.",
    )
    command.add_argument(
        "--by",
        type=_grouping,
        default="model",
        metavar="KEY",
        help="model, day (UTC, when it was sent), campaign, or label:NAME (default: model)",
    )
    command.add_argument(
        "--since", type=_moment, metavar="DATE", help="a date or time, UTC unless it has an offset (default: always)"
    )
    _shared(command, "--store")
    form = command.add_mutually_exclusive_group()
    _shared(form, "--json")
    form.add_argument("--csv", action="store_true", help="CSV on stdout, nothing else")


def _explain(commands: Any) -> None:
    example = "prefect-veogen explain StillRunning\nprefect-veogen explain     # lists all errors"
    command = _command(commands, "explain", "what an error means, what was bought and what to do; offline", example)
    command.add_argument("error", nargs="?", metavar="ERROR", help="the error's name, as in prefect_veogen.errors")


# ---------------------------------------------------------------- values


def _take(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as project=spring")
    return name, value


def _grouping(text: str) -> Grouping:
    from prefect_veogen.models import label_name_problem
    from prefect_veogen.upkeep.costs import Grouping

    match text.partition(":"):
        case ("model" | "day" | "campaign") as by, "", "":
            return Grouping(by)
        case "label", _, label if label_name_problem(label) is None:
            return Grouping("label", label)
    raise argparse.ArgumentTypeError(f"{text!r} is not model, day, campaign or label:NAME, such as label:project")


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of money")
    return amount


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a date such as 2026-11-01 or 2026-11-01T08:00+00:00"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not _EARLIEST <= moment <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text!r} is not between {_EARLIEST:%Y} and now: there is nothing to compare")
    return moment


def a_month_ago() -> datetime:
    """Return the default of `reconcile --since`."""
    return datetime.now(UTC) - timedelta(days=30)
