"""The command `prefect-veogen`: look before you pay, look after what was paid for, and try it all offline."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from prefect_veogen.cli.arguments import parser
from prefect_veogen.errors import VeogenError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

__all__ = ["main"]

_STOPPED = "Stopped. Nothing was bought, and nothing of this command is still running."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 good, 1 a `VeogenError`, 2 wrong usage, 130 stopped by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" and goes on
    words = list(sys.argv[1:] if argv is None else argv)
    stopped = _STOPPED
    try:
        if words[:1] == ["sandbox"]:
            return _sandbox(words[1:])
        options = parser().parse_args(words)
        stopped = options.stopped or _STOPPED
        code = _run(options)
        sys.stdout.flush()
    except VeogenError as error:
        from prefect_veogen.cli.terminal import complain

        complain(error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{stopped}\n")
        return 130
    except BrokenPipeError:
        # Whoever read the output (`… | head`) has seen enough; the interpreter must not try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return code


def _run(options: Namespace) -> int:
    # What a command needs is imported when it is asked for, so that `--help` and a typing error answer at once.
    match options.command:
        case "demo":
            from prefect_veogen.cli.demo import demo

            return demo(options)
        case "models":
            from prefect_veogen.cli.account import models

            return models(options)
        case "balance":
            from prefect_veogen.cli.account import balance

            return balance(options)
        case "plan":
            from prefect_veogen.cli.plan import plan

            return plan(options)
        case "receipts":
            from prefect_veogen.cli.receipts import receipts

            return receipts(options)
        case "sweep":
            from prefect_veogen.cli.receipts import sweep

            return sweep(options)
        case "reconcile":
            from prefect_veogen.cli.receipts import reconcile

            return reconcile(options)
        case _:
            from prefect_veogen.cli.server import setup

            return setup(options)


def _sandbox(words: Sequence[str]) -> int:
    from prefect_veogen.sandbox.__main__ import main as serve

    try:
        return serve(words)
    except ImportError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
