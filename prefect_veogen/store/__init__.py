"""Where assets and receipts live: a directory or an S3 bucket, behind one interface."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.masking import masked
from prefect_veogen.store.interface import (
    FOLDERS,
    THUMBNAILS,
    AlreadyExists,
    Document,
    ListedObject,
    Stat,
    Store,
    VersionConflict,
    Writer,
    commit_at_end,
)
from prefect_veogen.store.local import LocalStore
from prefect_veogen.store.s3 import PROOF, S3Store
from prefect_veogen.store.s3_client import S3Access, is_valid_key

__all__ = [
    "FOLDERS",
    "PROOF",
    "THUMBNAILS",
    "AlreadyExists",
    "Document",
    "ListedObject",
    "LocalStore",
    "S3Access",
    "S3Store",
    "Stat",
    "Store",
    "VersionConflict",
    "Writer",
    "commit_at_end",
    "is_absolute",
    "is_valid_key",
    "names_block",
    "open_beside",
    "open_store",
]

_BUCKET = r"[A-Za-z0-9._-]{3,255}"  # names of old buckets and of other servers too, not only those AWS allows today
# Types of Prefect's blocks that may be taken for a store; a folder with such a name is ./s3-bucket/name.
_BLOCK = re.compile(
    r"(s3-bucket|aws-credentials|minio-credentials|local-file-system|remote-file-system|smb|github-repository|gcs-bucket|"
    r"azure-blob-storage-(container|credentials))/"
)
_WHERE = (
    "Give s3://bucket/prefix, file:///absolute/path or a path (VEOGEN_STORE, store= or --store); or s3-bucket/NAME, a "
    "saved block of prefect-aws."
)


def open_store(location: str | Path, access: S3Access | None = None) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///path` or a path; nothing is created or requested yet.

    A bucket is reached the way boto3 always is (environment, profile, role) unless by `access`.

    Raises:
        ConfigurationError: it is none of these.
    """
    if not isinstance(location, str | Path):
        raise ConfigurationError(f"A {type(location).__name__} is not a valid store", next_step=_WHERE)
    url = str(location)
    scheme, separator, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and re.fullmatch(_BUCKET, bucket) and prefix.isprintable():
        # boto3 reads its environment once, when a client is made: another environment is another store. And a forked
        # process must not use its parent's connections.
        environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return _s3(bucket, prefix.strip("/"), access, environment, os.getpid())
    if scheme == "file" and rest.startswith("/") and not {"?", "#"} & {*rest}:
        return _local(_directory(unquote(rest)))
    if names_block(location):
        raise ConfigurationError(
            f"{url!r} names a block of Prefect's, which was not loaded",
            next_step="Tasks, flows and the command line load it; elsewhere give s3://bucket/prefix or a path.",
        )
    # A missing slash ("s3:/bucket") must not become a folder of that name, with an empty ledger in it.
    if separator or not url.strip() or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url):
        raise _invalid_store(url)
    return _local(_directory(url))


def open_beside(store: Store | None, location: str | Path) -> Store:
    """Return the store at a location; what lies in the bucket of `store` is reached as that is.

    Raises:
        ConfigurationError: it is no location of a store.
    """
    if isinstance(store, S3Store) and f"{location}/".startswith(f"s3://{store.bucket}/"):
        return open_store(location, store.access)
    return open_store(location)


def names_block(location: object) -> bool:
    """Return whether a location names a saved block of Prefect's, such as `s3-bucket/NAME`."""
    return isinstance(location, str) and _BLOCK.match(location) is not None


def is_absolute(location: str | Path) -> bool:
    """Return whether a location of a store, or the name of a block, is independent of the working directory."""
    return "://" in str(location) or names_block(location) or Path(location).expanduser().is_absolute()


def _directory(path: str) -> str:
    try:
        root = Path(path).expanduser().resolve()
        root.as_uri()
        is_no_directory = root.exists() and not root.is_dir()
    except (OSError, RuntimeError, ValueError):  # unresolvable `~user`, circular links, NUL, lone surrogates
        raise _invalid_store(path) from None
    if is_no_directory:
        raise ConfigurationError(f"The store {root} is a file, not a directory", next_step=_WHERE)
    return str(root)


def _invalid_store(url: str) -> ConfigurationError:
    return ConfigurationError(f"{masked(url)!r} is not a valid store", next_step=_WHERE)


@lru_cache(maxsize=16)
def _local(root: str) -> LocalStore:
    return LocalStore(Path(root))


@lru_cache(maxsize=16)
def _s3(
    bucket: str,
    prefix: str,
    access: S3Access | None,
    environment: tuple[tuple[str, str], ...],  # noqa: ARG001 - part of the cache's key, as is the process
    pid: int,  # noqa: ARG001
) -> S3Store:
    return S3Store(bucket, prefix, access)
