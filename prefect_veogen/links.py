"""Links under which the service can read an asset that is used as an input.

The service takes only URLs it can reach (/api-reference/generations/create) and shows no upload. Its own output URL is
reachable for it by construction, so that comes first; how long such a URL lives is not documented, so it is tried, then
asked for afresh. A presigned URL of the stored object comes last: it needs a bucket the service can reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.addresses import open_media
from prefect_veogen.errors import InputUnavailable, MediaRejected, VeogenError
from prefect_veogen.iothread import on_io
from prefect_veogen.models import Asset
from prefect_veogen.store import open_store
from prefect_veogen.transport import AnswerLost

if TYPE_CHECKING:
    from prefect_veogen.models import GenerationRequest
    from prefect_veogen.session import Session
    from prefect_veogen.transport import MediaAnswer

# Long enough for a queue at the service; the link ends up in the service's records, so not longer than needed.
PRESIGNED_SECONDS = 6 * 3600


async def offered_links(session: Session, request: GenerationRequest) -> dict[str, list[str]]:
    """Return the request's URL fields with every asset replaced by a link to it; costs nothing.

    Raises:
        InputUnavailable: no link to an asset works.
    """
    fields = {name: value for name, value in request.set_fields().items() if isinstance(value, tuple)}
    return {
        name: [await link_to(session, item) if isinstance(item, Asset) else item for item in items]
        for name, items in fields.items()
    }


async def link_to(session: Session, asset: Asset) -> str:
    """Return a link to an asset that works now."""
    if asset.source_url and await _opens(session, asset, asset.source_url):
        return asset.source_url
    try:
        generation = await session.client.get_generation(asset.generation_id)
    except VeogenError:
        generation = None
    if generation is not None and generation.output is not None and await _opens(session, asset, generation.output.url):
        return generation.output.url
    link = await _presigned(asset)
    if link is not None and await _opens(session, asset, link, ours=True):
        return link
    raise InputUnavailable(
        f"The asset {asset.uri} is needed as an input, but the service no longer serves generation "
        f"{asset.generation_id}, and the store gives no link to it",
        next_step="Use a bucket as VEOGEN_STORE (its objects can be presigned), or put the file where the service can "
        "read it and give that URL.",
    )


async def _presigned(asset: Asset) -> str | None:
    folder, _, name = asset.uri.rpartition("/")
    try:
        return await open_store(folder).link(name, PRESIGNED_SECONDS)
    except VeogenError:
        return None


async def _opens(session: Session, asset: Asset, url: str, *, ours: bool = False) -> bool:
    return await on_io(_shows(session, asset, url, ours=ours))


async def _shows(session: Session, asset: Asset, url: str, *, ours: bool) -> bool:
    try:
        async with open_media(session, url, {"Range": "bytes=0-0"}, ours=ours) as answer:
            return _is_of(asset, answer)
    except (AnswerLost, MediaRejected):
        return False


def _is_of(asset: Asset, answer: MediaAnswer) -> bool:
    """Tell whether an answer can be the asset: a page which says that a link has expired answers with 200 as well."""
    match answer.status:
        case 206:
            total = answer.headers.get("content-range", "").rpartition("/")[2]
        case 200:
            total = answer.headers.get("content-length", "")
        case _:
            return False
    if total.isdigit():
        return int(total) == asset.size
    return answer.headers.get("content-type", "").partition("/")[0] == asset.content_type.partition("/")[0]
