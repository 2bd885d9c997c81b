"""Control routes under `/_sandbox`: what Python does through the Sandbox object, for any HTTP client. No token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from prefect_veogen.sandbox.engine import Engine
from prefect_veogen.sandbox.faults import FAULTS
from prefect_veogen.sandbox.generations import GenerationRecord

PREFIX = "/_sandbox"
_MAX_CARDS = 60


def control_routes(engine: Engine) -> list[Route]:
    """Make the routes that control and show the engine."""
    control = Control(engine)
    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "", control.page),
        ("GET", "/", control.page),
        ("GET", "/preview/{id}", control.preview),
        ("GET", "/faults", control.faults),
        ("POST", "/faults", control.arm),
        ("DELETE", "/faults", control.disarm),
        ("GET", "/bill", control.bill),
        ("GET", "/requests", control.requests),
        ("GET", "/generations", control.generations),
        ("GET", "/clock", control.clock),
        ("POST", "/clock", control.set_clock),
        ("POST", "/reset", control.reset),
    ]
    return [Route(PREFIX + path, _explain_mistakes(handler), methods=[method]) for method, path, handler in routes]


class Control:
    """The handlers of the control routes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def faults(self, request: Request) -> Response:
        """List the armed faults and the table of all."""
        del request
        table = {
            name: {"place": kind.place, "summary": kind.summary, "parameters": dict(kind.parameters)}
            for name, kind in FAULTS.items()
        }
        return _json({"armed": [fault.describe() for fault in self._engine.faults.list_armed()], "known": table})

    async def arm(self, request: Request) -> Response:
        """Arm a fault: `name`, and optionally times, after, model, kind, prompt and the fault's own parameters."""
        given = await _read_object(request)
        if "name" not in given:
            raise ValueError("the name of a fault is missing")
        return _json(self._engine.faults.arm(**given).describe(), 201)

    async def disarm(self, request: Request) -> Response:
        """Disarm all faults."""
        del request
        self._engine.faults.clear()
        return _json({"armed": []})

    async def bill(self, request: Request) -> Response:
        """Show the bill and the balance."""
        del request
        bill = self._engine.bill()
        balance, spent = self._engine.account()
        purchases = [asdict(purchase) for purchase in bill.purchases]
        totals = {"count": len(bill), "total_usd": bill.total_usd, "balance_usd": balance, "spent_usd": spent}
        return _json({**totals, "purchases": purchases})

    async def requests(self, request: Request) -> Response:
        """Show the log of requests; those to the control routes are not in it."""
        del request
        return _json({"requests": [asdict(record) for record in self._engine.log.records()]})

    async def generations(self, request: Request) -> Response:
        """Show all generations as they stand."""
        del request
        return _json({"generations": [asdict(record) for record in self._engine.generations()]})

    async def clock(self, request: Request) -> Response:
        """Show the sandbox time."""
        del request
        clock = self._engine.clock
        elapsed = clock.elapsed()
        return _json({"now": clock.date(elapsed), "elapsed_seconds": elapsed, "speed": clock.speed})

    async def set_clock(self, request: Request) -> Response:
        """Jump forward by `advance_seconds` and/or run at `speed`."""
        given = await _read_object(request)
        unknown = sorted(set(given) - {"advance_seconds", "speed"})
        if unknown or not given:
            raise ValueError(f"the clock takes advance_seconds and speed, not {', '.join(unknown) or 'nothing'}")
        if "speed" in given:
            self._engine.clock.change_speed(_as_number(given["speed"]))
        self._engine.clock.advance(_as_number(given.get("advance_seconds", 0)))
        return await self.clock(request)

    async def reset(self, request: Request) -> Response:
        """Forget generations, bill, faults and requests."""
        self._engine.reset()
        return await self.clock(request)

    async def preview(self, request: Request) -> Response:
        """Show a file on the control page: not a download, so no fault strikes and nothing is logged."""
        generation = self._engine.find(request.path_params["id"])
        if generation is None:
            return Response(status_code=404)
        file = await asyncio.to_thread(self._engine.outputs.draw_preview, generation)
        return Response(b"".join(file.read(0, file.size)), media_type=file.content_type)

    async def page(self, request: Request) -> Response:
        """Show the control page."""
        del request
        return HTMLResponse(_render_page(self._engine))


def _explain_mistakes(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Respond 422 to an invalid argument, with the reason."""

    async def explain(request: Request) -> Response:
        try:
            return await handler(request)
        except (ValueError, TypeError) as error:
            return _json({"error": str(error)}, 422)

    return explain


async def _read_object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise ValueError(f"the body must be JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


def _as_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return value


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, default=_plain), status, media_type="application/json")


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{value!r} has no JSON form")


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1d2433;
  background: #f6f7f9 }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin-top: 2rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
figure { margin: 0; background: #fff; border-radius: .6rem; overflow: hidden; box-shadow: 0 1px 4px #0002 }
figure img, figure video, figure div { display: block; width: 100%; aspect-ratio: 16/9; object-fit: contain;
  background: #10141f }
figure div { display: grid; place-items: center; color: #9aa5bd }
figcaption { padding: .6rem .8rem; font-size: .85rem; overflow-wrap: anywhere }
.tag { border-radius: 1rem; padding: .05rem .5rem; background: #e3e8f2 } .completed { background: #d2f2dc }
.failed { background: #fbd9d9 } .processing { background: #fdf0c8 }
table { border-collapse: collapse; width: 100%; background: #fff; font-size: .85rem }
td, th { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #e6e9ef }
"""

# Reloading only when something changed keeps a clip playing while one watches it.
_SCRIPT = """
let seen = null;
setInterval(async () => {
  try {
    const answer = await (await fetch("/_sandbox/generations")).json();
    const now = answer.generations.map(one => one.id + one.status).join();
    if (seen !== null && seen !== now) location.reload();
    seen = now;
  } catch (gone) {}
}, 1500);
"""


def _render_page(engine: Engine) -> str:
    bill, (balance, _) = engine.bill(), engine.account()
    generations = engine.generations()[::-1]
    cards = "".join(_render_card(record) for record in generations[:_MAX_CARDS]) or "<p>None yet.</p>"
    armed = "".join(
        f"<tr><td>{escape(fault.name)}</td><td>{escape(fault.progress())}</td><td>{escape(fault.kind.summary)}</td></tr>"
        for fault in engine.faults.list_armed()
    )
    clock = engine.clock
    now = clock.date(clock.elapsed()).isoformat(sep=" ", timespec="seconds")
    facts = (
        f"{len(generations)} generations",
        f"bill <b>${bill.total_usd}</b> for {len(bill)} purchases",
        f"balance ${balance}",
        f"sandbox time {now} at speed {clock.speed:g}",
        f"{len(engine.log.records())} requests",
    )
    links = " · ".join(
        f'<a href="{PREFIX}/{name}">{name}</a>' for name in ("generations", "bill", "requests", "faults")
    )
    faults = f"<table>{armed}</table>" if armed else "<p>None armed.</p>"
    return (
        f'<!doctype html><meta charset="utf-8"><title>Veogen sandbox</title><style>{_STYLE}</style>'
        f"<h1>Veogen sandbox</h1><p>{' · '.join(facts)}</p><p>As JSON: {links}</p>"
        f'<h2>Generations</h2><div class="grid">{cards}</div><h2>Faults</h2>{faults}<script>{_SCRIPT}</script>'
    )


def _render_card(record: GenerationRecord) -> str:
    preview = f"{PREFIX}/preview/{record.id}"
    if record.status != "completed":
        picture = f"<div>{record.status}</div>"
    elif record.kind == "image":
        picture = f'<img src="{preview}" alt="" loading="lazy">'
    else:
        picture = f'<video src="{preview}" controls muted loop preload="metadata"></video>'
    error = f"<br>{escape(str(record.error))}" if record.error else ""
    return (
        f'<figure>{picture}<figcaption><span class="tag {record.status}">{record.status}</span> '
        f"{escape(record.model)} · ${record.price_usd}<br>{escape(record.prompt[:160])}{error}</figcaption></figure>"
    )
