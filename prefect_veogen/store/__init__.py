"""Where assets and receipts live: a directory or an S3 bucket, behind one interface."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.store.bucket import S3Store
from prefect_veogen.store.directory import LocalStore
from prefect_veogen.store.interface import AlreadyThere, Changed, Document, Found, Stat, Store, Writer

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
    "open_store",
]


def open_store(url: str) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///path` or a path.

    Raises:
        ConfigurationError: it is none of these.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _local(str(Path(url).expanduser().resolve()))
    if scheme == "file":
        return _local(str(Path(unquote(urlsplit(url).path)).resolve()))
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ConfigurationError(
            f"VEOGEN_STORE={url!r} is no place to store things",
            next_step="Give s3://bucket/prefix, file:///path or a path.",
        )
    # boto3 reads its environment once, when a client is made: another environment is another store. And a forked
    # process must not speak on its parent's connections.
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _s3(bucket, prefix.strip("/"), environment, os.getpid())


@lru_cache(maxsize=16)
def _local(root: str) -> LocalStore:
    return LocalStore(Path(root))


@lru_cache(maxsize=16)
def _s3(bucket: str, prefix: str, environment: tuple[tuple[str, str], ...], pid: int) -> S3Store:  # noqa: ARG001 - cache key
    return S3Store(bucket, prefix)
