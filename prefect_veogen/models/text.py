"""Texts: validated, normalised, formatted, and stripped of secrets."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from decimal import Decimal

MAX_DIGITS = 18
_MAX_NAME_CHARACTERS = 80

HALF_A_CHARACTER = "contains half a character (a lone surrogate), which can't be sent"


def with_plain_line_ends(text: str) -> str:
    """Return a text with LF for every CRLF and CR."""
    return re.sub("\r\n?", "\n", text)


def text_problem(text: str) -> str | None:
    """Return why a text can't be sent; `None` if it can."""
    if re.search("[\ud800-\udfff]", text):
        return HALF_A_CHARACTER
    if control := re.search(r"[^\t\n\r -~\xa0-\U0010ffff]", text):
        return f"contains the control character {control[0]!r}; remove it"
    return None


def nearest(text: str, known: Iterable[str]) -> str | None:
    """Return which of the known words a text most resembles, `None` if it resembles none."""
    return next(iter(difflib.get_close_matches(text, known, n=1)), None)


def in_usd(amount: Decimal | None) -> str:
    """Return an amount as text: all its digits, but at least cents."""
    if amount is None:
        return "unknown"
    whole, _, cents = f"{abs(amount).normalize():f}".partition(".")
    return f"{'-' if amount < 0 else ''}${whole}.{cents:0<2}"


def normal_base_url(base_url: str) -> str:
    """Return the base URL in the one form that keys and requests use."""
    scheme, separator, rest = base_url.strip().rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    scheme, host = scheme.lower(), host.lower()
    host = host.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))
    return f"{scheme}{separator}{host}{slash}{path}"


def without_secrets(url: str) -> str:
    """Return a link without the parts that may be secret: query, fragment, user and password."""
    address = url.partition("?")[0].partition("#")[0]
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def plain_name(name: str) -> str:
    """Return a name as artifacts and file systems want it; what differs in more than punctuation stays so."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if name.isascii() and plain and len(plain) <= _MAX_NAME_CHARACTERS:
        return plain
    return f"{plain[:_MAX_NAME_CHARACTERS]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".strip("-")
