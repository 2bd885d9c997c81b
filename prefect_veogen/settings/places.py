"""Where settings are given: our own variables, then those places where Prefect keeps an integration's settings.

Read as Prefect reads them, without its import, which takes seconds. Its profiles are not among them: it knows no
setting of an integration there, and `prefect config set` drops what it doesn't know, such as a cap.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from prefect_veogen.errors import ConfigurationError

_OWN = "VEOGEN_"
_PREFECTS = "PREFECT_INTEGRATIONS_VEOGEN_"
_TABLE = ("integrations", "veogen")


class Given(NamedTuple):
    """A setting as it is given: what it is called there, and its value."""

    shown: str
    value: Any

    @property
    def is_empty(self) -> bool:
        """Whether it is there without a value."""
        return isinstance(self.value, str) and not self.value.strip()


class Place(NamedTuple):
    """One place where settings are given, by their fields' names."""

    given: Mapping[str, Given]
    name_of: Callable[[str], str]
    """What a field is called there."""


def read_places() -> tuple[Place, ...]:
    """Return all places as they are now; what an earlier one says comes before what a later one says.

    Raises:
        ConfigurationError: a file can't be read, and a cap may be in it.
    """
    return (
        _variables(_OWN, os.environ),
        _variables(_PREFECTS, os.environ),
        _variables(_PREFECTS, _read(".env"), " in .env"),
        _table("prefect.toml", _TABLE),
        _table("pyproject.toml", ("tool", "prefect", *_TABLE)),
    )


def _variables(prefix: str, variables: Mapping[str, Any], where: str = "") -> Place:
    length = len(prefix)
    given = {
        variable[length:].lower(): Given(f"{variable}{where}", value or "")
        for variable, value in variables.items()
        if variable[:length].upper() == prefix
    }
    return Place(given, lambda field: f"{prefix}{field.upper()}{where}")


def _table(file: str, keys: tuple[str, ...]) -> Place:
    table: Any = _read(file)
    for key in keys:
        table = table.get(key, {}) if isinstance(table, Mapping) else None
    path = ".".join(keys)
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{path} in {file} is not a table", next_step=f"Write it as [{path}], or remove it.")
    given = {name.lower(): Given(f"{path}.{name} in {file}", value) for name, value in table.items()}
    return Place(given, lambda field: f"{path}.{field} in {file}")


def _read(file: str) -> Mapping[str, Any]:
    """Return what a file of the working directory holds; it is parsed again only when it has changed."""
    try:
        found = Path(file).stat()
    except OSError:
        return {}
    if not stat.S_ISREG(found.st_mode):
        return {}
    return _parsed(file, str(Path(file).absolute()), (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=16)
def _parsed(file: str, path: str, _version: tuple[int, ...]) -> Mapping[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        return _variables_in(text) if file == ".env" else tomllib.loads(text, parse_float=Decimal)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{path} can't be read: {reason}", next_step="Correct it: settings such as a cap may be in it."
        ) from None


def _variables_in(text: str) -> Mapping[str, Any]:
    if _PREFECTS not in text.upper():
        return {}
    from io import StringIO

    from dotenv import dotenv_values  # what Prefect and pydantic-settings read it with

    return dotenv_values(stream=StringIO(text))
