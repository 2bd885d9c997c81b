"""The commands about a Prefect server: prepare it, deploy to it, check it."""

from __future__ import annotations

from typing import Any

from prefect_veogen.cli.argument_parts import add_command, add_shared


def add_setup(commands: Any) -> None:
    """Add `setup`."""
    command = add_command(
        commands,
        "setup",
        "prepare a Prefect server: the shared rate limit, a work pool, credentials, healing, alerts",
        "prefect-veogen setup\n"
        "prefect-veogen setup --alerts slack-webhook/media  # tell a channel what needs a person\n"
        "prefect-veogen setup --results s3-bucket/media     # who can read that bucket can read results\n"
        "prefect-veogen setup --remove",
        about="Makes what is missing and says line by line what was there: the global concurrency limit that keeps all "
        "workers of one account under the API's rate limit (VEOGEN_REQUESTS_PER_MINUTE), the work pool veogen, the "
        "credentials block default with VEOGEN_API_TOKEN if that is set, and automations which run again what a "
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
    add_shared(command, "--json")


def add_deploy(commands: Any) -> None:
    """Add `deploy`."""
    command = add_command(
        commands,
        "deploy",
        "put the flows of this package on a Prefect server, ready to be run",
        "prefect-veogen deploy\nprefect-veogen deploy by-hand daily --store s3://bucket/prefix --credentials studio",
        about="Deploys the package's flows from where it is installed, so that no repository is needed: workers import "
        "them from the package, which has to be installed there too. Schedules are off until you resume them. Run "
        "again, it keeps the parameters and schedules that were changed on the server. Buys nothing.",
    )
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="deployments, such as by-hand or sweep/hourly (default: all)"
    )
    command.add_argument("--pool", default="veogen", metavar="POOL", help="the work pool (default: %(default)s)")
    command.add_argument(
        "--store",
        metavar="URL",
        help="s3://bucket/prefix, s3-bucket/NAME (a saved block) or an absolute path (default: the workers' "
        "VEOGEN_STORE)",
    )
    command.add_argument(
        "--credentials",
        metavar="NAME",
        help="a block of the server (default: what the workers' environment says, else the block default)",
    )
    add_shared(command, "--json")
    command.set_defaults(stopped="Stopped. Nothing was bought; run it again to deploy the rest.")


def add_doctor(commands: Any) -> None:
    """Add `doctor`."""
    command = add_command(
        commands,
        "doctor",
        "check token, service, store and Prefect server, and say what to do; buys nothing",
        "prefect-veogen doctor\nprefect-veogen doctor --json",
        about="Checks everything a purchase needs from here, and what `prefect-veogen setup` makes on a Prefect "
        "server. No check takes longer than some seconds. Exit code 1 if anything is wrong, or could not be checked.",
    )
    add_shared(command, "--credentials", "--base-url", "--store", "--json")
    command.set_defaults(stopped="Stopped. Nothing was bought or changed.")
