"""The command `prefect-veogen`: plan before a purchase, look after what was bought, and try it all offline."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_veogen.cli.arguments import parser
from prefect_veogen.errors import VeogenError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_STOPPED = "Stopped. Nothing was bought, and no process of this command is still running."

# How writing fails on a full or broken disk behind `> file`; commands report any other file by its name.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Where each command's function of the same name is. A module is imported only when its command runs, so that `--help`
# and a usage error respond at once.
_MODULES = {
    "balance": "account",
    "costs": "costs",
    "demo": "demo",
    "deploy": "deploy",
    "doctor": "doctor",
    "explain": "explain",
    "models": "account",
    "plan": "plan",
    "receipts": "receipts",
    "reconcile": "receipts",
    "setup": "setup",
    "sweep": "receipts",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 good, 1 a `VeogenError`, 2 wrong usage, 130 stopped by Ctrl-C."""
    _prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    stopped = _STOPPED
    try:
        if words[:1] == ["sandbox"]:
            return _sandbox(words[1:])
        options = parser().parse_args(words)
        stopped = options.stopped or _STOPPED
        code = function_of(options.command)(options)
        sys.stdout.flush()
    except VeogenError as error:
        from prefect_veogen.cli.terminal import complain

        complain(error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{stopped}\n")
        return 130
    except BrokenPipeError:
        # The reader (`… | head`) has closed the pipe.
        _drop_output()
        return 0
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _drop_output()
        sys.stderr.write(f"Error: The output can't be written: {error.strerror}\n")
        return 1
    return code


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this (`>&-`)
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" instead of failing


def _drop_output() -> None:
    """Keep the interpreter from trying to flush the rest at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def function_of(command: str) -> Callable[[Namespace], int]:
    """Return the function that runs a command; a command without one is a `KeyError`, never another command."""
    function: Callable[[Namespace], int] = getattr(import_module(f"{__name__}.{_MODULES[command]}"), command)
    return function


def _sandbox(words: Sequence[str]) -> int:
    from prefect_veogen.sandbox.__main__ import main as serve

    try:
        return serve(words)
    except ImportError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
