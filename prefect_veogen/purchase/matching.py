"""Whether a generation that the service lists can be what a receipt asked for: values only, no I/O."""

from __future__ import annotations

import unicodedata
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from prefect_veogen.models import without_secrets

if TYPE_CHECKING:
    from prefect_veogen.ledger.receipt import Receipt
    from prefect_veogen.models import Generation


def looks_like(receipt: Receipt, generation: Generation) -> bool:
    """Tell whether a receipt could have paid for a generation: model, prompt and every option the service echoes."""
    return not differences(receipt, generation)


def differences(receipt: Receipt, generation: Generation) -> list[str]:
    """Return the fields in which a generation is not what a receipt asked for; options need not be echoed."""
    request = receipt.request
    found = [] if generation.model == request.model else ["model"]
    if _lines(generation.prompt or "") != _lines(request.prompt):
        found.append("prompt")
    for name, asked in request.options.items():
        echoed = generation.parameters.get(name)
        if echoed not in (None, []) and _contradicts(echoed, asked, receipt.links.get(name)):
            found.append(name)
    return sorted(found)


def could_be(receipt: Receipt, generation: Generation) -> bool:
    """Tell whether a generation can't be ruled out: its model and its prompt, however spaced, are equal or missing."""
    request = receipt.request
    prompt = _normalised(generation.prompt or "")
    return generation.model in (None, request.model) and prompt in ("", _normalised(request.prompt))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _contradicts(echoed: Any, asked: Any, links: tuple[str, ...] | None) -> bool:
    if links is None:
        return _plainly(echoed) != _plainly(asked)
    # One of the documentation's snippets shows the links as objects: an unreadable echo proves nothing.
    is_told = isinstance(echoed, list) and all(isinstance(url, str) for url in echoed)
    return is_told and tuple(map(without_secrets, echoed)) != links


def _plainly(value: Any) -> str:
    """Return an option as it reads however a service writes it: 8, 8.0 and "8" are the same, and so are true and 1."""
    text = str(value).strip()
    text = {"true": "1", "false": "0"}.get(text.lower(), text)
    try:
        return f"{Decimal(text).normalize():f}"
    except InvalidOperation:
        return text
