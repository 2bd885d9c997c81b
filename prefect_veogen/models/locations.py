"""Where an input of a request may lie, as one text which means the same in another directory, process or year."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from prefect_veogen.models.signed_links import LEFT_OUT

ALLOWED = (
    "give a URL that the service can reach, s3://bucket/key, a local file (a pathlib.Path, file:///path, /path, "
    "./path, ../path or ~/path) or an Asset"
)
_FILE = "file://"
_OBJECT = re.compile(r"s3://([A-Za-z0-9._-]{3,255})/(.*[^/])", re.DOTALL)
_PATH = re.compile(r"(~|\.{1,2})?/(?!/)")  # what begins with // is a link without its scheme


def location_of(text: str) -> str:
    """Return the location that a text names: links as they are, local files as `file://` links with absolute paths.

    Raises:
        ValueError: it names none; the text says what would.
    """
    if text.endswith(LEFT_OUT):
        raise ValueError("lacks its query, which may be a secret and is not written down; give the whole link")
    if _PATH.match(text):
        return location_of_file(Path(text))
    if re.search(r"[,;\s](https?|s3|file)://", text):
        raise ValueError("contains two links; give each by itself, in a cell separated by spaces, without commas")
    if _OBJECT.fullmatch(text):
        return text
    if text.startswith(f"{_FILE}/"):
        if {"?", "#"} & {*text}:
            raise ValueError("contains ? or #; in a file:// link write %3F or %23, or give the path")
        return location_of_file(_path(text))
    _check_url(text)
    return text


def location_of_file(path: Path) -> str:
    """Return the location of a local file, whether it exists or not.

    Raises:
        ValueError: the path can't be made absolute.
    """
    try:
        return path.expanduser().absolute().as_uri()
    except (OSError, RuntimeError) as error:  # the working directory is gone, or there is no home
        raise ValueError(f"can't be made an absolute path: {error}") from None


def is_public(location: str) -> bool:
    """Return whether a location is a URL that is passed on as it is; other locations have to be read first."""
    return not location.startswith(("s3://", _FILE))


def file_at(location: str) -> Path | None:
    """Return the path of a local file's location; `None` for any other."""
    return _path(location) if location.startswith(_FILE) else None


def object_at(location: str) -> tuple[str, str] | None:
    """Return the bucket and the key of an S3 object's location; `None` for any other."""
    found = _OBJECT.fullmatch(location)
    return (found[1], found[2]) if found else None


def _path(location: str) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(location.removeprefix(_FILE))))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        if re.fullmatch(r"https?://\S+", url) and parts.hostname and parts.port != 0:
            return
    except ValueError:  # an invalid address in brackets, or an invalid port
        pass
    raise ValueError(f"is not a valid http:// or https:// URL; {ALLOWED}")
