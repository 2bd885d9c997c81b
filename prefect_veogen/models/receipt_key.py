"""The ledger's key of a purchase: the one place that knows how it is written."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

KEY_VERSION = "v1"


class ReceiptKey(NamedTuple):
    """The ledger's key of a purchase, in parts; nothing else knows how it is written.

    `visible` covers what the service shows of a generation, so that receipts which could be confused when a purchase
    is in doubt are listed side by side; `content` covers the whole request; `take` tells its versions apart.
    """

    visible: str
    content: str
    take: str

    @classmethod
    def parse(cls, text: str) -> ReceiptKey:
        """Return the parts of a key as it is written."""
        _version, visible, content, take = text.split("-", 3)
        return cls(visible, content, take)

    def __str__(self) -> str:
        return f"{self.content_key}-{self.take}"

    @property
    def family(self) -> str:
        """The beginning which keys of purchases that look the same from outside share."""
        return f"{KEY_VERSION}-{self.visible}-"

    @property
    def content_key(self) -> str:
        """The beginning which the keys of all takes of a request share."""
        return f"{self.family}{self.content}"

    @staticmethod
    def reservation(key: str, attempt: int) -> str:
        """Return what an attempt of the purchase of that key is called in the budgets."""
        return f"{key}#{attempt}"

    @staticmethod
    def of_reservation(name: str) -> str:
        """Return the key of the purchase for which money is reserved under a name."""
        return name.rpartition("#")[0]


def digest(value: Any) -> str:
    """Return what stands for a JSON-ready value in a key."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def take_part(take: int | str) -> str:
    """Return a take as it stands in a key."""
    text = str(take)
    # Keys are file names too: what a case-blind or strict file system could confuse goes in as a digest.
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", text):
        return f"take-{text}"
    return f"take.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
