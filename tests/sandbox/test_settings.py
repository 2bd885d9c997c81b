"""Invalid options of a sandbox are refused."""

from __future__ import annotations

import pytest

from prefect_veogen.sandbox import Sandbox


@pytest.mark.parametrize("token", ["", " ", "two words", "schlüssel", "line\n"])
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token is ASCII"):
        Sandbox(token=token)


@pytest.mark.parametrize(
    "options",
    [
        {"port": 65536},
        {"media_port": -1},
        {"speed": -1},
        {"speed": float("nan")},
        {"balance_usd": -5},
        {"balance_usd": "nan"},
        {"balance_usd": "inf"},
        {"requests_per_minute": 0},
        {"create_shape": "newest"},
        {"parameters_echo": "all"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sandbox(**options)  # type: ignore[arg-type]
