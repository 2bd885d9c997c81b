"""Where a manifest is, and what form it has: a path or a link becomes bytes and the name of their form."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prefect_veogen.api.http import fetch_file
from prefect_veogen.errors import ConfigurationError, StoreUnavailable
from prefect_veogen.models import without_secrets
from prefect_veogen.store import Store, open_beside

ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_CONTENT_TYPES = {
    "text/csv": "csv",
    "application/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/json": "json",
    "application/x-ndjson": "jsonl",
    "application/ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/x-jsonlines": "jsonl",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.file": "arrow",
    "application/vnd.apache.arrow.stream": "arrow",
}
_COMPRESSED = (".gz", ".zip", ".zst", ".bz2", ".xz", ".7z")
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".gsheet")
_PUBLISH = (
    "Nothing was bought. Give a link to the file itself. Of a spreadsheet: publish it as CSV (Google Sheets: File > "
    "Share > Publish to web > Comma-separated values) and give that link."
)


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest's bytes and their form: csv, tsv, json, jsonl, yaml, parquet or arrow."""

    body: bytes
    form: str


async def load(source: str, store: Store | None = None) -> Source:
    """Return the manifest at a path or a link: http(s), s3 (in the bucket of `store` as that is reached) or file.

    Its ending says its form; for an http(s) link without one, the response does.

    Raises:
        ConfigurationError: there is none, it can't be read, or its form is not known.
    """
    if not source.strip():
        raise ConfigurationError("The manifest is an empty text", next_step="Give the path or the link of a table.")
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if scheme == "file":
        _check_file_link(source)
    # An S3 key may hold any character; in other links the query is not part of the name.
    name = source if scheme in ("", "s3") else without_secrets(source)
    is_link = scheme in ("http", "https")
    form = _form_of(name, name)
    if is_link:
        return await _download(source, name, form)
    if form is None:
        if scheme == "" and await asyncio.to_thread(_is_directory, name):
            raise _directory(name)
        raise _unknown(name, "has an unknown file extension")
    return Source(await _read(source, scheme, store), form)


def _form_of(file_name: str, name: str) -> str | None:
    ending = Path(file_name).suffix.lower()
    if ending in _WORKBOOKS:
        raise ConfigurationError(
            f"The manifest {name} is a workbook, which isn't read",
            next_step="Save the sheet as CSV (Excel: File > Save As > CSV UTF-8 (Comma delimited); Google Sheets: "
            "File > Download > Comma-separated values), and give that file, whose name ends in .csv.",
        )
    if ending in _COMPRESSED:
        within = Path(file_name).stem
        is_known = Path(within).suffix.lower() in ENDINGS
        raise ConfigurationError(
            f"The manifest {name} is compressed, and isn't read so",
            next_step=f"Decompress it, and give that file, such as {within if is_known else 'rows.csv'}.",
        )
    return ENDINGS.get(ending)


def _unknown(name: str, problem: str) -> ConfigurationError:
    endings = ", ".join(ENDINGS)
    return ConfigurationError(
        f"The manifest {name} {problem}", next_step=f"Give it a name that ends in {endings}, such as rows.csv."
    )


def _directory(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"The manifest {name} is a directory",
        next_step="Give the path of a file in it, or from Python a DataFrame of them all: "
        f"polars.scan_parquet({name!r}) has the columns of Hive's partitions, too.",
    )


def _is_directory(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def _check_file_link(source: str) -> None:
    """Refuse `file://rows.csv`: what stands there is a machine, and the path would be empty."""
    if (machine := source[len("file://") :].partition("/")[0]) not in ("", "localhost"):
        raise ConfigurationError(
            f"{source} can't be read: a path begins with a third slash, and {machine} would be a machine",
            next_step="Give the path without file://, or file:/// with an absolute one.",
        )


# ---------------------------------------------------------------- links


async def _download(source: str, name: str, form: str | None) -> Source:
    response = await fetch_file(source)
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    start = response.body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower()
    if start.startswith((b"<!doctype html", b"<html")) or (form is None and content_type == "text/html"):
        raise ConfigurationError(
            f"{name} can't be read: it is an HTML page, such as that of a sign-in or a preview", next_step=_PUBLISH
        )
    form = form or _form_of(_file_name(response.headers), name) or _CONTENT_TYPES.get(content_type)
    if form is None:
        said = f"Content-Type {content_type!r}" if content_type else "no Content-Type"
        raise _unknown(name, f"has an unknown file extension, and {said} says not what it is either")
    return Source(response.body, form)


def _file_name(headers: Mapping[str, str]) -> str:
    """Return the file name that a response suggests."""
    message = Message()
    message["Content-Disposition"] = headers.get("content-disposition", "").replace("\n", " ").replace("\r", " ")
    return message.get_filename() or ""


# ---------------------------------------------------------------- files and objects


async def _read(source: str, scheme: str, store: Store | None) -> bytes:
    match scheme:
        case "s3":
            body = await _read_object(source, store)
        case "file":
            body = await asyncio.to_thread(_read_file, source, unquote(urlsplit(source).path))
        case "":
            body = await asyncio.to_thread(_read_file, source, source)
        case _:
            raise ConfigurationError(
                f"{without_secrets(source)} is not a supported link",
                next_step="Give a path or a link: http(s)://, s3:// or file://.",
            )
    if body is None:
        raise ConfigurationError(f"There is no manifest at {source}", next_step="Check its path.")
    return body


async def _read_object(source: str, store: Store | None) -> bytes | None:
    bucket, _, key = source.partition("://")[2].partition("/")
    try:
        document = await open_beside(store, f"s3://{bucket}").read(key)
    except StoreUnavailable as error:
        raise ConfigurationError(f"The manifest {source} can't be read: {error.message}") from None
    return document.body if document else None


def _read_file(source: str, path: str) -> bytes | None:
    try:
        return Path(path).expanduser().read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise _directory(source) from None
    except (OSError, ValueError, RuntimeError) as error:  # an invalid file name, an unresolvable `~user`
        raise ConfigurationError(
            f"The manifest {source} can't be read: {getattr(error, 'strerror', error)}",
            next_step="Check its path, and who may read it.",
        ) from None
