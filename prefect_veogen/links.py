"""Links under which the service can read an asset that is used as an input.

The service takes only URLs it can reach (/api-reference/generations/create) and shows no upload. Its own output URL is
reachable for it by construction, so that comes first; how long such a URL lives is not documented, so it is tried, then
asked for afresh. A presigned URL of the stored object comes last: it needs a bucket the service can reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.addresses import check_address
from prefect_veogen.errors import InputUnavailable, MediaRejected, VeogenError
from prefect_veogen.iothread import on_io
from prefect_veogen.models import Asset
from prefect_veogen.store import open_store
from prefect_veogen.transport import AnswerLost, joined_url

if TYPE_CHECKING:
    from prefect_veogen.models import GenerationRequest
    from prefect_veogen.session import Session

# Long enough for a queue at the service; the link ends up in the service's records, so not longer than needed.
PRESIGNED_SECONDS = 6 * 3600
_MAX_REDIRECTS = 5


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
    if asset.source_url and await _opens(session, asset.source_url):
        return asset.source_url
    try:
        generation = await session.client.get_generation(asset.generation_id)
    except VeogenError:
        generation = None
    if generation is not None and generation.output is not None and await _opens(session, generation.output.url):
        return generation.output.url
    link = await _presigned(asset)
    if link is not None and await _opens(session, link, ours=True):
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


async def _opens(session: Session, url: str, *, ours: bool = False) -> bool:
    return await on_io(_answers(session, url, ours=ours))


async def _answers(session: Session, url: str, *, ours: bool) -> bool:
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            if not ours:  # a bucket may well have a private address here and a public one elsewhere
                await check_address(session, url)
            async with session.client.transport.media(url, {"Range": "bytes=0-0"}) as answer:
                if not 300 <= answer.status < 400:
                    return answer.status in (200, 206)
                url = joined_url(url, answer.headers.get("location", ""))
    except (AnswerLost, MediaRejected):
        pass
    return False
