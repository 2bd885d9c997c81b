"""Settings from the environment and from Prefect's files, read when they are used and never at import."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.masking import masked
from prefect_veogen.models import LabelBudget, label_budgets, nearest, normal_base_url
from prefect_veogen.settings.places import Given, Place, names_of_caps, read_places, seems_a_cap

_YEAR_SECONDS = 366 * 86400
Positive = Annotated[float, Field(gt=0, le=_YEAR_SECONDS)]
# Treated as unset, these would allow purchases without a cap, at the real service, or again with another ledger.
_OFF = ("", "0", "false", "no", "off", "f", "n")
_NEVER_EMPTY = ("budget_usd", "budgets", "base_url", "store")


class Settings(BaseSettings):
    """The settings of the environment, variables prefixed `VEOGEN_`; arguments and blocks override them.

    What no variable sets may stand where Prefect keeps an integration's settings: `PREFECT_INTEGRATIONS_VEOGEN_…`, then
    `[integrations.veogen]` in prefect.toml, then `[tool.prefect.integrations.veogen]` in pyproject.toml.

    Raises:
        ConfigurationError: a value is not valid, a cap's name is misspelt, or a file can't be read; the message names
            it.
    """

    model_config = SettingsConfigDict(
        env_prefix="VEOGEN_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        use_attribute_docstrings=True,  # they are the descriptions in docs/settings.md, too
    )

    api_token: SecretStr | None = None
    """The bearer token (site → Settings → API Tokens)."""
    credentials: str | None = None
    """The name of a saved `VeogenCredentials` block; what that leaves unset comes from the environment."""
    base_url: str = "https://veogen.studio/api/v1"
    """The API's base; some of the vendor's pages show https://api.veogen.studio/api/v1 instead."""
    store: str = "veogen-store"
    """Where assets and receipts live: `s3://bucket/prefix`, `file:///path` or a path; in a deployment an absolute
    one."""
    requests_per_minute: Annotated[int, Field(ge=2, le=1_000_000)] = 120
    """The API's limit (/authentication), for all requests of the process; after `setup`, of all workers together."""
    image_poll_seconds: Positive = 3
    """The poll interval of images (/api-reference/generations/get)."""
    video_poll_seconds: Positive = 5
    """The poll interval of videos (/quickstart)."""
    wait_timeout_seconds: Positive | None = None
    """How long to wait for a generation; unset: 10 minutes for an image, 30 for a video. Then `StillRunning`."""
    request_timeout_seconds: Positive = 60
    """How long to wait for one response of the API."""
    budget_usd: Annotated[Decimal, Field(ge=0, le=1_000_000_000)] | None = None
    """What may be spent per UTC day by all who share the store and set it; unset: no cap."""
    budgets: Annotated[dict[str, LabelBudget], NoDecode] = {}
    """What may be spent on purchases with a label by all who share the store and set it, as JSON:
    `{"project:spring": 20}`, or `{"project:spring": {"usd": 20, "per": "month"}}` (or `"day"`; of UTC)."""
    in_doubt_seconds: float | Literal["never"] = 900
    """How long a purchase whose response was lost may stay in doubt before a proven absence lets the next run buy
    again: within this time the service is assumed to have dropped, or accepted and listed, what was sent to it, so that
    too short a one buys twice. `never`: every doubt needs manual review."""
    allow_private_media: bool | None = None
    """Whether media may come from private addresses; unset: only if the API itself is at one, and never
    from link-local ones."""
    max_asset_bytes: Annotated[int, Field(gt=0, le=5 * 1024**4)] = 20 * 1024**3
    """The largest download accepted."""
    trace_prompts: bool = False
    """Whether the spans of purchases bear the prompt, where the program sends traces anywhere (OpenTelemetry)."""
    requests_limit_name: str = "veogen-requests"
    """The Prefect global concurrency limit that all workers share, if it exists."""

    def __init__(self, **values: object) -> None:
        places = read_places()
        for place in places:
            _check_names(place)
        for name in values:
            if name not in Settings.model_fields and seems_a_cap(name):
                raise _no_cap(f"Settings({name}=…)", lambda field: f"{field}=")
        known = {name: given for name, given in _first_given(places).items() if name not in values}
        found: dict[str, Any] = {**values, **{name: given.value for name, given in known.items()}}
        try:
            super().__init__(**found)
        except ValidationError as error:
            raise ConfigurationError(_explanation(error, known), next_step=_correction(error, known)) from None

    @field_validator("in_doubt_seconds", mode="before")
    @classmethod
    def _is_delay(cls, seconds: Any) -> Any:
        text = str(seconds).strip().lower()
        if text == "never":
            return text
        try:
            is_delay = 0 <= float(text) <= _YEAR_SECONDS
        except ValueError:
            is_delay = False
        if not is_delay:
            raise ValueError(
                'must be a number of seconds, from 0 to a year, or "never", which leaves every doubt to a person'
            )
        return float(text)

    @field_validator("budgets", mode="before")
    @classmethod
    def _is_by_label(cls, budgets: Any) -> dict[str, LabelBudget]:
        return label_budgets(budgets)

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, base_url: str) -> str:
        if not base_url.lower().startswith(("http://", "https://")):
            raise ValueError("must begin with https:// (or http:// for the sandbox)")
        return normal_base_url(base_url)


@cache
def package_version() -> str:
    """Return this package's version; looking it up reads files."""
    return version("prefect-veogen")


def user_agent() -> str:
    """Return the User-Agent of all requests: `prefect-veogen/<version>`."""
    return f"prefect-veogen/{package_version()}"


def _first_given(places: Sequence[Place]) -> dict[str, Given]:
    """Return each setting as the first place that names it gives it.

    An empty one is unset, whatever later places say: so the sandbox keeps out credentials, which would lead to the real
    service.
    """
    known: dict[str, Given] = {}
    for place in reversed(places):
        known |= {name: given for name, given in place.given.items() if name in Settings.model_fields}
    return {name: given for name, given in known.items() if not given.is_empty}


def _check_names(place: Place) -> None:
    """Reject what would not do what it seems to: a misspelt cap is no cap."""
    for name, given in place.given.items():
        if name in _NEVER_EMPTY and given.is_empty:
            raise ConfigurationError(f"{given.shown} is empty", next_step="Give it a value, or unset it.")
        if name in Settings.model_fields:
            continue
        if seems_a_cap(name, given.value):
            raise _no_cap(given.shown, place.name_of)
        hint = _what_replaced(name, given, place.name_of("in_doubt_seconds"))
        near = nearest(name, Settings.model_fields)
        _warn(given.shown, hint or (f"is {place.name_of(near)} meant?" if near else None))


def _no_cap(shown: str, name_of: Callable[[str], str]) -> ConfigurationError:
    return ConfigurationError(
        f"{shown} is not a setting, so it would be no cap",
        next_step=f"Rename it to {names_of_caps(name_of)}, or unset it.",
    )


def _what_replaced(name: str, given: Given, in_doubt: str) -> str | None:
    """Return what to do with a setting of an older version; refuse one which forbids what is the default now."""
    if name == "buy_again_when_unknown":
        if str(given.value).strip().lower() in _OFF:
            raise ConfigurationError(
                f"{given.shown} is not a setting any more, and it was off",
                next_step=f'Unset it, and set {in_doubt} to "never": every doubt is then left to a person.',
            )
        return "unset it: what is proven absent is bought again, unless told otherwise"
    if name == "unknown_grace_seconds":
        return f"unset it, and don't give its value to {in_doubt}, which says when to buy again"
    return None


@cache
def _warn(shown: str, hint: str | None) -> None:
    # Not an error, because it may be another program's: Kubernetes derives VEOGEN_PORT from a service's name.
    text = f"; {hint}" if hint else ""
    logging.getLogger("prefect_veogen").warning("%s is not a setting of prefect-veogen, and ignored%s", shown, text)


def _explanation(error: ValidationError, known: Mapping[str, Given]) -> str:
    lines = []
    for item in error.errors(include_url=False):
        field = str(item["loc"][0])
        name = known[field].shown if field in known else f"VEOGEN_{field.upper()}"
        shown = "(hidden)" if field == "api_token" else reprlib.repr(masked(str(item["input"])))
        lines.append(f"{name}={shown}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _correction(error: ValidationError, known: Mapping[str, Given]) -> str:
    """Return what to do; the messages show values as JSON, which TOML is not."""
    step = "Correct it, or remove it there."
    table = known["budgets"].table if "budgets" in known else ""
    if not table or all(item["loc"][0] != "budgets" for item in error.errors(include_url=False)):
        return step
    month = '"team:web" = {usd = 20, per = "month"}'
    return f'{step} In TOML, caps by label are lines below [{table}.budgets]: "project:spring" = 20, or {month}.'
