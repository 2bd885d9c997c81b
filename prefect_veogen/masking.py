"""How values are shown in messages: without the secrets of links, and cut where they are large."""

from __future__ import annotations

import re
import reprlib
from typing import Any

# What is wrong with a value may be its size, so it is cut before it is formatted.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def masked(text: str) -> str:
    """Return a text with "…" for the user names, passwords and queries of URLs in it."""
    return re.sub(r"(?<=//).+(?=@)|(?<=[?#])[^\s'\"`]+", "…", text, flags=re.DOTALL)


def with_masked_links(text: str) -> str:
    """Return a text with `masked` applied to the links in it, and to nothing else."""
    return re.sub(r"https?://[^\s'\"`<>]+", lambda link: masked(link[0]), text, flags=re.IGNORECASE)


def value_with_masked_links(value: Any, levels: int = _SHORT.maxlevel) -> Any:
    """Return a value with the links in its texts masked, in those of lists and dicts too, as deep as they are shown."""
    if isinstance(value, str):
        return with_masked_links(value)
    if type(value) in (list, tuple) and levels:
        return type(value)(value_with_masked_links(item, levels - 1) for item in value)
    if type(value) is dict and levels:
        return {name: value_with_masked_links(item, levels - 1) for name, item in value.items()}
    return value


def shortened(value: Any) -> str:
    """Return a value as text of at most some 80 characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else f"{value[:60]!r}… ({len(value)} characters)"
    try:
        text = _SHORT.repr(value)
    except Exception:  # noqa: BLE001 - what is wrong with a request may be that it can't be shown
        text = f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= 80 else f"{text[:60]}…"
