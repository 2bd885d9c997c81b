"""The command line's commands and options, with an example for each."""

from __future__ import annotations

import argparse
import textwrap
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

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
_DECISION_STOPPED = "Stopped. `prefect-veogen receipts show KEY` shows whether the decision was recorded."


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; its result has `command` and, by command, its options."""
    top = argparse.ArgumentParser(
        prog="prefect-veogen",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=_Formatter,
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
    _setup(commands)
    _doctor(commands)
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
    show.add_argument("key", metavar="KEY", help="its key, or a unique prefix of it")
    adopt = _command(
        actions,
        "adopt",
        "record which generation a purchase in doubt was; the next run uses it",
        "prefect-veogen receipts adopt v1-4be1c2…-take-1 0193…",
    )
    adopt.add_argument("key", metavar="KEY")
    adopt.add_argument("generation_id", metavar="GENERATION_ID")
    adopt.add_argument("--force", action="store_true", help="even if the generation's content differs from the request")
    adopt.set_defaults(stopped=_DECISION_STOPPED)
    release = _command(
        actions,
        "release",
        "record that a purchase in doubt was never made; the next run BUYS",
        "prefect-veogen receipts release v1-4be1c2…-take-1",
        about="COSTS MONEY if it is wrong: the next run buys again. Check the account's generations first.",
    )
    release.add_argument("key", metavar="KEY")
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


def _setup(commands: Any) -> None:
    command = _command(
        commands,
        "setup",
        "prepare a Prefect server: the shared rate limit, a work pool, credentials, healing, alerts",
        "prefect-veogen setup\n"
        "prefect-veogen setup --alerts slack-webhook/media  # tell a channel what needs a person\n"
        "prefect-veogen setup --results s3-bucket/media     # who can read that bucket can read results\n"
        "prefect-veogen setup --remove",
        about="Makes what is missing and says line by line what was there: the global concurrency limit that keeps all "
        "workers of one account under the API's rate limit (VEOGEN_REQUESTS_PER_MINUTE), the work pool veogen, the "
        "credentials block default with VEOGEN_API_TOKEN if that is set, and two automations which run again what a "
        "dead machine left. With --results, a saved file system block becomes the default result storage of the "
        "server's flows, so that callers on other machines can read them. With --alerts, a saved notification block "
        "gets a message when something needs a person, with what to do next. Idempotent.",
    )
    command.add_argument(
        "--requests-per-minute", type=int, metavar="N", help="the account's limit (VEOGEN_REQUESTS_PER_MINUTE, 120)"
    )
    either = command.add_mutually_exclusive_group()
    either.add_argument(
        "--results", metavar="BLOCK", help="a saved block, as Prefect names it: s3-bucket/NAME, local-file-system/NAME"
    )
    command.add_argument(
        "--alerts",
        metavar="BLOCK",
        help="a saved notification block: slack-webhook/NAME, custom-webhook/NAME; kept until --remove",
    )
    either.add_argument(
        "--remove", action="store_true", help="remove what this made, but not a pool in use, and no token"
    )
    _shared(command, "--json")


def _doctor(commands: Any) -> None:
    command = _command(
        commands,
        "doctor",
        "check token, service, store and Prefect server, and say what to do; buys nothing",
        "prefect-veogen doctor\nprefect-veogen doctor --json",
        about="Checks everything a purchase needs from here, and what `prefect-veogen setup` makes on a Prefect "
        "server. No check takes longer than some seconds. Exit code 1 if anything is wrong, or could not be checked.",
    )
    _shared(command, "--credentials", "--base-url", "--store", "--json")
    command.set_defaults(stopped="Stopped. Nothing was bought or changed.")


# ---------------------------------------------------------------- parts


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples as they are written, and each name and its help on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)
        self._action_max_length = 13  # argparse ignores the indent of commands, and would wrap the longest


def _command(commands: Any, name: str, summary: str, example: str, *, about: str = "") -> argparse.ArgumentParser:
    lines = "".join(f"  {line}\n" for line in example.splitlines())
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}." + (f"\n\n{_filled(about)}" if about else ""),
        epilog=f"for example:\n{lines}",
        formatter_class=_Formatter,
    )
    return made


def _filled(text: str) -> str:
    return textwrap.fill(text, width=78)


_SHARED: dict[str, dict[str, Any]] = {
    "--credentials": {"metavar": "NAME", "help": "a block of your Prefect server (VEOGEN_CREDENTIALS)"},
    "--base-url": {"metavar": "URL", "help": "the API (VEOGEN_BASE_URL)"},
    "--store": {"metavar": "URL", "help": "s3://bucket/prefix or a path (VEOGEN_STORE)"},
    "--json": {"action": "store_true", "help": "JSON on stdout, nothing else"},
}


def _shared(command: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup, *names: str) -> None:
    for name in names:
        # SUPPRESS, because an option may come before or after ACTION: the second parser must not reset it.
        command.add_argument(name, default=argparse.SUPPRESS, **_SHARED[name])


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
