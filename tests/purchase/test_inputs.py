"""Links to assets that are used as inputs: the service's own, a fresh one, a presigned one, or a plain refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefect_veogen.download.deliver import deliver
from prefect_veogen.errors import InputUnavailable, ServiceUnavailable
from prefect_veogen.models import Asset, GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.inputs import PRESIGNED_SECONDS, find_link, offer_links
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.servers import Reply, Request, serving

PICTURE = GenerationRequest(model="gpt-4o-image", prompt="A red fox, ink on paper")


async def picture(sandbox: Sandbox, request: GenerationRequest = PICTURE) -> Asset:
    session = open_session()
    generation = (await on_io(buy(session, request))).generation
    sandbox.advance(600)
    return (await on_io(deliver(session, await on_io(wait(session, generation))))).asset


async def link(asset: Asset) -> str:
    return await on_io(find_link(open_session(), asset))


async def test_the_services_own_link_comes_first(sandbox: Sandbox, store_url: str) -> None:
    asset = await picture(sandbox)
    assert await link(asset) == asset.source_url == sandbox.generations[0].output_url
    assert not any(record.had_authorization for record in sandbox.requests if record.origin == "media")


async def test_a_stale_link_is_replaced_by_a_fresh_one(sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    sandbox.fault("media-expired")
    fresh = await link(asset)
    assert fresh != asset.source_url
    assert fresh == sandbox.generations[0].output_url


async def test_an_asset_that_knows_no_link_is_asked_for(sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    assert await link(asset.model_copy(update={"source_url": None})) == asset.source_url


async def test_what_the_service_serves_no_longer_is_presigned(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    asset = await picture(sandbox)
    sandbox.fault("media-404", times=None)
    presigned = await link(asset)
    assert f"{bucket}/media/assets/" in presigned
    assert f"X-Amz-Expires={PRESIGNED_SECONDS}" in presigned


async def test_a_bucket_elsewhere_presigns_what_is_in_it(
    sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("VEOGEN_STORE", f"s3://{bucket}/media")
    asset = await picture(sandbox)
    monkeypatch.setenv("VEOGEN_STORE", str(tmp_path / "another"))
    sandbox.fault("media-404", times=None)
    assert bucket in await link(asset)


@pytest.mark.parametrize("fault", ["media-404", "media-redirect-private"])
async def test_an_asset_without_any_link_is_refused(fault: str, sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    sandbox.fault(fault, times=None)
    with pytest.raises(InputUnavailable, match="Use a bucket as VEOGEN_STORE") as caught:
        await link(asset)
    assert asset.uri in str(caught.value)
    assert asset.generation_id in str(caught.value)


@pytest.mark.parametrize("fault", ["media-500", "media-503", "media-redirect-loop"])
async def test_a_media_host_in_trouble_is_no_refusal(fault: str, sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    sandbox.fault(fault, times=2)
    with pytest.raises(ServiceUnavailable, match=asset.uri):
        await link(asset)
    assert await link(asset) == asset.source_url


@pytest.mark.parametrize("response", [Reply(429), None], ids=["slow down", "none"])
async def test_a_media_host_that_does_not_respond_is_not_a_refusal(response: Reply | None, sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    sandbox.fault("look-404", times=None)
    with serving(lambda request: response) as host, pytest.raises(ServiceUnavailable, match=asset.uri):
        await link(asset.model_copy(update={"source_url": f"{host}/x.png"}))


@pytest.mark.parametrize("fault", ["look-500", "look-dropped"])
async def test_a_service_in_trouble_is_no_refusal(fault: str, sandbox: Sandbox) -> None:
    asset = (await picture(sandbox)).model_copy(update={"source_url": None})
    sandbox.fault(fault)
    with pytest.raises(ServiceUnavailable, match=asset.uri):
        await link(asset)
    assert await link(asset) == sandbox.generations[0].output_url


@pytest.mark.parametrize(
    "uri", ["", "x.png", "https://example.com/x.png", "s3://missing-bucket/x.png", "gs://b/x.png", "file:///x.png"]
)
async def test_an_asset_from_anywhere_is_refused_the_same_way(
    uri: str, sandbox: Sandbox, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = Asset(uri=uri, sha256="0" * 64, size=1, content_type="image/png", generation_id="no-such-generation")
    with pytest.raises(InputUnavailable):
        await link(asset)


async def test_a_link_that_moved_is_followed_but_given_as_it_is(sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    sandbox.fault("media-redirect")
    assert await link(asset) == asset.source_url


def moved_to(target: str) -> Callable[[Request], Reply]:
    return lambda request: Reply(302, {"location": target})


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/", "http://[::1", "", "ftp://example.com/"])
async def test_a_link_that_leads_nowhere_does_not_count(target: str, sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    with serving(moved_to(target)) as host:
        given = await link(asset.model_copy(update={"source_url": f"{host}/x.png"}))
    assert given == asset.source_url


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"content-type": "text/html"}),
        (200, {"content-type": "text/html", "transfer-encoding": "identity"}),
        (206, {"content-range": "bytes 0-0/17"}),
        (206, {"content-range": "bytes 0-0/*", "content-type": "text/html"}),
    ],
)
async def test_a_page_which_says_that_the_link_has_expired_does_not_count(
    status: int, headers: dict[str, str], sandbox: Sandbox
) -> None:
    asset = await picture(sandbox)
    with serving(lambda request: Reply(status, headers, b"<html>This link has expired")) as host:
        given = await link(asset.model_copy(update={"source_url": f"{host}/x.png"}))
    assert given == asset.source_url


async def test_a_private_address_is_not_even_asked(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = await picture(sandbox)
    monkeypatch.setenv("VEOGEN_ALLOW_PRIVATE_MEDIA", "false")
    asked: list[Request] = []

    def listening(request: Request) -> Reply:
        asked.append(request)
        return Reply(206, {}, b"x")

    with serving(listening) as host, pytest.raises(InputUnavailable):
        await link(asset.model_copy(update={"source_url": f"{host}/x.png"}))
    assert asked == []


async def test_only_one_byte_is_asked_for(sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    await link(asset)
    assert [record for record in sandbox.requests if record.origin == "media"][-1].headers["range"] == "bytes=0-0"


async def test_only_assets_are_replaced_and_their_order_stays(sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    url = "https://example.com/a.png?signature=1"
    request = GenerationRequest(model="gpt-4o-image", prompt="Both", image_urls=(url, asset, url))
    assert await on_io(offer_links(open_session(), request)) == {"image_urls": [url, asset.source_url, url]}
    assert await on_io(offer_links(open_session(), PICTURE)) == {}


async def test_another_link_to_the_same_asset_is_the_same_purchase(sandbox: Sandbox) -> None:
    asset = await picture(sandbox)
    clip = GenerationRequest(model="veo-3.1-fast", prompt="It walks", image_urls=(asset,))
    first = (await on_io(buy(open_session(), clip))).generation
    elsewhere = asset.model_copy(update={"source_url": None, "uri": "file:///elsewhere/x.png"})
    again = await on_io(buy(open_session(), clip.model_copy(update={"image_urls": (elsewhere,)})))
    assert (again.reused, again.generation.id) == (True, first.id)
    assert sandbox.generations[-1].parameters["image_urls"] == [asset.source_url]
