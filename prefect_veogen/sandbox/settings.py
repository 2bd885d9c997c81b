"""How a sandbox behaves, validated when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from prefect_veogen.sandbox.faults import MIN_HUGE_FILE_BYTES

Seconds = float | tuple[float, float]
CreateShape = Literal["older", "newer"]
ParametersEcho = Literal["sent", "with-defaults", "without-inputs"]

DEFAULT_TOKEN = "sandbox-token"  # noqa: S105 - valid for a sandbox only


@dataclass(frozen=True)
class Settings:
    """The options of a sandbox; see `Sandbox` for the meaning of each."""

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
        if self.media_bytes is not None and self.media_bytes < MIN_HUGE_FILE_BYTES:
            raise ValueError(f"media_bytes is at least {MIN_HUGE_FILE_BYTES}, not {self.media_bytes}")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise ValueError(f"requests_per_minute is at least 1, or None for no limit, not {self.requests_per_minute}")
        if not (self.balance_usd.is_finite() and self.balance_usd >= 0):
            raise ValueError(f"balance_usd is 0 or more, not {self.balance_usd}")
        for name, known in (("create_shape", get_args(CreateShape)), ("parameters_echo", get_args(ParametersEcho))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
