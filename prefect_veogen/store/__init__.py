"""Where assets and receipts live: a directory or an S3 bucket, behind one interface."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from prefect_veogen.errors import ConfigurationError, masked
from prefect_veogen.store.interface import AlreadyThere, Changed, Document, Found, Stat, Store, Writer
from prefect_veogen.store.local import LocalStore
from prefect_veogen.store.s3 import S3Store

__all__ = [
    "AlreadyThere",
    "Changed",
    "Document",
    "Found",
    "LocalStore",
    "S3Store",
    "Stat",
    "Store",
    "Writer",
    "is_absolute",
    "open_store",
]

_BUCKET = r"[A-Za-z0-9._-]{3,255}"  # what old buckets and other servers may be called, not only new ones of AWS
_WHERE = "Give s3://bucket/prefix, file:///absolute/path or a path (VEOGEN_STORE, store= or --store)."


def open_store(place: str | Path) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///path` or a path; nothing is made or asked yet.

    Raises:
        ConfigurationError: it is none of these.
    """
    if not isinstance(place, str | Path):
        raise ConfigurationError(f"A {type(place).__name__} is no place to store things", next_step=_WHERE)
    url = str(place)
    scheme, separator, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and re.fullmatch(_BUCKET, bucket) and prefix.isprintable():
        # boto3 reads its environment once, when a client is made: another environment is another store. And a forked
        # process must not speak on its parent's connections.
        environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return _s3(bucket, prefix.strip("/"), environment, os.getpid())
    if scheme == "file" and rest.startswith("/") and not {"?", "#"} & {*rest}:
        return _local(_directory(unquote(rest)))
    # A forgotten slash ("s3:/bucket") must not become a folder of that name, where nothing is known to be bought.
    if separator or not url.strip() or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url):
        raise _no_store(url)
    return _local(_directory(url))


def is_absolute(place: str | Path) -> bool:
    """Return whether a place which `open_store` accepts is the same one from every working directory."""
    return "://" in str(place) or Path(place).expanduser().is_absolute()


def _directory(path: str) -> str:
    try:
        root = Path(path).expanduser().resolve()
        root.as_uri()
        is_in_the_way = root.exists() and not root.is_dir()
    except (OSError, RuntimeError, ValueError):  # nobody's home, links in circles, NUL, half characters
        raise _no_store(path) from None
    if is_in_the_way:
        raise ConfigurationError(f"The store {root} is a file, not a directory", next_step=_WHERE)
    return str(root)


def _no_store(url: str) -> ConfigurationError:
    return ConfigurationError(f"{masked(url)!r} is no place to store things", next_step=_WHERE)


@lru_cache(maxsize=16)
def _local(root: str) -> LocalStore:
    return LocalStore(Path(root))


@lru_cache(maxsize=16)
def _s3(bucket: str, prefix: str, environment: tuple[tuple[str, str], ...], pid: int) -> S3Store:  # noqa: ARG001 - cache key
    return S3Store(bucket, prefix)
