"""A campaign's pictures on one page.

The page embeds thumbnails of the pictures and of the clips' first frames, so that it can be opened anywhere, however
private the store is. They need the `media` extra; without it the page links to the files instead.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_veogen.download.thumbnails import thumbnail
from prefect_veogen.errors import VeogenError
from prefect_veogen.models import in_usd
from prefect_veogen.process.concurrency import map_bounded

if TYPE_CHECKING:
    from prefect_veogen.campaign.items import CampaignItem
    from prefect_veogen.campaign.report import CampaignReport
    from prefect_veogen.models import Asset
    from prefect_veogen.session import Session

MAX_TILES = 100
_MAX_CONCURRENT = 4
_STYLE = """
body { font: 14px system-ui, sans-serif; margin: 24px; background: #f6f6f4; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 16px }
figure { margin: 0; padding: 8px; background: #fff; border-radius: 8px; box-shadow: 0 1px 3px #0002 }
img { width: 100%; border-radius: 4px; display: block; margin-bottom: 6px }
figcaption { overflow-wrap: anywhere } .failed, .blocked, .unknown { background: #fff1ee }
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """One row on the sheet: its outcome and thumbnails of its assets, as data links."""

    item: CampaignItem
    pictures: tuple[str, ...]


async def make_tiles(session: Session, items: Sequence[CampaignItem]) -> list[Tile]:
    """Return tiles for the first rows; a thumbnail that can't be made is left out."""

    async def tile(item: CampaignItem) -> Tile:
        pictures = [await _picture(session, asset) for asset in item.assets]
        return Tile(item, tuple(picture for picture in pictures if picture))

    return await map_bounded(items[:MAX_TILES], tile, _MAX_CONCURRENT)


def page(report: CampaignReport, tiles: Sequence[Tile]) -> str:
    """Return the sheet as one self-contained HTML page."""
    figures = "\n".join(_figure(tile) for tile in tiles)
    left_out = report.rows - len(tiles)
    more = f"<p>… and {left_out} more rows.</p>" if left_out else ""
    title = html.escape(str(report))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><main>\n{figures}\n</main>{more}</html>\n"
    )


def _figure(tile: Tile) -> str:
    item = tile.item
    pictures = "".join(f'<img src="{picture}" alt="">' for picture in tile.pictures)
    links = " · ".join(
        f'<a href="{html.escape(asset.uri)}">{html.escape(asset.content_type)}</a>' for asset in item.assets
    )
    error = f"<br>{html.escape(item.error)}" if item.error else ""
    caption = f"<b>{html.escape(item.id)}</b> · {item.status.value} · {in_usd(item.price_usd)}<br>{links}{error}"
    return f'<figure class="{item.status.value}">{pictures}<figcaption>{caption}</figcaption></figure>'


async def _picture(session: Session, asset: Asset) -> str | None:
    try:
        return await thumbnail(session.store, asset)
    except VeogenError:
        return None  # all is made and paid for: a failing store must not fail the sheet
