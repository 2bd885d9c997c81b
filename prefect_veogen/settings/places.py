"""Where settings are given: our own variables, then those places where Prefect keeps an integration's settings.

Read as Prefect reads them, without its import, which takes seconds. Its profiles are not among them: it knows no
setting of an integration there, and `prefect config set` drops what it doesn't know, such as a cap.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from prefect_veogen.errors import ConfigurationError

_OWN = "VEOGEN_"
_PREFECTS = "PREFECT_INTEGRATIONS_VEOGEN_"
_TABLE = ("integrations", "veogen")
_TOOLS_TABLE = ("tool", "prefect", *_TABLE)
_TYPO_CUTOFF = 0.8
# A variable of ours, with whatever of Prefect's before it.
_OURS = re.compile(rf"(?P<prefix>(PREFECT\w*_)?{_OWN})(?P<field>\w+)", re.IGNORECASE)
_SAYS_CAP = re.compile(r"budg|spend|usd|(?<![a-z])caps?(?![a-z])")
_CAP_CUTOFF = 0.8
_CAPS = ("budget_usd", "budgets")
# What Kubernetes derives from a service's name.
_OF_A_SERVICE = re.compile(r"_(service_(host|port\w*)|port(_\d+_\w+)?)\Z")


class Given(NamedTuple):
    """A setting as it is given: what it is called there, and its value."""

    shown: str
    value: Any
    table: str = ""
    """The table of TOML that it is in."""

    @property
    def is_empty(self) -> bool:
        """Whether it is there without a value."""
        return isinstance(self.value, str) and not self.value.strip()


class Place(NamedTuple):
    """One place where settings are given, by their fields' names."""

    given: Mapping[str, Given]
    name_of: Callable[[str], str]
    """What a field is called there."""


def seems_a_cap(name: str, value: Any = None) -> bool:
    """Tell whether a setting is meant as a cap, by its name or by one in its table; an unknown one would be none."""
    if isinstance(value, Mapping) and any(seems_a_cap(str(inner).lower(), value[inner]) for inner in value):
        return True
    if _OF_A_SERVICE.search(name):
        return False
    words = re.split(r"[\W_]+", name)
    return bool(_SAYS_CAP.search(name)) or any(
        difflib.get_close_matches(word, ("budget", "budgets"), 1, _CAP_CUTOFF) for word in words
    )


def names_of_caps(name_of: Callable[[str], str]) -> str:
    """Return what caps are called at a place, each with what it means."""
    daily, by_label = map(name_of, _CAPS)
    return f"{daily} (in USD, per UTC day) or {by_label} (by label: for good, per day or per month)"


def read_places() -> tuple[Place, ...]:
    """Return all places as they are now; what an earlier one says comes before what a later one says.

    Raises:
        ConfigurationError: a file can't be read, and a cap may be in it; or a cap is where none is looked for.
    """
    own, prefects = _variables(_OWN, os.environ), _variables(_PREFECTS, os.environ)
    dotenv = _read(".env")
    in_dotenv = _variables(_PREFECTS, dotenv, " in .env")
    _check_prefixes(os.environ, (_OWN, _PREFECTS), own)
    # Where the environment has it as well, something has loaded the file, and the cap holds, or is refused, there.
    loaded = {variable.upper() for variable in os.environ}
    _check_prefixes([name for name in dotenv if name.upper() not in loaded], (_PREFECTS,), in_dotenv, " in .env")
    return (
        own,
        prefects,
        in_dotenv,
        _table("prefect.toml", _TABLE),
        _table("pyproject.toml", _TOOLS_TABLE),
    )


def _variables(prefix: str, variables: Mapping[str, Any], where: str = "") -> Place:
    length = len(prefix)
    given = {
        variable[length:].lower(): Given(f"{variable}{where}", value or "")
        for variable, value in variables.items()
        if variable[:length].upper() == prefix
    }
    return Place(given, lambda field: f"{prefix}{field.upper()}{where}")


def _check_prefixes(variables: Iterable[str], read: tuple[str, ...], place: Place, where: str = "") -> None:
    """Refuse a cap whose name has another prefix than those that are read there."""
    for variable in variables:
        found = _OURS.fullmatch(variable)
        field = "" if found is None or found["prefix"].upper() in read else found["field"].lower()
        if not seems_a_cap(field):
            continue
        meant = place.name_of(field) if field in _CAPS else names_of_caps(place.name_of)
        if where and field in _CAPS:
            meant = f"{meant}, or set {_OWN}{field.upper()} in the environment"
        raise ConfigurationError(
            f"{variable}{where} is not read, so it would be no cap", next_step=f"Rename it to {meant}."
        )


def _table(file: str, keys: tuple[str, ...]) -> Place:
    table: Any = _read(file)
    path = ".".join(keys)
    for found in _tables_of_ours(table):
        if found != keys:
            raise ConfigurationError(
                f"[{'.'.join(found)}] in {file} is not read, and a cap in it would be none",
                next_step=f"Rename it to [{path}], or remove it.",
            )
    for key in keys:
        table = table.get(key, {}) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{path} in {file} is not a table", next_step=f"Write it as [{path}], or remove it.")
    given = {name.lower(): Given(f"{path}.{name} in {file}", value, path) for name, value in table.items()}
    return Place(given, lambda field: f"{path}.{field} in {file}")


def _tables_of_ours(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where settings of ours seem to be, rightly or not.

    Only on the way to the right place: elsewhere our name is that of a package, as in `[tool.uv.sources]`.
    """
    for name, value in table.items():
        path = (*above, name)
        if re.sub("[-_]", "", name.casefold()).removeprefix("prefect") == "veogen":
            yield path
        elif isinstance(value, Mapping) and difflib.get_close_matches(
            name.casefold(), _TOOLS_TABLE[:-1], 1, _TYPO_CUTOFF
        ):
            yield from _tables_of_ours(value, path)


def _read(file: str) -> Mapping[str, Any]:
    """Return what a file of the working directory holds; it is parsed again only when it has changed."""
    try:
        found = Path(file).stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not Path(file).is_symlink():
            return {}
        reason = "it is a link to nothing" if isinstance(error, FileNotFoundError) else error.strerror
        raise _unreadable(f"{file} in the working directory", reason) from None
    if stat.S_ISDIR(found.st_mode) or stat.S_ISCHR(found.st_mode):  # such as a venv, and /dev/null to mask a file
        return {}
    if not stat.S_ISREG(found.st_mode):
        raise _unreadable(f"{file} in the working directory", "it is not a regular file")
    return _parse_file(file, str(Path(file).absolute()), (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))


def _unreadable(shown: str, reason: object) -> ConfigurationError:
    return ConfigurationError(
        f"{shown} can't be read: {reason}", next_step="Correct it: settings such as a cap may be in it."
    )


@lru_cache(maxsize=16)
def _parse_file(file: str, path: str, _version: tuple[int, ...]) -> Mapping[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        return _variables_in(text) if file == ".env" else tomllib.loads(text, parse_float=Decimal)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from None


def _variables_in(text: str) -> Mapping[str, Any]:
    ours = list(_OURS.finditer(text))
    if not any(found["prefix"].upper() == _PREFECTS or seems_a_cap(found["field"].lower()) for found in ours):
        return {}
    from io import StringIO

    from dotenv import dotenv_values  # what Prefect and pydantic-settings read it with

    return dotenv_values(stream=StringIO(text))
