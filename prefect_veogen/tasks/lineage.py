"""Lineage by Prefect's assets: from the prompt to the picture, and from the picture to the clip.

Prefect itself knows which task run used what another one made. All that is added is what this one made, and of which
prompt; the events are sent when the task run ends. A campaign's rows leave none: one task run makes both, and three
more events for each of a thousand rows would delay the end of its run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext

from prefect_veogen.models import ReceiptKey
from prefect_veogen.tasks.runs import shorten

if TYPE_CHECKING:
    from prefect_veogen.models import Delivery

_MAKER = "prefect-veogen"
_MAX_DESCRIPTION_CHARACTERS = 2000

_log = logging.getLogger("prefect_veogen")


def record_lineage(delivery: Delivery) -> None:
    """Let the task run that delivers an asset end as what materialized it, of its prompt and its inputs. Free."""
    context = AssetContext.get()
    if context is None or delivery.campaign is not None:
        return
    try:
        made = Asset(key=delivery.asset.uri, properties=AssetProperties(name=delivery.asset.uri.rpartition("/")[2]))
        context.downstream_assets.add(made)
        context.direct_asset_dependencies.update(_prompt(delivery))
        context.materialized_by = _MAKER
        context.add_asset_metadata(made.key, _metadata(delivery))
        context.update_tracked_assets()
    except ValueError as error:  # a path, say, that Prefect allows no asset to have
        _log.debug("%s has no lineage: %s", delivery.asset.uri, error)


def _prompt(delivery: Delivery) -> list[Asset]:
    if delivery.prompt is None or delivery.receipt is None:
        return []
    key = f"veogen://prompts/{ReceiptKey.parse(delivery.receipt).visible}"
    text = delivery.prompt[:_MAX_DESCRIPTION_CHARACTERS]
    return [Asset(key=key, properties=AssetProperties(name=shorten(delivery.prompt), description=text))]


def _metadata(delivery: Delivery) -> dict[str, str]:
    asset = delivery.asset
    facts = {
        "model": asset.model,
        "take": delivery.take,
        "price_usd": None if asset.price_usd is None else f"{asset.price_usd:f}",
        "sha256": asset.sha256,
        "generation_id": asset.generation_id,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
