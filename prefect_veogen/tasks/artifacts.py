"""What a stored asset leaves in Prefect: an event that automations can react to, and a picture to see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.artifacts import acreate_markdown_artifact

from prefect_veogen.download.thumbnails import thumbnail
from prefect_veogen.models import in_usd
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.tasks.events import emit
from prefect_veogen.tasks.markdown import code, image, literal

if TYPE_CHECKING:
    from prefect_veogen.models import Asset
    from prefect_veogen.session import Session

STORED_EVENT = "veogen.asset.stored"


def emit_stored(asset: Asset) -> None:
    """Emit `veogen.asset.stored`. Free."""
    emit(STORED_EVENT, asset.uri, asset.model_dump(mode="json", exclude={"source_url"}, exclude_none=True))


async def show(session: Session, asset: Asset) -> None:
    """Emit `veogen.asset.stored` and, in a flow run, create an artifact with a small picture. Free."""
    emit_stored(asset)
    try:
        if session.flow_run_id is not None:
            picture = await on_io(thumbnail(session.store, asset))
            key, name = f"veogen-{asset.sha256[:16]}", asset.uri.rpartition("/")[2]
            await acreate_markdown_artifact(_card(asset, picture), key=key, description=literal(name))
    except Exception as error:  # noqa: BLE001 - a courtesy: the asset is stored, whatever the server says
        session.log.debug("The asset could not be shown: %s", error)


def _card(asset: Asset, picture: str | None) -> str:
    shown = f"{image(asset.content_type, picture)}\n\n" if picture else ""
    price = "" if asset.price_usd is None else f" · {in_usd(asset.price_usd)}"
    facts = f"{asset.content_type} · {asset.size:,} bytes{price} · {literal(asset.model or '')}"
    return f"{shown}{code(asset.uri)}\n\n{facts}\n"
