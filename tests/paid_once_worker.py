"""What the tests of the promise run in processes of their own, so that they can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

from prefect_veogen import Asset, GenerationRequest
from prefect_veogen.delivery import deliver
from prefect_veogen.errors import VeogenError
from prefect_veogen.iothread import on_io
from prefect_veogen.purchase import buy
from prefect_veogen.session import open_session
from prefect_veogen.waiting import wait

Answer = Asset | VeogenError


@dataclass(frozen=True)
class Order:
    """What a process is to do, and where it is to die."""

    wanted: tuple[GenerationRequest, ...]
    environment: dict[str, str]
    motion: str | None = None
    """With it, the first request's picture is animated; without, all requests are made at once."""
    starts_at: float = 0.0
    dies_before_write: int | None = None
    """The how manyth change to the store's directory the process does not live to make."""
    tolerated: tuple[type[VeogenError], ...] = field(default=())


def work(order: Order, answers: Connection) -> None:
    """Do as ordered and send the assets or errors; a process that is killed sends nothing."""
    os.environ.update(order.environment)
    if order.dies_before_write is not None:
        die_before(order.dies_before_write, order.environment["VEOGEN_STORE"])
    time.sleep(max(0.0, order.starts_at - time.time()))
    answers.send(asyncio.run(made(order)))


async def made(order: Order) -> list[Answer]:
    """Return an asset or an error per purchase."""
    if order.motion is None:
        return await asyncio.gather(*(one(request) for request in order.wanted))
    picture = await one(order.wanted[0])
    if not isinstance(picture, Asset):
        return [picture]
    clip = GenerationRequest(model="veo-3.1-fast", prompt=order.motion, image_urls=[picture])
    return [picture, await one(clip)]


async def one(request: GenerationRequest) -> Answer:
    try:
        return await on_io(bought_and_stored(request))
    except VeogenError as error:
        return error


async def bought_and_stored(request: GenerationRequest) -> Asset:
    session = open_session()
    purchase = await buy(session, request)
    return (await deliver(session, await wait(session, purchase.generation))).asset


def die_before(number: int, root: str) -> None:
    """Kill this process instead of letting it make its `number`th change below a directory; the first is 1."""
    writes = count(1)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if changes(event, arguments, root) and next(writes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audited)


def changes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Tell whether what Python is about to do shows in a directory; waiting for a lock there does not."""
    if event not in ("open", "os.link", "os.rename", "os.remove"):
        return False
    path = str(arguments[0])
    writes = event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    return writes and path.startswith(f"{root}/") and "/.locks/" not in path
