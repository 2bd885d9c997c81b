"""What a delivered asset leaves in Prefect: an event that automations can react to, lineage, and a picture to see."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect.artifacts import acreate_markdown_artifact

from prefect_veogen.download.thumbnails import make_thumbnail
from prefect_veogen.models import in_usd, plain_name
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.tasks.events import emit
from prefect_veogen.tasks.lineage import record_lineage
from prefect_veogen.tasks.markdown import code, image, literal
from prefect_veogen.tasks.runs import shorten

if TYPE_CHECKING:
    from prefect_veogen.models import Asset, Delivery
    from prefect_veogen.session import Session

STORED_EVENT = "veogen.asset.stored"

_MAX_PROMPT_CHARACTERS = 500
_MAX_SECONDS = 30.0


@asynccontextmanager
async def showing(session: Session) -> AsyncIterator[Session]:
    """Give a session whose deliveries are shown in Prefect at the end, even of work that fails half-way. Free."""
    delivered: list[Delivery] = []
    try:
        yield replace(session, delivered=delivered.append)
    finally:
        for delivery in delivered:
            emit(STORED_EVENT, delivery.asset.uri, _payload(delivery))
        if session.flow_run_id is not None:
            async with courtesy(session):
                for delivery in delivered:
                    record_lineage(delivery)
                    await _show(session, delivery)


@asynccontextmanager
async def courtesy(session: Session) -> AsyncIterator[None]:
    """Do what paid work must neither fail nor wait for: it may take half a minute, and raise anything."""
    try:
        async with asyncio.timeout(_MAX_SECONDS):
            yield
    except Exception as error:  # noqa: BLE001 - the assets are stored, whatever the Prefect server says
        session.log.debug("Not shown: %r", error)


async def _show(session: Session, delivery: Delivery) -> None:
    """Create an artifact with a small picture."""
    picture = await on_io(make_thumbnail(session.store, delivery.asset))
    prompt = " ".join((delivery.prompt or "").split())
    key = plain_name(f"{delivery.asset.model or 'asset'} {prompt}")
    await acreate_markdown_artifact(_card(delivery, picture), key=key, description=literal(shorten(prompt)))


def _payload(delivery: Delivery) -> dict[str, Any]:
    """Return what `veogen.asset.stored` says."""
    asset = delivery.asset.model_dump(mode="json", exclude={"source_url"}, exclude_none=True)
    facts: dict[str, Any] = {"prompt": delivery.prompt, "take": delivery.take, "receipt": delivery.receipt}
    facts |= {"labels": dict(delivery.labels) or None, "campaign": delivery.campaign}
    return {**asset, "reused": delivery.reused, **{name: fact for name, fact in facts.items() if fact is not None}}


def _card(delivery: Delivery, picture: str | None) -> str:
    asset = delivery.asset
    shown = f"{image(asset.content_type, picture)}\n\n" if picture else ""
    prompt = delivery.prompt or ""
    cut = f"{prompt[:_MAX_PROMPT_CHARACTERS]}…" if len(prompt) > _MAX_PROMPT_CHARACTERS else prompt
    words = f"{literal(cut)}\n\n" if prompt else ""
    return f"{shown}{words}{' · '.join(_facts(delivery))}\n\n{code(asset.uri)}{service_link(asset)}\n"


def _facts(delivery: Delivery) -> list[str]:
    asset = delivery.asset
    facts = [literal(asset.model)] if asset.model else []
    facts += [f"take {literal(delivery.take)}"] if delivery.take else []
    facts += [_price(delivery)]
    facts += [f"{delivery.duration_seconds} s long"] if delivery.duration_seconds else []
    facts += [f"made in {delivery.made_in_seconds:.0f} s"] if delivery.made_in_seconds else []
    return [*facts, asset.content_type, f"{asset.size:,} bytes"]


def _price(delivery: Delivery) -> str:
    if not delivery.asset.generation_id:
        return "made of clips, free"
    price = in_usd(delivery.asset.price_usd)
    return f"reused: $0.00 (bought before for {price})" if delivery.reused else price


def service_link(asset: Asset) -> str:
    """Return a link to the file at the service, which a browser opens as long as it is kept; empty without one."""
    source = asset.source_url
    if source is None or re.search(r"[\s<>]", source) or not source.startswith(("http://", "https://")):
        return ""
    return f" · [open at the service](<{source}>)"
