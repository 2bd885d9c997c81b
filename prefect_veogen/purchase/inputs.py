"""The inputs of a request: what identifies them, and links under which the service can read them.

Before anything is bought, an object of a bucket or a local file becomes an `Asset`, known by its digest.

The service takes only URLs it can reach (/api-reference/generations/create) and shows no upload. Its own output URL is
reachable for it by construction, so that comes first; how long such a URL lives is not documented, so it is tried, then
asked for afresh. A presigned URL of the stored object comes last: it needs a bucket the service can reach. For what the
service did not make it is the only one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.api.http import ResponseLost
from prefect_veogen.download.content_encoding import content_codings
from prefect_veogen.download.url_guard import open_media, output_link
from prefect_veogen.errors import (
    STORE_TROUBLE,
    ConfigurationError,
    InputUnavailable,
    InvalidRequest,
    Problem,
    ServiceUnavailable,
    TryAgainLater,
    VeogenError,
)
from prefect_veogen.models import Asset, file_at, is_public, object_at
from prefect_veogen.process.concurrency import map_bounded
from prefect_veogen.purchase.input_files import has_changed, put_into_store, read_content
from prefect_veogen.store import LocalStore

if TYPE_CHECKING:
    from prefect_veogen.api.http import MediaResponse
    from prefect_veogen.models import GenerationRequest
    from prefect_veogen.session import Session

# Long enough for a queue at the service; the link ends up in the service's records, so not longer than needed.
PRESIGNED_SECONDS = 6 * 3600

_KINDS = {"image_urls": ("image", "an image"), "video_urls": ("video", "a video"), "audio_urls": ("audio", "audio")}
_NEXT_STEP = (
    "Nothing was bought. Give a URL that the service can reach, an object of a bucket that boto3 can read here, or a "
    "file of this machine."
)


# ---------------------------------------------------------------- identity


async def identify_inputs(session: Session, request: GenerationRequest) -> GenerationRequest:
    """Return the request with an `Asset` for each object of a bucket and each local file. Free: reads, uploads nothing.

    Raises:
        InvalidRequest: some are missing, can't be read or are not media of the field's kind; all of them are named.
        ConfigurationError: one is a local file, and the store is a directory.
        StoreRefused, StoreUnavailable: a bucket does not let one be read, or not now.
    """
    if request.is_identified:
        return request
    fields = {name: value for name, value in request.set_fields().items() if isinstance(value, tuple)}
    places = [(name, position) for name, items in fields.items() for position in range(len(items))]
    found = await map_bounded(places, lambda place: _identify(session, *place, fields[place[0]][place[1]]))
    if problems := [item for item in found if isinstance(item, Problem)]:
        raise InvalidRequest(problems, next_step=_NEXT_STEP)
    assets = dict(zip(places, found, strict=True))
    return request.model_copy(
        update={name: tuple(assets[name, position] for position in range(len(items))) for name, items in fields.items()}
    )


async def find_receipt_key(session: Session, request: GenerationRequest) -> str:
    """Return the ledger's key of a request, whose inputs are read for it. Free.

    Raises:
        InvalidRequest, ConfigurationError, StoreRefused, StoreUnavailable: as `identify_inputs`.
    """
    return (await identify_inputs(session, request)).receipt_key(session.client.base_url)


async def _identify(session: Session, field: str, position: int, item: str | Asset) -> str | Asset | Problem:
    if isinstance(item, Asset) or is_public(item):
        return item
    if file_at(item) is not None:
        _check_store(session, f"{field}: item {position}: {item}")
    try:
        content = await read_content(session, item)
    except InputUnavailable as error:
        return Problem(field, None, f"item {position}: {error.message}")
    except STORE_TROUBLE as error:
        message = f"{field}: item {position}: {item} can't be read. {error.message}"
        raise type(error)(message, next_step=error.next_step) from None
    kind, wanted = _KINDS[field]
    if content.content_type.partition("/")[0] != kind:
        return Problem(field, None, f"item {position}: {item} is {content.content_type}, where {wanted} is expected")
    return Asset(
        uri=item, sha256=content.sha256, size=content.size, content_type=content.content_type, generation_id=""
    )


def _check_store(session: Session, item: str) -> None:
    if isinstance(session.store, LocalStore):
        raise ConfigurationError(
            f"{item} is a local file, and the store is a directory: the service can reach neither",
            next_step="Nothing was bought. Use a bucket as VEOGEN_STORE (s3://bucket/prefix), where a copy is put for "
            "the service, or give a URL that the service can reach.",
        )


# ---------------------------------------------------------------- links


async def offer_links(session: Session, request: GenerationRequest) -> dict[str, list[str]]:
    """Return the request's URL fields with every asset replaced by a link to it; costs nothing.

    Raises:
        InputUnavailable: no link to an asset works.
        ServiceUnavailable: one that doesn't work now may do so in a moment.
    """
    fields = {name: value for name, value in request.set_fields().items() if isinstance(value, tuple)}
    return {
        name: [await find_link(session, item) if isinstance(item, Asset) else item for item in items]
        for name, items in fields.items()
    }


async def find_link(session: Session, asset: Asset) -> str:
    """Return a link to an asset that works now.

    Raises:
        InputUnavailable: none works.
        ServiceUnavailable: one that doesn't work now may do so in a moment.
    """
    if not asset.generation_id and (file_at(asset.uri) is not None or object_at(asset.uri) is not None):
        return await _find_file_link(session, asset)
    transient = None
    for offer in (_recall_link, _fetch_link, _presign_asset):
        try:
            link = await offer(session, asset)
            if link is not None and await _shows(session, asset, link, ours=offer is _presign_asset):
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


async def _find_file_link(session: Session, asset: Asset) -> str:
    """Return a presigned link to what the service did not make."""
    if file_at(asset.uri) is not None:
        _check_store(session, asset.uri)
        uri = session.store.uri(await put_into_store(session, asset))
    else:
        uri = asset.uri
        if (await read_content(session, uri)).sha256 != asset.sha256:
            raise has_changed(asset)
    link = await _presign(session, uri)
    if link is None or not await _shows(session, asset, link, ours=True):
        raise InputUnavailable(
            f"The presigned link to {uri} does not lead to the input {asset.uri}",
            next_step="Nothing was bought. Check that whoever these credentials are may read it (s3:GetObject), and "
            "that AWS_ENDPOINT_URL_S3 is an address which the service can reach.",
        )
    return link


async def _recall_link(_session: Session, asset: Asset) -> str | None:
    return asset.source_url or None


async def _fetch_link(session: Session, asset: Asset) -> str | None:
    generation = await session.client.get_generation(asset.generation_id)
    return output_link(session, generation)


async def _presign_asset(session: Session, asset: Asset) -> str | None:
    return await _presign(session, asset.uri)


async def _presign(session: Session, uri: str) -> str | None:
    if (found := object_at(uri)) is not None:
        bucket, key = found
        return await session.store_at(f"s3://{bucket}").presign(key, PRESIGNED_SECONDS)
    folder, _, name = uri.rpartition("/")
    return await session.store_at(folder).presign(name, PRESIGNED_SECONDS)


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
