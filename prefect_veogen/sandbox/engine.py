"""The state of the sandbox over time: generations, faults that decide their fate, and the account. No HTTP in here."""

from __future__ import annotations

import random
import secrets
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from prefect_veogen.sandbox.books import Bill, Books, StatementLine
from prefect_veogen.sandbox.catalogue import Kind, Model, catalogue
from prefect_veogen.sandbox.clock import Clock
from prefect_veogen.sandbox.faults import Fault, FaultBoard
from prefect_veogen.sandbox.generations import Fate, Generation, GenerationRecord, format_date
from prefect_veogen.sandbox.outputs import Outputs
from prefect_veogen.sandbox.rate_limit import RateLimit
from prefect_veogen.sandbox.request_log import RequestLog
from prefect_veogen.sandbox.settings import Settings


class Engine:
    """Sells generations, lets time pass over them and keeps the books. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = catalogue()
        self.clock = Clock(settings.speed)
        self.faults = FaultBoard()
        self.outputs = Outputs(tiny_media=settings.tiny_media, video_bytes=settings.media_bytes)
        self._lock = threading.RLock()
        self._last_number = 0
        self._start_afresh()

    def reset(self) -> None:
        """Forget generations, bill, faults, requests and the rate limit; the clock runs on."""
        with self._lock:
            self.faults.clear()
            self._start_afresh()

    def _start_afresh(self) -> None:
        self.rate_limit = RateLimit(self.settings.requests_per_minute, self.clock)
        self.log = RequestLog()
        self.outputs.clear()
        self._books = Books(self.settings.balance_usd)
        self._generations: dict[str, Generation] = {}
        self._newest_last: dict[str | None, list[Generation]] = {None: [], "image": [], "video": []}

    def now(self) -> datetime:
        """Return the service's time: never before the real now, however slowly the sandbox's clock runs."""
        return max(self.clock.date(self.clock.elapsed()), datetime.now(UTC))

    def accepts_token(self, token: str) -> bool:
        """Return whether the token is the account's."""
        return secrets.compare_digest(token.encode(), self.settings.token.encode())

    # --- buying

    def set_price(self, model: str, price_usd: Decimal) -> None:
        """Sell a model at another price from now on; ValueError if it can't be."""
        if model not in self.models:
            raise ValueError(f"there is no model {model!r}")
        if not (price_usd.is_finite() and price_usd >= 0):
            raise ValueError(f"price_usd is 0 or more, not {price_usd}")
        self.models[model] = replace(self.models[model], price_usd=price_usd)

    def check_balance(self, price_usd: Decimal) -> None:
        """Raise InsufficientBalanceError unless the balance covers the price."""
        with self._lock:
            self._settle_books().check_balance(price_usd)

    def buy(self, request: Mapping[str, Any]) -> Generation:
        """Charge a valid request and start its generation."""
        model = self.models[request["model"]]
        options = {name: value for name, value in request.items() if name not in ("model", "prompt")}
        with self._lock:
            price = model.price(options)
            self.check_balance(price)
            generation = self._start(model, request["prompt"], options, price)
            self._books.charge(generation)
            self._generations[generation.id] = generation
            self._newest_last[None].append(generation)
            self._newest_last[model.kind].append(generation)
            self._decide_fate([generation])
            return generation

    def _start(self, model: Model, prompt: str, options: dict[str, Any], price: Decimal) -> Generation:
        self._last_number += 1
        dice = random.Random(f"{self.settings.seed}:{self._last_number}")
        created = self.clock.elapsed()
        seconds = self._roll_seconds(model.kind, dice)
        return Generation(
            number=self._last_number,
            id=self._new_id(model.kind),
            model=model,
            prompt=prompt,
            options=options,
            price_usd=price,
            created_at=self.now(),
            created=created,
            starts=created + seconds * dice.uniform(0.1, 0.3),
            ends=created + seconds,
            spec=self.outputs.describe(model, prompt, options),
            file=self.outputs.new_path(model.kind),
        )

    def _roll_seconds(self, kind: Kind, dice: random.Random) -> float:
        given = self.settings.image_seconds if kind == "image" else self.settings.video_seconds
        return dice.uniform(*given) if isinstance(given, tuple) else given

    def _new_id(self, kind: Kind) -> str:
        # Always from the system's randomness, whatever the seed: two sandboxes never issue the same id.
        identity = uuid.uuid4()
        if self.settings.create_shape == "older":
            return str(identity)
        return f"{'img' if kind == 'image' else 'gen'}_{identity.hex}"

    def _decide_fate(self, generations: Sequence[Generation]) -> None:
        now = self.clock.elapsed()
        running = {
            generation.id: generation
            for generation in generations
            if generation.fate == "completed" and now < generation.ends
        }
        fates: tuple[tuple[str, Fate], ...] = (("failed", "failed"), ("stuck", "stuck"))
        for name, fate in fates:
            for generation in list(running.values()):
                struck = self.faults.strike_subjects(name, [generation.subject], once_each=True)
                if struck:
                    generation.fate, generation.reason = fate, struck[0].parameters.get("reason")
                    del running[generation.id]

    # --- polling

    def poll(self, generation_id: str) -> Generation | None:
        """Find a generation by id; an armed fault may decide its fate."""
        with self._lock:
            generation = self._generations.get(generation_id)
            if generation:
                self._decide_fate([generation])
            return generation

    def page(self, kind: Kind | None, per_page: int, page: int) -> tuple[list[Generation], int]:
        """Return one page of generations, newest first, and how many there are; faults may decide their fate."""
        with self._lock:
            every = self._newest_last[kind]
            newest = len(every) - (page - 1) * per_page
            shown = every[max(0, newest - per_page) : max(0, newest)][::-1]
            self._decide_fate(shown)
            return shown, len(every)

    def document(self, generation: Generation) -> dict[str, Any]:
        """Shape a generation as documented at /api-reference/generations/get."""
        with self._lock:
            status = generation.status(self.clock.elapsed())
            ended = status in ("completed", "failed")
            return {
                "id": generation.id,
                "status": status,
                "model": generation.model.slug,
                "type": generation.model.kind,
                "prompt": generation.prompt,
                "parameters": self._echo(generation),
                "output": self.outputs.show(generation) if status == "completed" else None,
                "error": generation.reason if status == "failed" else None,
                "created_at": format_date(generation.created_at),
                "completed_at": format_date(generation.completed_at) if ended else None,
            }

    def _echo(self, generation: Generation) -> dict[str, Any]:
        # Whether defaults and input URLs are echoed is not documented, so it can be chosen.
        echo = self.settings.parameters_echo
        if echo == "with-defaults":
            return {**generation.model.defaults(), **generation.options}
        if echo == "without-inputs":
            return {name: value for name, value in generation.options.items() if not name.endswith("_urls")}
        return dict(generation.options)

    def strike_shown(self, name: str, generations: Sequence[Generation]) -> tuple[Fault, frozenset[str]] | None:
        """Use up a fault that changes how these generations are shown; return it and the ids it changes."""
        return self.faults.strike_subjects(name, [generation.subject for generation in generations])

    # --- the account

    def account(self) -> tuple[Decimal, Decimal]:
        """Return the balance and what was spent, in USD."""
        with self._lock:
            books = self._settle_books()
            return books.balance_usd, books.spent_usd

    def statement(self, model: str | None, kind: str | None) -> list[StatementLine]:
        """List the final charges, newest first."""
        with self._lock:
            return self._settle_books().statement(model, kind)

    def bill(self) -> Bill:
        """Return all purchases, oldest first."""
        with self._lock:
            return self._settle_books().bill()

    def _settle_books(self) -> Books:
        self._books.settle(self.clock.elapsed())
        return self._books

    # --- inspection

    def find(self, generation_id: str) -> Generation | None:
        """Find a generation without using up any fault."""
        with self._lock:
            return self._generations.get(generation_id)

    def generations(self) -> tuple[GenerationRecord, ...]:
        """List snapshots of all generations, oldest first; no fault is used up."""
        with self._lock:
            return tuple(self._snapshot(generation) for generation in self._newest_last[None])

    def _snapshot(self, generation: Generation) -> GenerationRecord:
        status = generation.status(self.clock.elapsed())
        return GenerationRecord(
            id=generation.id,
            number=generation.number,
            model=generation.model.slug,
            kind=generation.model.kind,
            prompt=generation.prompt,
            parameters=dict(generation.options),
            status=status,
            price_usd=generation.price_usd,
            created_at=generation.created_at,
            completed_at=generation.completed_at if status in ("completed", "failed") else None,
            error=generation.reason if status == "failed" else None,
            output_url=self.outputs.show(generation)["url"] if status == "completed" else None,
        )
