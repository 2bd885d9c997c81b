"""The demo's child process: runs the flow twice and reports on stdout what happens, one JSON document per line.

A process of its own, so that Prefect reads its settings from a clean environment and its local server ends with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import prefect_veogen
from prefect_veogen.errors import VeogenError

FLOW = "image_then_animate"


def flow_file() -> Path:
    """Return where the flow is: inside the package in a wheel, beside it in a checkout."""
    package = Path(str(prefect_veogen.__file__)).parent
    inside = package / "flows" / f"{FLOW}.py"
    return inside if inside.exists() else package.parent / "flows" / f"{FLOW}.py"


def main(image_prompt: str, motion_prompt: str) -> int:
    """Run the flow, then run it again; return 1 if it failed."""
    threading.Thread(target=_exit_with_the_parent, daemon=True).start()
    try:
        asyncio.run(_run_twice(image_prompt, motion_prompt))
    except VeogenError as error:
        _report(error=error.message, next_step=error.next_step)
    except Exception as error:
        _report(error=f"{type(error).__name__}: {error}", next_step="")
        raise
    else:
        return 0
    return 1


async def _run_twice(image_prompt: str, motion_prompt: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flows import load_flow_from_entrypoint

    async with get_client() as client:
        await client.hello()
    _report(ready=True)
    flow: Any = load_flow_from_entrypoint(f"{flow_file()}:{FLOW}", use_placeholder_flow=False)
    logging.getLogger("prefect.task_runs").addHandler(_Reporter(logging.INFO))
    for _ in range(2):
        made = await flow(image_prompt, motion_prompt)
        _report(image=made.image.model_dump(mode="json"), video=made.video.model_dump(mode="json"))


class _Reporter(logging.Handler):
    """Reports what the tasks of this package log; Prefect's own messages stay in its log."""

    def emit(self, record: logging.LogRecord) -> None:
        if "prefect_veogen" in record.pathname:
            _report(log=record.getMessage())


def _report(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _exit_with_the_parent() -> None:
    sys.stdin.read()  # returns when the parent ends, however it ends
    os.killpg(0, signal.SIGKILL)  # Prefect's local server too, which would outlive this process otherwise


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
