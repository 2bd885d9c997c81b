"""The sandbox as a running server: the API on one port, the media on another, both on 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from prefect_veogen.sandbox.books import Bill
from prefect_veogen.sandbox.engine import Engine
from prefect_veogen.sandbox.faults import Fault
from prefect_veogen.sandbox.generations import GenerationRecord
from prefect_veogen.sandbox.request_log import RequestRecord
from prefect_veogen.sandbox.settings import DEFAULT_TOKEN, CreateShape, ParametersEcho, Seconds, Settings

if TYPE_CHECKING:
    from prefect_veogen.sandbox.uvicorn_server import UvicornServers

HOST = "127.0.0.1"
_START_SECONDS = 30.0
_MAX_PORT = 65535


class Sandbox:
    """A local Veogen Studio: the API over real HTTP, media on a second port, time and failures under your control.

    Use it as a context manager, or call `start` and `stop`. Nothing leaves the machine and nothing costs money.

    Args:
        port: port of the API; 0 takes any free one.
        media_port: port of the media host; 0 takes any free one.
        speed: sandbox seconds per real second; 0 stops the clock, so that only `advance` moves it. `created_at` of a
            generation is the sandbox time or the real time, whichever is later.
        balance_usd: what the account holds at the start.
        requests_per_minute: the rate limit in sandbox time (documented: 120); None switches it off.
        token: the only valid token; any other gets 401.
        tiny_media: pictures of 160 pixels and clips of one second, so that hundreds are cheap.
        seed: decides how long each generation takes.
        image_seconds: how long an image takes in sandbox seconds, or from how many to how many.
        video_seconds: the same for a video.
        create_shape: the response to a purchase: "older" is the whole generation and its price, "newer" four fields
            and no price; both are documented.
        parameters_echo: what `parameters` of a generation shows: the options as sent, with the model's defaults
            filled in, or without input URLs. Which one the real API does is not documented.
        media_bytes: pads every video to exactly that many bytes.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        media_port: int = 0,
        speed: float = 1.0,
        balance_usd: Decimal | int | str = 100,
        requests_per_minute: int | None = 120,
        token: str = DEFAULT_TOKEN,
        tiny_media: bool = False,
        seed: int = 0,
        image_seconds: Seconds = (5.0, 15.0),
        video_seconds: Seconds = (30.0, 120.0),
        create_shape: CreateShape = "older",
        parameters_echo: ParametersEcho = "sent",
        media_bytes: int | None = None,
    ) -> None:
        settings = Settings(
            speed=speed,
            requests_per_minute=requests_per_minute,
            token=token,
            tiny_media=tiny_media,
            seed=seed,
            image_seconds=image_seconds,
            video_seconds=video_seconds,
            create_shape=create_shape,
            parameters_echo=parameters_echo,
            media_bytes=media_bytes,
        )
        self._engine = Engine(replace(settings, balance_usd=Decimal(str(balance_usd))))
        for name, number in (("port", port), ("media_port", media_port)):
            if not 0 <= number <= _MAX_PORT:
                raise ValueError(f"{name} is a number from 0 to {_MAX_PORT}, not {number}")
        self._ports = (port, media_port)
        self._thread: threading.Thread | None = None
        self._servers: UvicornServers | None = None
        self._base_url = self._media_url = ""

    # --- starting and stopping

    def start(self) -> Self:
        """Serve from a background thread; returns once requests are served.

        Raises:
            OSError: a port is taken.
            ImportError: install ``prefect-veogen[sandbox]``.
        """
        if self._thread:
            raise RuntimeError("this sandbox is running already")
        _check_installed()
        from prefect_veogen.sandbox.uvicorn_server import UvicornServers

        api, media = _listen(self._ports)
        self._base_url = f"http://{HOST}:{api.getsockname()[1]}/api/v1"
        self._media_url = f"http://{HOST}:{media.getsockname()[1]}"
        self._engine.outputs.origin = self._media_url
        self._servers = UvicornServers(self._engine, api, media)
        self._thread = threading.Thread(target=self._run, args=(self._servers,), name="veogen-sandbox", daemon=True)
        self._thread.start()
        if not self._servers.started.wait(_START_SECONDS):
            raise RuntimeError(f"the sandbox did not start within {_START_SECONDS:g} seconds")
        return self

    def stop(self) -> None:
        """Close every connection and free both ports. Idempotent."""
        if self._servers and self._thread:
            self._servers.stop()
            self._thread.join()
        self._servers = self._thread = None

    def serve_forever(self) -> None:
        """Serve until `stop` is called elsewhere or a KeyboardInterrupt arrives here."""
        if not self._thread:
            self.start()
        thread = self._thread
        try:
            while thread and thread.is_alive():
                thread.join(0.2)
        finally:
            self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @staticmethod
    def _run(servers: UvicornServers) -> None:
        asyncio.run(servers.run())

    # --- addresses

    @property
    def base_url(self) -> str:
        """The value for VEOGEN_BASE_URL, such as ``http://127.0.0.1:40123/api/v1``."""
        return self._base_url

    @property
    def media_url(self) -> str:
        """The origin of the media host, such as ``http://127.0.0.1:40124``."""
        return self._media_url

    @property
    def control_url(self) -> str:
        """The address of the control routes, and of the control page."""
        return self._base_url.removesuffix("/api/v1") + "/_sandbox"

    @property
    def token(self) -> str:
        """The token this sandbox accepts."""
        return self._engine.settings.token

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables which point a program at this sandbox."""
        # A block named in VEOGEN_CREDENTIALS would take precedence over the token, and lead to the real service.
        return {"VEOGEN_BASE_URL": self.base_url, "VEOGEN_API_TOKEN": self.token, "VEOGEN_CREDENTIALS": ""}

    # --- control

    def fault(
        self,
        name: str,
        *,
        times: int | None = 1,
        after: int = 0,
        model: str | None = None,
        kind: str | None = None,
        prompt: str | None = None,
        **parameters: Any,
    ) -> Fault:
        """Arm a fault: the next ``times`` matching requests fail as `FAULTS` says of ``name``.

        Args:
            name: a name from `FAULTS`.
            times: how many requests; None is all of them.
            after: how many matching requests to leave unharmed first.
            model: only requests about this model.
            kind: only requests about "image" or "video".
            prompt: only requests about a generation whose prompt contains this.
            parameters: the fault's own, such as ``seconds`` of ``slow-answer``.

        Raises:
            ValueError: unknown name, parameter or value; the message names the nearest known one.
        """
        return self._engine.faults.arm(
            name, times=times, after=after, model=model, kind=kind, prompt=prompt, **parameters
        )

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._engine.faults.clear()

    def set_price(self, model: str, price_usd: Decimal | int | str) -> None:
        """Sell a model at another price from now on: its ``price_usd`` in the catalogue.

        Raises:
            ValueError: there is no such model, or it is no price.
        """
        self._engine.set_price(model, Decimal(str(price_usd)))

    def advance(self, seconds: float) -> None:
        """Let that many sandbox seconds pass at once."""
        self._engine.clock.advance(seconds)

    @property
    def speed(self) -> float:
        """Sandbox seconds per real second; can be set while it runs."""
        return self._engine.clock.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._engine.clock.change_speed(speed)

    def reset(self) -> None:
        """Forget generations, bill, faults, requests and the rate limit; the clock runs on."""
        self._engine.reset()

    # --- what happened

    @property
    def now(self) -> datetime:
        """The sandbox time (UTC)."""
        return self._engine.clock.date(self._engine.clock.elapsed())

    @property
    def bill(self) -> Bill:
        """All purchases; ``len(sandbox.bill)`` counts those not refunded."""
        return self._engine.bill()

    @property
    def balance_usd(self) -> Decimal:
        """What the account holds now."""
        return self._engine.account()[0]

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """Every request to the API and to the media host, oldest first; control routes are not counted."""
        return self._engine.log.records()

    @property
    def generations(self) -> tuple[GenerationRecord, ...]:
        """Every generation as it stands now, oldest first."""
        return self._engine.generations()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The armed faults that can still strike, oldest first."""
        return self._engine.faults.list_armed()


def _check_installed() -> None:
    needed = {"starlette": "starlette", "uvicorn": "uvicorn", "av": "av", "PIL": "pillow"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"the sandbox needs {', '.join(missing)}: pip install 'prefect-veogen[sandbox]'")


def _listen(ports: tuple[int, int]) -> tuple[socket.socket, socket.socket]:
    api = _bind(ports[0])
    try:
        return api, _bind(ports[1])
    except OSError:
        api.close()
        raise


def _bind(port: int) -> socket.socket:
    # Naming the protocol lets asyncio switch off Nagle's delay, which costs 40 ms per response.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener
