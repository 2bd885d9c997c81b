"""The gallery in a browser: what it shows, plays and filters, from a directory and from a bucket."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from PIL import Image
from playwright.sync_api import Page

from flows.campaign import campaign
from prefect_veogen.campaign.gallery import MAX_EMBEDDED, Tile, make_tiles, page
from prefect_veogen.campaign.items import CampaignItem, ItemStatus, Step
from prefect_veogen.campaign.report import CampaignReport
from prefect_veogen.models import Asset, Kind
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import S3Store, Store, open_store
from tests.support.media import png
from tests.support.pictures import save_picture

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 20.0
CLIP = Path(__file__).parents[1] / "download" / "media_files" / "mp4-with-a-line-break-behind.mp4"


def asset(store: Store, key: str, kind: str, sha256: str = "ab", size: int = 1) -> Asset:
    return Asset(uri=store.uri(key), sha256=sha256, size=size, content_type=kind, generation_id=key)


def item(store: Store, identity: str, status: ItemStatus = ItemStatus.OK, **more: Any) -> CampaignItem:
    steps = [Step(Kind.IMAGE, "v1", asset(store, "assets/a b.png", "image/png"))]
    if more.pop("moves", False):
        steps.append(Step(Kind.VIDEO, "v2", asset(store, "assets/clip.mp4", "video/mp4")))
    done = tuple(steps) if status is ItemStatus.OK else ()
    return CampaignItem(identity, status, done, fields={"prompt": f"a picture of {identity}"}, **more)


def write_gallery(store: Store, root: Path, items: list[CampaignItem]) -> Path:
    (root / "assets").mkdir(parents=True)
    (root / "assets" / "a b.png").write_bytes(png())
    shutil.copy(CLIP, root / "assets" / "clip.mp4")
    path = root / "campaigns" / "spring" / "gallery.html"
    path.parent.mkdir(parents=True)
    path.write_text("".join(page(CampaignReport.of("spring", items), [Tile(one) for one in items], store)))
    return path


def wait_until(tab: Page, expression: str) -> None:
    """Return when an expression is true; the page's own policy does not let Playwright wait for it in there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not tab.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


def shown(tab: Page) -> int:
    return tab.locator("figure:visible").count()


def test_it_shows_pictures_and_plays_clips_by_its_relative_links(tmp_path: Path, tab: Page) -> None:
    store = open_store(tmp_path / "store")
    items = [item(store, "still"), item(store, "moves", moves=True), item(store, "<i>bad</i>", ItemStatus.FAILED)]
    tab.goto(write_gallery(store, tmp_path / "store", items).as_uri())
    wait_until(tab, "document.querySelector('img').naturalWidth > 0")
    tab.locator("video").hover()
    wait_until(tab, "document.querySelector('video').currentTime > 0.1")
    tab.locator("h1").hover()
    wait_until(tab, "document.querySelector('video').paused")
    tab.locator("video").click()
    wait_until(tab, "document.querySelector('video').controls && !document.querySelector('video').paused")
    assert str(tab.locator("figure.failed").text_content()).startswith("<i>bad</i> · failed · $0.00")


def test_from_a_public_prefix_it_shows_pictures_and_from_a_private_one_by_a_presigned_link_only_the_page(
    bucket: str, tmp_path: Path, tab: Page
) -> None:
    responses: dict[str, int] = {}
    tab.on("response", lambda response: responses.update({response.url: response.status}))
    store = open_store(f"s3://{bucket}/media")
    gallery = write_gallery(store, tmp_path, [item(store, "still")])
    page_key, picture_key = (f"media/{it.relative_to(tmp_path)}" for it in (gallery, tmp_path / "assets" / "a b.png"))
    with closing(boto3.client("s3")) as client:
        client.put_object(Bucket=bucket, Key=page_key, Body=gallery.read_bytes(), ContentType="text/html")
        client.put_object(Bucket=bucket, Key=picture_key, Body=png(), ContentType="image/png")
        link = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": page_key})
        address = link.partition("?")[0]
        picture = f"{address.removesuffix(page_key)}{quote(picture_key)}"
        tab.goto(link)
        wait_until(tab, "document.querySelector('img').complete")
        assert (responses[link], responses[picture]) == (200, 403)
        for key in (page_key, picture_key):
            client.put_object_acl(Bucket=bucket, Key=key, ACL="public-read")
    tab.goto(address)
    wait_until(tab, "document.querySelector('img').naturalWidth > 0")


SCENES = {
    "hero": "a lighthouse at dusk",
    "tile": "a shell on the beach",
    "poster": "a poster for the spring sale",
}


@pytest.mark.server
@pytest.mark.usefixtures("prefect_server")
def test_a_campaigns_own_gallery_shows_all_that_it_made(sandbox: Sandbox, tmp_path: Path, tab: Page) -> None:
    rows: list[dict[str, Any]] = [{"id": name, "model": "gpt-4o-image", "prompt": it} for name, it in SCENES.items()]
    rows[0]["motion_prompt"] = "the beam turns"
    with ThreadPoolExecutor(1) as thread:  # Playwright's own loop runs in this one
        thread.submit(lambda: asyncio.run(campaign(rows, name="spring", labels={"project": "spring"}))).result()
    tab.set_viewport_size({"width": 960, "height": 400})
    tab.goto((tmp_path / "store" / "campaigns" / "spring" / "gallery.html").as_uri())
    assert shown(tab) == len(rows)
    wait_until(tab, "[...document.images].every(image => image.naturalWidth > 0)")
    save_picture(tab, "gallery")


def test_every_row_shows_a_thumbnail_and_loads_no_original(
    sandbox: Sandbox, store_url: str, s3_server: str, tab: Page
) -> None:
    session = open_session()

    async def made(number: int) -> CampaignItem:
        body = large_png(number)
        await session.store.put(f"assets/{number}.png", body, "image/png")
        digest = hashlib.sha256(body).hexdigest()
        step = Step(Kind.IMAGE, "v1", asset(session.store, f"assets/{number}.png", "image/png", digest, len(body)))
        return CampaignItem(f"row {number}", ItemStatus.OK, (step,))

    async def write() -> str:
        items = [await made(number) for number in range(MAX_EMBEDDED + 20)]
        html = "".join(page(CampaignReport.of("spring", items), await make_tiles(session, items), session.store))
        await session.store.put("campaigns/spring/gallery.html", html.encode(), "text/html")
        return session.store.uri("campaigns/spring/gallery.html")

    with ThreadPoolExecutor(1) as thread:  # Playwright's own loop runs in this one
        gallery = thread.submit(lambda: asyncio.run(on_io(write()))).result()
    if isinstance(session.store, S3Store):
        allowed = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        session.store.client().put_bucket_policy(Bucket=session.store.bucket, Policy=policy)
    tab.goto(gallery.replace("s3:/", s3_server))
    tab.evaluate("for (const image of document.images) image.loading = 'eager'")
    wait_until(tab, "[...document.images].every(image => image.complete)")
    widths = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert widths == [240] * (MAX_EMBEDDED + 20)


def large_png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_a_thousand_rows_are_filtered_by_status_label_and_text(tmp_path: Path, tab: Page) -> None:
    store = open_store(tmp_path / "store")
    labels = [{"project": "spring"}, {"project": "autumn"}]
    items = [item(store, f"row {number}", labels=labels[number % 2]) for number in range(990)]
    items += [item(store, f"bad {number}", ItemStatus.FAILED, error="It failed") for number in range(10)]
    tab.goto(write_gallery(store, tmp_path / "store", items).as_uri())
    assert (shown(tab), tab.locator("output").inner_text()) == (1000, "1000 of 1000")
    tab.select_option("[name=status]", "failed")
    assert (shown(tab), tab.locator("output").inner_text()) == (10, "10 of 1000")
    tab.select_option("[name=status]", "")
    tab.select_option("[name=label]", "project: spring")
    assert shown(tab) == 495
    tab.fill("[name=text]", "ROW 98")
    assert shown(tab) == 6
    tab.fill("[name=text]", "")
    tab.select_option("[name=label]", "")
    tab.locator("figure").last.scroll_into_view_if_needed()
    assert (shown(tab), str(tab.locator("figure").last.text_content()).partition(" ·")[0]) == (1000, "bad 9")
