"""Workers that buy in processes of their own, so that they can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from prefect_veogen import Asset, GenerationRequest
from prefect_veogen.download.deliver import deliver
from prefect_veogen.errors import VeogenError
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.session import open_session

Outcome = Asset | VeogenError


@dataclass(frozen=True)
class Order:
    """What a process has to do, and where it dies."""

    wanted: tuple[GenerationRequest, ...]
    environment: dict[str, str]
    motion: str | None = None
    """With a motion prompt, the first request's picture is animated; without, all requests run concurrently."""
    starts_at: float = 0.0
    dies_before_change: int | None = None
    """The process dies before this change of the store's directory, counted from 1."""
    lingers: bool = False
    """Whether the process stays alive when everything is done, so that it can still be killed."""


@dataclass(frozen=True)
class Report:
    """What a process reports that was not killed in time."""

    outcomes: list[Outcome]
    changes: int


def work(order: Order, reports: Connection) -> None:
    """Carry out the order and report; a process that is killed reports nothing."""
    os.environ.update(order.environment)
    changes = watch_changes(order.environment["VEOGEN_STORE"], order.dies_before_change)
    time.sleep(max(0.0, order.starts_at - time.time()))
    outcomes = asyncio.run(make_all(order))
    reports.send(Report(outcomes, len(changes)))
    while order.lingers:
        signal.pause()


async def make_all(order: Order) -> list[Outcome]:
    """Return an asset or an error per purchase."""
    if order.motion is None:
        return await asyncio.gather(*(one(request) for request in order.wanted))
    picture = await one(order.wanted[0])
    if not isinstance(picture, Asset):
        return [picture]
    clip = GenerationRequest(model="veo-3.1-fast", prompt=order.motion, image_urls=[picture])
    return [picture, await one(clip)]


async def one(request: GenerationRequest) -> Outcome:
    """Return the asset of one request, or the error."""
    try:
        return await on_io(bought_and_stored(request))
    except VeogenError as error:
        return error


async def bought_and_stored(request: GenerationRequest) -> Asset:
    """Buy, wait and deliver, as the tasks do; on the I/O loop."""
    session = open_session()
    purchase = await buy(session, request)
    return (await deliver(session, await wait(session, purchase.generation))).asset


def watch_changes(root: str, fatal: int | None) -> list[str]:
    """Record every change that Python is about to make below a directory; die instead of making the fatal one."""
    seen: list[str] = []

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        if is_change(event, arguments, root):
            seen.append(event)
            if len(seen) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(record)
    return seen


def is_change(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Return whether an audited event changes what others see in a directory; lock files don't count."""
    if event not in ("open", "os.link", "os.rename", "os.remove"):
        return False
    path = str(arguments[0])
    writes = event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    return writes and path.startswith(f"{root}/") and "/.locks/" not in path
