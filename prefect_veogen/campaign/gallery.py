"""A campaign's pictures and clips on one page, which opens from a directory and from a bucket alike.

Links are relative, so that they work wherever the page is served beside the assets: from a directory, a public prefix,
a content delivery network. It shows thumbnails, for which the `media` extra is needed: the first rows' are embedded, so
that the page shows something however private the bucket is, the others lie in the store.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from prefect_veogen.campaign.gallery_page import SCRIPT, STYLE
from prefect_veogen.download.thumbnails import make_thumbnail, store_thumbnail
from prefect_veogen.models import Kind, in_usd
from prefect_veogen.process.concurrency import map_bounded

if TYPE_CHECKING:
    from prefect_veogen.campaign.items import CampaignItem
    from prefect_veogen.campaign.report import CampaignReport
    from prefect_veogen.models import Asset
    from prefect_veogen.session import Session
    from prefect_veogen.store import Store

MAX_EMBEDDED = 100
_MAX_CONCURRENT = 16
_MAX_PROMPT_CHARACTERS = 300
_TO_STORE = "../../"  # from campaigns/<name>/


@dataclass(frozen=True, slots=True)
class Tile:
    """One row in the gallery: its outcome and links to thumbnails of its assets, data links in the first rows."""

    item: CampaignItem
    thumbnails: tuple[str | None, ...] = ()

    @property
    def pictures(self) -> list[str]:
        """The thumbnails that can be shown anywhere."""
        return [picture for picture in self.thumbnails if picture and picture.startswith("data:")]


async def make_tiles(session: Session, items: Sequence[CampaignItem]) -> list[Tile]:
    """Return a tile per row with its thumbnails; one that can't be made is left out."""

    async def embed(item: CampaignItem) -> Tile:
        return Tile(item, tuple([await make_thumbnail(session.store, asset) for asset in item.assets]))

    async def link(item: CampaignItem) -> Tile:
        keys = [await store_thumbnail(session.store, asset) for asset in item.assets]
        return Tile(item, tuple(key and _TO_STORE + key for key in keys))

    first = await map_bounded(items[:MAX_EMBEDDED], embed, _MAX_CONCURRENT)
    return [*first, *await map_bounded(items[MAX_EMBEDDED:], link, _MAX_CONCURRENT)]


def page(report: CampaignReport, tiles: Sequence[Tile], store: Store) -> Iterator[str]:
    """Give the gallery as HTML, piece by piece; it loads nothing but the assets beside it."""
    title = html.escape(str(report))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src * data:; media-src *"
    yield (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style><h1>{title}</h1>'
    )
    yield _filters(report, tiles)
    yield "<main>\n"
    for tile in tiles:
        yield _figure(tile, store)
    yield f"</main><script>{SCRIPT}</script></html>\n"


def _filters(report: CampaignReport, tiles: Sequence[Tile]) -> str:
    labels = sorted({label for tile in tiles for label in _labels(tile.item)})
    return (
        "<form>"
        f"{_select('status', 'all rows', [status.value for status in report.counts])}"
        f"{_select('label', 'all labels', labels) if labels else ''}"
        '<input name="text" type="search" placeholder="id or prompt" aria-label="id or prompt">'
        '<output name="shown"></output></form>'
    )


def _select(name: str, everything: str, values: Sequence[str]) -> str:
    options = "".join(f"<option>{html.escape(value)}</option>" for value in values)
    return f'<select name="{name}" aria-label="{name}"><option value="">{everything}</option>{options}</select>'


def _labels(item: CampaignItem) -> list[str]:
    return [f"{name}: {value}" for name, value in item.labels.items()]


def _figure(tile: Tile, store: Store) -> str:
    item = tile.item
    thumbnails = tile.thumbnails or (None,) * len(item.assets)
    prompts = [str(item.fields[name]) for name in ("prompt", "motion_prompt") if item.fields.get(name)]
    name = item.id if item.take == "1" else f"{item.id} (take {item.take})"
    price = f"{in_usd(item.price_usd)}{', bought before' if item.reused else ''}"
    links = " · ".join(
        f'<a href="{_link(asset, store)}">{html.escape(asset.content_type)}</a>' for asset in item.assets
    )
    lines = [f"<b>{html.escape(name)}</b> · {item.status.value} · {price}", *map(_shortened, prompts)]
    lines += [links] if links else []
    lines += [html.escape(", ".join(_labels(item)))] if item.labels else []
    lines += [html.escape(item.error)] if item.error else []
    search = html.escape(" ".join([name, *prompts]).lower())
    shown = "\n".join(_labels(item))
    return (
        f'<figure class="{item.status.value}" data-status="{item.status.value}" data-text="{search}" '
        f'data-labels="{html.escape(shown)}">{_media(item, thumbnails, store)}'
        f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>\n"
    )


def _media(item: CampaignItem, thumbnails: Sequence[str | None], store: Store) -> str:
    """Return the row's last asset: a clip, which plays on hover and click, or a picture."""
    if not item.assets:
        return ""
    link, small = _link(item.assets[-1], store), thumbnails[-1]
    if item.assets[-1].kind is Kind.VIDEO:
        # Without a thumbnail of its own, the picture that it begins with.
        poster = small or (_link(item.assets[0], store) if len(item.assets) > 1 else "")
        return f'<video src="{link}" poster="{poster}" preload="none" muted loop playsinline tabindex="0"></video>'
    return f'<a href="{link}"><img src="{small or link}" alt="" loading="lazy"></a>'


def _link(asset: Asset, store: Store) -> str:
    key = store.key(asset.uri)
    return html.escape(asset.uri if key is None else _TO_STORE + quote(key))


def _shortened(prompt: str) -> str:
    short = prompt if len(prompt) <= _MAX_PROMPT_CHARACTERS else f"{prompt[:_MAX_PROMPT_CHARACTERS]}…"
    return f"<q>{html.escape(short)}</q>"
