"""What the command line's commands are put together from: a parser with an example, and the options many have."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples as they are written, and each name and its help on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)
        self._action_max_length = 13  # argparse ignores the indent of commands, and would wrap the longest


def add_command(commands: Any, name: str, summary: str, example: str, *, about: str = "") -> argparse.ArgumentParser:
    """Add a command whose help has a summary, an example and, where that isn't enough, a text; return its parser."""
    lines = "".join(f"  {line}\n" for line in example.splitlines())
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}." + (f"\n\n{_filled(about)}" if about else ""),
        epilog=f"for example:\n{lines}",
        formatter_class=Formatter,
    )
    return made


def _filled(text: str) -> str:
    return textwrap.fill(text, width=78)


_SHARED: dict[str, dict[str, Any]] = {
    "--credentials": {"metavar": "NAME", "help": "a block of your Prefect server (VEOGEN_CREDENTIALS)"},
    "--base-url": {"metavar": "URL", "help": "the API (VEOGEN_BASE_URL)"},
    "--store": {
        "metavar": "URL",
        "help": "s3://bucket/prefix, s3-bucket/NAME (a saved block) or a path (VEOGEN_STORE)",
    },
    "--json": {"action": "store_true", "help": "JSON on stdout, nothing else"},
}


def add_shared(command: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup, *names: str) -> None:
    """Add options that many commands have."""
    for name in names:
        # SUPPRESS, because an option may come before or after ACTION: the second parser must not reset it.
        command.add_argument(name, default=argparse.SUPPRESS, **_SHARED[name])
