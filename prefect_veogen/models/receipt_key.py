"""The ledger's key of a purchase: the only place that knows its format."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

KEY_VERSION = "v1"


class ReceiptKey(NamedTuple):
    """The ledger's key of a purchase, in parts.

    `visible` digests what the service shows of a generation, so that receipts which could be confused when a purchase
    is in doubt share a prefix; `content` digests the whole request; `take` distinguishes its versions.
    """

    visible: str
    content: str
    take: str

    @classmethod
    def parse(cls, text: str) -> ReceiptKey:
        """Return the parts of a key."""
        _version, visible, content, take = text.split("-", 3)
        return cls(visible, content, take)

    def __str__(self) -> str:
        return f"{self.content_key}-{self.take}"

    @property
    def family(self) -> str:
        """The prefix shared by the keys of all purchases that the service's list can't distinguish."""
        return f"{KEY_VERSION}-{self.visible}-"

    @property
    def content_key(self) -> str:
        """The prefix shared by the keys of all takes of a request."""
        return f"{self.family}{self.content}"

    @staticmethod
    def reaches_take(prefix: str) -> bool:
        """Tell whether the beginning of a key goes as far as its take: `…-take-1` also begins `…-take-10`."""
        return len([part for part in prefix.split("-", 3) if part]) > 3

    @staticmethod
    def reservation(key: str, attempt: int) -> str:
        """Return the name under which an attempt of that purchase reserves money in the budgets."""
        return f"{key}#{attempt}"

    @staticmethod
    def of_reservation(name: str) -> str:
        """Return the key of the purchase that reserved money under a name."""
        return name.rpartition("#")[0]


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-ready value, in hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def take_part(take: int | str) -> str:
    """Return the part of a key for a take."""
    text = str(take)
    # Keys are file names too: a take that a case-insensitive or strict file system could confuse is digested.
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", text):
        return f"take-{text}"
    return f"take.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
