"""Which store work is done in: a location, or a bucket with the credentials that a block of prefect-aws holds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from pydantic import InstanceOf, SecretStr
from pydantic.json_schema import SkipJsonSchema

from prefect_veogen.blocks import is_block_name
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.campaign.results import read_results_at
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.settings import Settings
from prefect_veogen.store import S3Access, Store, is_valid_key, names_block, open_store
from prefect_veogen.tasks.saved_blocks import BlockKind, is_exposed, saved_blocks

__all__ = ["LocalPath", "StoreParameter", "read_report", "resolve_store", "store_for", "store_name"]

LocalPath = SkipJsonSchema[Path]
"""A `Path` that a flow takes where it takes a string; a deployment's form asks for the string alone."""

StoreParameter = str | LocalPath | SkipJsonSchema[InstanceOf[Block]]
"""Where assets and receipts are: `s3://bucket/prefix`, a path, `s3-bucket/NAME` or an `S3Bucket` of prefect-aws.

A deployment's form asks for text alone.
"""

_SLUG = "s3-bucket"
_BY_NAME = (
    "Nothing was bought. Save an S3 Bucket block of prefect-aws, with its credentials, and give its name: "
    'store="s3-bucket/NAME".'
)
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "minio_root_user")
_ROLE_SECONDS = 3600  # how long AWS lets a role be assumed unless told otherwise


async def resolve_store(
    store: StoreParameter | None, named_by: str = "store=", settings: Settings | None = None
) -> Store:
    """Return the store to work in: the given one, else that of `VEOGEN_STORE`.

    A block's bucket is reached with the block's credentials, and its folder is the prefix. Free: one request to the
    Prefect server per named block, flow run and minute.

    Raises:
        ConfigurationError: it is no store, prefect-aws is missing, there is no such block, it has no bucket, or its
            secret was exposed.
        ServiceUnavailable: the Prefect server did not respond; nothing was bought.
    """
    if store is None:
        store, named_by = (settings or Settings()).store, "VEOGEN_STORE"
    if isinstance(store, Block):
        await _check_given(store, named_by)
        return _open(store, f"the given {type(store).__name__}")
    if names_block(store):
        name = _name_of(str(store), named_by)
        return _open(await saved_blocks().load(await _load_kind(named_by), name, named_by), f"the block {_SLUG}/{name}")
    return open_store(store)


async def store_for(manifest: object, store: StoreParameter | None) -> Store | None:
    """Return the store by whose access a manifest is read, `None` for one in no bucket. Free, as `resolve_store`."""
    return await resolve_store(store) if isinstance(manifest, str) and manifest.startswith("s3://") else None


async def read_report(report: CampaignReport, store: StoreParameter | None = None) -> CampaignReport:
    """Return a campaign's report with its rows, read from the store of the campaign: by default that of `VEOGEN_STORE`.

    For a report from another process whose store is a block: `report.items` knows boto3's own credentials only. Free,
    and may be repeated.

    Raises:
        ConfigurationError: as `resolve_store`; or the table of results is not there (any more), or in another store.
        StoreUnavailable, StoreRefused: it can't be read.
    """
    found = await resolve_store(store)
    items = await on_io(read_results_at(report.results_uri, found))
    return report.with_items(items)


def store_name(store: StoreParameter | None) -> str:
    """Return what a store is called in the names of runs, where no secret may be. Free."""
    return f"a {type(store).__name__}" if isinstance(store, Block) else str(store or "the default store")


# ---------------------------------------------------------------- by name


def _name_of(text: str, named_by: str) -> str:
    kind, _, name = text.partition("/")
    if kind != _SLUG:
        raise ConfigurationError(f"{text!r} ({named_by}) names a block that is not a store", next_step=_BY_NAME)
    if not is_block_name(name):
        raise ConfigurationError(
            f"{text!r} ({named_by}) is not the name of a block: that has only lowercase letters, digits and dashes",
            next_step=f"{_BY_NAME} A folder of that name is ./{text}.",
        )
    return name


async def _load_kind(named_by: str) -> BlockKind[Any]:
    bucket = (await _import_prefect_aws(named_by)).S3Bucket
    return BlockKind(bucket, "prefect block register -m prefect_aws", "S3Bucket(bucket_name=…, credentials=…)")


async def _import_prefect_aws(named_by: str) -> Any:
    try:
        # In a thread: its import takes seconds.
        return await asyncio.to_thread(import_module, "prefect_aws")
    except ImportError as error:
        missing = "" if error.name == "prefect_aws" else f" ({error})"
        raise ConfigurationError(
            f"The store is a block of prefect-aws ({named_by}), which can't be imported here{missing}",
            next_step="Nothing was bought. Install it where this runs (pip install prefect-aws), or give "
            "s3://bucket/prefix and credentials that boto3 finds.",
        ) from None


# ---------------------------------------------------------------- what it holds


def _open(block: Any, name: str) -> Store:
    """Return the store of an `S3Bucket`; equal ones are the same store."""
    credentials = block.credentials
    for field, value in credentials:
        if field in _KEYS and not is_valid_key(_revealed(value)):
            raise ConfigurationError(
                f"{field} of {name} has characters that are not valid in a key, such as a line break",
                next_step="Nothing was bought. Save the block again without them.",
            )
    options = credentials.aws_client_parameters.get_params_override()
    if credentials.region_name is not None:
        options["region_name"] = credentials.region_name
    access = S3Access(name, _digest(credentials), credentials.get_boto3_session, options, _lifetime(credentials))
    return open_store(f"s3://{block.bucket_name}/{block.bucket_folder.strip('/')}", access)


def _revealed(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value or "")


def _digest(credentials: Any) -> str:
    """Return what differs whenever anything about credentials does."""
    content = json.dumps([type(credentials).__name__, credentials.model_dump()], default=_revealed, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _lifetime(credentials: Any) -> float:
    """Return for how long a session is used: half of the time for which a role is assumed."""
    if getattr(credentials, "assume_role_arn", None) is None:
        return math.inf
    return (credentials.assume_role_kwargs.DurationSeconds or _ROLE_SECONDS) / 2


# ---------------------------------------------------------------- by value


async def _check_given(block: Any, named_by: str) -> None:
    aws: Any = sys.modules.get("prefect_aws")
    if aws is None or not isinstance(block, aws.S3Bucket):
        raise ConfigurationError(
            f"A block of type {type(block).__name__} is not a store ({named_by}): it names no bucket",
            next_step=_BY_NAME,
        )
    for secret in [_revealed(value) for _, value in block.credentials if isinstance(value, SecretStr)]:
        if secret and not secret.strip("*"):
            raise ConfigurationError(
                f"The secret of the given {type(block).__name__} consists of asterisks: Prefect masks what is passed "
                "on by value",
                next_step=_BY_NAME,
            )
        if secret and await is_exposed(secret):
            raise ConfigurationError(
                f"The secret of the given {type(block).__name__} is in plain text in this flow run's parameters, for "
                "everyone who sees the Prefect server",
                next_step=f"{_BY_NAME} Make new keys: these are exposed.",
            )
