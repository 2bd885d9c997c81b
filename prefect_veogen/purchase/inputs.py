"""Links under which the service can read an asset that is used as an input.

The service takes only URLs it can reach (/api-reference/generations/create) and shows no upload. Its own output URL is
reachable for it by construction, so that comes first; how long such a URL lives is not documented, so it is tried, then
asked for afresh. A presigned URL of the stored object comes last: it needs a bucket the service can reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.api.http import ResponseLost
from prefect_veogen.download.content_encoding import content_codings
from prefect_veogen.download.url_guard import open_media, output_link
from prefect_veogen.errors import InputUnavailable, ServiceUnavailable, TryAgainLater, VeogenError
from prefect_veogen.models import Asset
from prefect_veogen.store import open_store

if TYPE_CHECKING:
    from prefect_veogen.api.http import MediaResponse
    from prefect_veogen.models import GenerationRequest
    from prefect_veogen.session import Session

# Long enough for a queue at the service; the link ends up in the service's records, so not longer than needed.
PRESIGNED_SECONDS = 6 * 3600


async def offered_links(session: Session, request: GenerationRequest) -> dict[str, list[str]]:
    """Return the request's URL fields with every asset replaced by a link to it; costs nothing.

    Raises:
        InputUnavailable: no link to an asset works.
        ServiceUnavailable: one that doesn't work now may do so in a moment.
    """
    fields = {name: value for name, value in request.set_fields().items() if isinstance(value, tuple)}
    return {
        name: [await link_to(session, item) if isinstance(item, Asset) else item for item in items]
        for name, items in fields.items()
    }


async def link_to(session: Session, asset: Asset) -> str:
    """Return a link to an asset that works now.

    Raises:
        InputUnavailable: none works.
        ServiceUnavailable: one that doesn't work now may do so in a moment.
    """
    transient = None
    for offered in (_known, _fresh, _presigned):
        try:
            link = await offered(session, asset)
            if link is not None and await _shows(session, asset, link, ours=offered is _presigned):
                return link
        except TryAgainLater as later:
            transient = later
        except VeogenError:
            continue  # there is none from there
    if transient is not None:
        raise ServiceUnavailable(f"No link to the asset {asset.uri} works at the moment: {transient.message}")
    raise InputUnavailable(
        f"The asset {asset.uri} is needed as an input, but the service no longer serves generation "
        f"{asset.generation_id}, and the store gives no link to it",
        next_step="Use a bucket as VEOGEN_STORE (its objects can be presigned), or put the file where the service can "
        "read it and give that URL.",
    )


async def _known(_session: Session, asset: Asset) -> str | None:
    return asset.source_url or None


async def _fresh(session: Session, asset: Asset) -> str | None:
    generation = await session.client.get_generation(asset.generation_id)
    return output_link(session, generation)


async def _presigned(_session: Session, asset: Asset) -> str | None:
    folder, _, name = asset.uri.rpartition("/")
    return await open_store(folder).presign(name, PRESIGNED_SECONDS)


async def _shows(session: Session, asset: Asset, url: str, *, ours: bool) -> bool:
    """Tell whether a link leads to the asset.

    Raises:
        ServiceUnavailable: it can't be checked now.
        MediaRejected: it leads where no media of the service can be.
    """
    try:
        async with open_media(session, url, {"Range": "bytes=0-0"}, ours=ours) as response:
            if response.status == 429 or response.status >= 500:
                raise ServiceUnavailable(f"the media host responded with HTTP {response.status}")
            return _shows_asset(asset, response)
    except ResponseLost as lost:
        raise ServiceUnavailable(str(lost)) from None


def _shows_asset(asset: Asset, response: MediaResponse) -> bool:
    """Tell whether a response can be the asset: a page which says that a link has expired responds with 200 as well."""
    match response.status:
        case 206:
            total = response.headers.get("content-range", "").rpartition("/")[2]
        case 200:
            total = response.headers.get("content-length", "")
        case _:
            return False
    if total.isdigit() and not content_codings(response.headers):
        return int(total) == asset.size
    return response.headers.get("content-type", "").partition("/")[0] == asset.content_type.partition("/")[0]
