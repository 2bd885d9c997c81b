"""What is known of an asset beside its bytes: its name in the store, and the sidecar that says where it comes from."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prefect_veogen.models import Asset, without_secrets
from prefect_veogen.settings import package_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_veogen.download.transfer import Transfer
    from prefect_veogen.ledger.receipt import Receipt
    from prefect_veogen.models import Generation


def asset_stem(generation: Generation, receipt: Receipt | None) -> str:
    """Return a readable name, without its ending, that no other purchase has."""
    if receipt is None:
        return f"{_plain(generation.model or 'unknown')}/{quote(generation.id, safe='')}"
    visible, content, take = receipt.receipt_key
    words = _plain(receipt.request.prompt)[:40].strip("-")
    name = "-".join(part for part in (words, visible, content[:8], take) if part)
    return f"{_plain(receipt.request.model)}/{name}"


def asset_key(stem: str, extension: str) -> str:
    """Return where in the store an asset lies; its sidecar is at the same key with `.json` appended."""
    return f"assets/{stem}{extension}"


def describe_asset(generation: Generation, receipt: Receipt | None, transfer: Transfer, uri: str, url: str) -> Asset:
    """Return the asset that was transferred from `url` to `uri`."""
    return Asset(
        uri=uri,
        sha256=transfer.sha256,
        size=transfer.size,
        content_type=transfer.content_type,
        generation_id=generation.id,
        price_usd=receipt.price_usd if receipt else generation.price_usd,
        model=receipt.request.model if receipt else generation.model,
        source_url=without_secrets(url),
    )


def sidecar(
    generation: Generation, receipt: Receipt | None, transfer: Transfer, asset: Asset, carried: Mapping[str, Any]
) -> bytes:
    """Return the asset's provenance as JSON: what was asked for, bought, generated and served, and what it carries."""
    document = _provenance(generation, receipt, asset) | {
        "content_type_claimed": transfer.content_type_claimed,
        "bytes_behind_end": transfer.bytes_behind_end,
        "content_credentials": transfer.content_credentials,
    }
    if carried:
        document["carried"] = dict(carried)
    return json.dumps(document, indent=1, ensure_ascii=False, default=str).encode()


def _provenance(generation: Generation, receipt: Receipt | None, asset: Asset) -> dict[str, Any]:
    generated = generation.model_dump(
        mode="json", include={"id", "model", "type", "prompt", "parameters", "created_at", "completed_at"}
    )
    generated["parameters"] = _without_secrets(generated["parameters"])  # links to inputs may be signed
    bought: dict[str, Any] = {}
    if receipt is not None:
        shown = {"request", "take", "links", "api", "quote_usd", "sent_at"}
        bought = receipt.model_dump(mode="json", include=shown) | {
            "request": receipt.request.model_dump(mode="json", exclude_none=True)
        }
        bought |= {"receipt": receipt.key, "labels": receipt.labels}
        if receipt.campaign is not None:
            bought["campaign"] = receipt.campaign
    return {
        "format": 1,
        "asset": asset.model_dump(mode="json", exclude={"price_usd"}),
        "price_usd": None if asset.price_usd is None else str(asset.price_usd),
        **bought,
        "generation": generated,
        **stamp(),
    }


def stamp() -> dict[str, str]:
    """Return what every sidecar ends with: when it was written, and by which version."""
    return {"stored_at": datetime.now(UTC).isoformat(), "made_with": f"prefect-veogen {package_version()}"}


def _plain(text: str) -> str:
    """Return text as part of a file name: lower-case ASCII letters, digits, dots and dashes."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", ascii_only).strip("-.") or "x"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return without_secrets(value) if isinstance(value, str) and "://" in value else value
