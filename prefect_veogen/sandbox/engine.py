"""The state of the sandbox: generations over time, the bill, the rate limit and the log. No HTTP in here."""

from __future__ import annotations

import heapq
import math
import random
import re
import secrets
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from prefect_veogen.sandbox.catalogue import Kind, Model, catalogue
from prefect_veogen.sandbox.clock import Clock
from prefect_veogen.sandbox.faults import SMALLEST_HUGE_FILE, Fault, FaultBoard, Subject
from prefect_veogen.sandbox.media import MediaFile, MediaSpec, Studio, clip_pace, pixel_size

Seconds = float | tuple[float, float]
Fate = Literal["completed", "failed", "stuck"]
CreateShape = Literal["older", "newer"]
ParametersEcho = Literal["sent", "with-defaults", "without-inputs"]
Origin = Literal["api", "media"]

DEFAULT_TOKEN = "sandbox-token"  # noqa: S105 - opens nothing but a sandbox
RATE_WINDOW_SECONDS = 60.0
LOG_LIMIT = 200_000
_BACKDROP_DEPTH = 3


class InsufficientBalanceError(Exception):
    """The purchase costs more than the balance holds; nothing was bought."""

    def __init__(self, required: Decimal, balance: Decimal) -> None:
        super().__init__(f"required {required} USD, balance {balance} USD")
        self.required = required
        self.balance = balance


@dataclass(frozen=True)
class Purchase:
    """One charge: made when the generation was, refunded when it failed."""

    id: str
    model: str
    prompt: str
    price_usd: Decimal
    at: datetime
    refunded: bool


@dataclass(frozen=True)
class Bill:
    """All purchases so far; its length counts those not refunded."""

    purchases: tuple[Purchase, ...]

    @property
    def total_usd(self) -> Decimal:
        """Sum the purchases not refunded, in USD."""
        return sum((purchase.price_usd for purchase in self), Decimal("0.00"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Purchase]:
        return (purchase for purchase in self.purchases if not purchase.refunded)


@dataclass(frozen=True)
class RequestRecord:
    """One request as it came and was answered; ``status`` is None when no answer was sent at all."""

    origin: Origin
    method: str
    path: str
    query: str
    status: int | None
    at: datetime
    sandbox_at: datetime
    had_authorization: bool
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class GenerationRecord:
    """A generation as it stands now."""

    id: str
    number: int
    model: str
    kind: Kind
    prompt: str
    parameters: Mapping[str, Any]
    status: str
    price_usd: Decimal
    created_at: datetime
    completed_at: datetime | None
    error: Any
    output_url: str | None


@dataclass(frozen=True)
class StatementLine:
    """A charge that stuck: its generation has completed."""

    number: int
    model: Model
    amount_usd: Decimal
    at: datetime


@dataclass(eq=False)
class Generation:
    """One paid run inside the sandbox; times are sandbox seconds on the engine's clock."""

    number: int
    id: str
    model: Model
    prompt: str
    options: dict[str, Any]
    price_usd: Decimal
    created_at: datetime
    created: float
    starts: float
    ends: float
    spec: MediaSpec
    file: MediaPath
    fate: Fate = "completed"
    reason: Any = None
    refunded: bool = False

    @property
    def subject(self) -> Subject:
        return Subject(self.id, self.model.slug, self.model.kind, self.prompt)

    @property
    def completed_at(self) -> datetime:
        return self.created_at + timedelta(seconds=self.ends - self.created)

    def status(self, now: float) -> str:
        if now < self.starts:
            return "pending"
        return "processing" if now < self.ends or self.fate == "stuck" else self.fate


@dataclass(eq=False)
class MediaPath:
    """An address on the media host, and what has happened to the file behind it."""

    path: str
    generation: Generation | None = None
    expired: bool = False
    requests: int = 0
    variant: int = 0
    size_bytes: int | None = None


@dataclass(frozen=True)
class Settings:
    """How a sandbox behaves; see `Sandbox` for the meaning of each."""

    speed: float = 1.0
    balance_usd: Decimal = Decimal(100)
    requests_per_minute: int | None = 120
    token: str = DEFAULT_TOKEN
    tiny_media: bool = False
    seed: int = 0
    image_seconds: Seconds = (5.0, 15.0)  # documented at /api-reference/generations/get
    video_seconds: Seconds = (30.0, 120.0)  # documented at /api-reference/generations/get
    create_shape: CreateShape = "older"
    parameters_echo: ParametersEcho = "sent"
    media_bytes: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[!-~]+", self.token):
            raise ValueError(f"token is ASCII without spaces, and at least one character, not {self.token!r}")
        if self.media_bytes is not None and self.media_bytes < SMALLEST_HUGE_FILE:
            raise ValueError(f"media_bytes is at least {SMALLEST_HUGE_FILE}, not {self.media_bytes}")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise ValueError(f"requests_per_minute is at least 1, or None for no limit, not {self.requests_per_minute}")
        if not (self.balance_usd.is_finite() and self.balance_usd >= 0):
            raise ValueError(f"balance_usd is 0 or more, not {self.balance_usd}")
        for name, known in (("create_shape", get_args(CreateShape)), ("parameters_echo", get_args(ParametersEcho))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")


class Engine:
    """Sells generations, lets time pass over them and keeps the books. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = catalogue()
        self.clock = Clock(settings.speed)
        self.faults = FaultBoard()
        self.media_origin = "http://127.0.0.1"
        self._studio = Studio()
        self._lock = threading.RLock()
        self._numbers = 0
        self._forget_everything()

    def reset(self) -> None:
        """Forget generations, bill, faults, requests and the rate limit; the clock runs on."""
        with self._lock:
            self.faults.clear()
            self._forget_everything()

    def _forget_everything(self) -> None:
        self._generations: dict[str, Generation] = {}
        self._newest_last: dict[str | None, list[Generation]] = {None: [], "image": [], "video": []}
        self._paths: dict[str, MediaPath] = {}
        self._outcomes: list[tuple[float, int, Generation]] = []
        self._statement: list[StatementLine] = []
        self._balance = self.settings.balance_usd
        self._spent = Decimal("0.00")
        self._admitted: deque[float] = deque()
        self._log: deque[RequestRecord] = deque(maxlen=LOG_LIMIT)

    def now(self) -> datetime:
        """Tell the time at the service: never before the real now, however slowly the sandbox's time runs."""
        return max(self.clock.date(self.clock.elapsed()), datetime.now(UTC))

    # --- who may come in

    def knows_token(self, token: str) -> bool:
        """Tell whether the token opens the account."""
        return secrets.compare_digest(token.encode(), self.settings.token.encode())

    def admit(self) -> int | None:
        """Count a request against the rate limit; None lets it in, a number is the real seconds to wait.

        The limit is documented at /authentication; that it is a sliding window over the whole account, and that
        refused requests do not count, are inventions.
        """
        limit = self.settings.requests_per_minute
        if limit is None:
            return None
        with self._lock:
            now = self.clock.elapsed()
            while self._admitted and self._admitted[0] <= now - RATE_WINDOW_SECONDS:
                self._admitted.popleft()
            if len(self._admitted) < limit:
                self._admitted.append(now)
                return None
            wait = self._admitted[0] + RATE_WINDOW_SECONDS - now
            return max(1, math.ceil(self.clock.real_seconds(wait)))

    # --- buying

    def check_balance(self, price_usd: Decimal) -> None:
        """Raise InsufficientBalanceError unless the balance covers the price."""
        with self._lock:
            self._settle()
            if self._balance < price_usd:
                raise InsufficientBalanceError(price_usd, self._balance)

    def buy(self, request: Mapping[str, Any]) -> Generation:
        """Charge a valid request and start its generation."""
        model = self.models[request["model"]]
        options = {name: value for name, value in request.items() if name not in ("model", "prompt")}
        with self._lock:
            price = model.price(options)
            self.check_balance(price)
            generation = self._started(model, request["prompt"], options, price)
            self._balance -= price
            self._spent += price
            self._generations[generation.id] = generation
            self._newest_last[None].append(generation)
            self._newest_last[model.kind].append(generation)
            heapq.heappush(self._outcomes, (generation.ends, generation.number, generation))
            self._decide_fate([generation])
            return generation

    def _started(self, model: Model, prompt: str, options: dict[str, Any], price: Decimal) -> Generation:
        self._numbers += 1
        dice = random.Random(f"{self.settings.seed}:{self._numbers}")
        created = self.clock.elapsed()
        seconds = self._run_seconds(model.kind, dice)
        return Generation(
            number=self._numbers,
            id=self._new_id(model.kind),
            model=model,
            prompt=prompt,
            options=options,
            price_usd=price,
            created_at=self.now(),
            created=created,
            starts=created + seconds * dice.uniform(0.1, 0.3),
            ends=created + seconds,
            spec=self._spec(model, prompt, options),
            file=self._new_path(model.kind),
        )

    def _run_seconds(self, kind: Kind, dice: random.Random) -> float:
        given = self.settings.image_seconds if kind == "image" else self.settings.video_seconds
        return dice.uniform(*given) if isinstance(given, tuple) else given

    def _new_id(self, kind: Kind) -> str:
        # Always from the system's randomness, whatever the seed: two sandboxes never hand out the same id.
        identity = uuid.uuid4()
        if self.settings.create_shape == "older":
            return str(identity)
        return f"{'img' if kind == 'image' else 'gen'}_{identity.hex}"

    def _new_path(self, kind: Kind) -> MediaPath:
        folder, ending = ("generations", "png") if kind == "image" else ("videos", "mp4")
        path = MediaPath(f"/storage/{folder}/{secrets.token_hex(12)}.{ending}")
        path.size_bytes = self.settings.media_bytes if kind == "video" else None
        return path

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

    def _settle(self) -> None:
        """Book what has been decided by now: failures are refunded, completions reach the statement."""
        now = self.clock.elapsed()
        while self._outcomes and self._outcomes[0][0] <= now:
            _, _, generation = heapq.heappop(self._outcomes)
            if generation.fate == "failed":
                generation.refunded = True
                self._balance += generation.price_usd
                self._spent -= generation.price_usd
            elif generation.fate == "completed":
                number = len(self._statement) + 1
                line = StatementLine(number, generation.model, generation.price_usd, generation.completed_at)
                self._statement.append(line)

    # --- looking

    def look(self, generation_id: str) -> Generation | None:
        """Find a generation by id."""
        with self._lock:
            generation = self._generations.get(generation_id)
            if generation:
                self._decide_fate([generation])
            return generation

    def page(self, kind: Kind | None, per_page: int, page: int) -> tuple[list[Generation], int]:
        """Give one page of generations, newest first, and how many there are."""
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
                "output": self._output(generation) if status == "completed" else None,
                "error": generation.reason if status == "failed" else None,
                "created_at": iso(generation.created_at),
                "completed_at": iso(generation.completed_at) if ended else None,
            }

    def _echo(self, generation: Generation) -> dict[str, Any]:
        # Whether defaults and input URLs are echoed is not documented, so it can be chosen.
        echo = self.settings.parameters_echo
        if echo == "with-defaults":
            return {**generation.model.defaults(), **generation.options}
        if echo == "without-inputs":
            return {name: value for name, value in generation.options.items() if not name.endswith("_urls")}
        return dict(generation.options)

    def _output(self, generation: Generation) -> dict[str, Any]:
        url = self.media_origin + self._living_path(generation).path
        output = {"url": url, "content_type": generation.spec.content_type}
        if generation.model.kind == "video":
            output["download_url"] = f"{url}?download=1"
        return output

    def _living_path(self, generation: Generation) -> MediaPath:
        if generation.file.expired:
            old = generation.file
            generation.file = self._new_path(generation.model.kind)
            generation.file.variant, generation.file.size_bytes = old.variant, old.size_bytes
        generation.file.generation = generation
        self._paths[generation.file.path] = generation.file
        return generation.file

    # --- the account

    def account(self) -> tuple[Decimal, Decimal]:
        """Give the balance and what was spent, in USD."""
        with self._lock:
            self._settle()
            return self._balance, self._spent

    def statement(self, model: str | None, kind: str | None) -> list[StatementLine]:
        """List the charges that stuck, newest first."""
        with self._lock:
            self._settle()
            lines = reversed(self._statement)
            return [line for line in lines if model in (None, line.model.slug) and kind in (None, line.model.kind)]

    def bill(self) -> Bill:
        """Give all purchases, oldest first."""
        with self._lock:
            self._settle()
            return Bill(tuple(self._purchase(generation) for generation in self._newest_last[None]))

    def _purchase(self, generation: Generation) -> Purchase:
        return Purchase(
            id=generation.id,
            model=generation.model.slug,
            prompt=generation.prompt,
            price_usd=generation.price_usd,
            at=generation.created_at,
            refunded=generation.refunded,
        )

    # --- media

    def media_at(self, path: str) -> MediaPath | None:
        """Find what is behind a path of the media host; None unless it has been shown as an output."""
        with self._lock:
            return self._paths.get(path)

    def media_file(self, media: MediaPath) -> MediaFile:
        """Draw the file behind a path. Slow the first time: keep it off the event loop."""
        generation = media.generation
        if generation is None:
            raise LookupError(f"{media.path} was never shown as an output")
        spec = _varied(generation.spec, media.variant)
        return self._studio.padded(spec, media.size_bytes) if media.size_bytes else self._studio.file(spec)

    def wrong_file(self, media: MediaPath) -> MediaFile:
        """Draw a file of the other kind: a picture for a clip, a clip for a picture."""
        width, height = pixel_size("image", {}, tiny=True)
        seconds, rate = clip_pace(1, height, tiny=True)
        other: Kind = "image" if media.generation and media.generation.model.kind == "video" else "video"
        spec = MediaSpec(other, width, height, "not what you ordered", seconds=seconds, frames_per_second=rate)
        return self._studio.file(spec)

    def preview(self, generation: Generation) -> MediaFile:
        """Draw the file of a generation for people to look at."""
        return self._studio.file(generation.spec)

    def _spec(self, model: Model, prompt: str, options: Mapping[str, Any]) -> MediaSpec:
        every = {**model.defaults(), **options}
        tiny = self.settings.tiny_media
        width, height = pixel_size(model.kind, every, tiny=tiny)
        pace = clip_pace(model.seconds(options), min(width, height), tiny=tiny)
        seconds, rate = pace if model.kind == "video" else (0, 0)
        facts = [model.slug, every.get("resolution"), every.get("aspect_ratio"), f"{seconds} s" if seconds else None]
        return MediaSpec(
            kind=model.kind,
            width=width,
            height=height,
            prompt=prompt,
            caption=" · ".join(fact for fact in facts if fact),
            seconds=seconds,
            frames_per_second=rate,
            backdrop=self._backdrop(options.get("image_urls") or []),
        )

    def _backdrop(self, image_urls: Sequence[str]) -> MediaSpec | str | None:
        """Recognise one of our own pictures; any other URL only lends its text to the colours and is never fetched."""
        if not image_urls:
            return None
        url = image_urls[0].split("?")[0]
        media = self._paths.get(url.removeprefix(self.media_origin)) if url.startswith(self.media_origin) else None
        if media is None or media.generation is None or _depth(media.generation.spec) >= _BACKDROP_DEPTH:
            return url
        return media.generation.spec

    # --- the log

    def record(self, record: RequestRecord) -> None:
        with self._lock:
            self._log.append(record)

    def requests(self) -> tuple[RequestRecord, ...]:
        """List the requests so far, oldest first (the last 200,000)."""
        with self._lock:
            return tuple(self._log)

    def generations(self) -> tuple[GenerationRecord, ...]:
        """List the generations as they stand, oldest first."""
        with self._lock:
            return tuple(self._record_of(generation) for generation in self._newest_last[None])

    def find(self, generation_id: str) -> Generation | None:
        """Find a generation without touching any fault."""
        with self._lock:
            return self._generations.get(generation_id)

    def _record_of(self, generation: Generation) -> GenerationRecord:
        status = generation.status(self.clock.elapsed())
        output = self._output(generation) if status == "completed" else None
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
            output_url=output["url"] if output else None,
        )

    def strike_shown(self, name: str, generations: Sequence[Generation]) -> tuple[Fault, frozenset[str]] | None:
        """Use up a fault that changes how these generations are shown; say which ones it changes."""
        return self.faults.strike_subjects(name, [generation.subject for generation in generations])


def iso(moment: datetime) -> str:
    """Write a date as documented at /api-reference/generations/get: whole seconds, `+00:00`."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _varied(spec: MediaSpec, variant: int) -> MediaSpec:
    return replace(spec, variant=variant) if variant else spec


def _depth(spec: MediaSpec) -> int:
    depth, below = 1, spec.backdrop
    while isinstance(below, MediaSpec):
        depth, below = depth + 1, below.backdrop
    return depth
