"""Media as hosts really serve them: with something behind, encoded for the way, under links that lack a part."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen.api.http import absolute_url
from prefect_veogen.errors import DownloadBroken, MediaRejected
from prefect_veogen.models import Generation, Kind, Output, Status
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.deliveries import (
    CLIP_BYTES,
    bought,
    content,
    delivered,
    elsewhere,
    leftovers,
    serving_without_a_length,
)
from tests.support.formats import saved, signed
from tests.support.servers import Once, Reply, Request, serving

FILES = Path(__file__).parent / "media_files"
# What hardly shrinks, so that what is encoded is as large as what isn't.
PNG = saved("png", size=500)


def made(name: str) -> bytes:
    return (FILES / name).read_bytes()


def deflated(content: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(content) + engine.flush()


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": deflated,
    "identity": bytes,
    "gzip, deflate": lambda content: zlib.compress(gzip.compress(content)),
    "GZIP , ": lambda content: gzip.compress(content[:1000]) + gzip.compress(content[1000:]) + bytes(9),
}


def picture_at(url: str) -> Generation:
    return elsewhere(url, Kind.IMAGE)


async def sidecar_of(uri: str) -> dict[str, Any]:
    return dict(json.loads(await content(open_session().store, f"{uri}.json")))


# ---------------------------------------------------------------- as it is


@pytest.mark.parametrize("path", sorted(FILES.glob("*-behind.*")), ids=lambda path: path.name)
async def test_a_file_with_something_behind_it_is_stored_as_it_is_and_the_sidecar_says_so(
    path: Path, sandbox: Sandbox, store_url: str
) -> None:
    body = made(path.name)
    kind = Kind.VIDEO if path.suffix == ".mp4" else Kind.IMAGE
    with serving(lambda request: Reply(200, {}, body)) as host:
        asset = (await delivered(elsewhere(f"{host}/x", kind))).asset
    assert await content(open_session().store, asset.uri) == body
    assert (asset.size, asset.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert (await sidecar_of(asset.uri))["bytes_behind_end"] > 0


@pytest.mark.parametrize("path", sorted(FILES.glob("avif-*")), ids=lambda path: path.name)
async def test_an_avif_is_stored_as_one_unless_it_was_cut(path: Path, sandbox: Sandbox) -> None:
    with serving(lambda request: Reply(200, {"content-type": "image/avif"}, made(path.name))) as host:
        if "cut" in path.name:
            with pytest.raises(MediaRejected, match="a truncated AVIF"):
                await delivered(picture_at(f"{host}/x"))
        else:
            asset = (await delivered(picture_at(f"{host}/x"))).asset
            assert (asset.content_type, asset.uri[-5:]) == ("image/avif", ".avif")


async def test_a_sound_is_not_stored_as_a_video(sandbox: Sandbox) -> None:
    body = made("mp4-sound-only.mp4")
    with (
        serving(lambda request: Reply(200, {}, body)) as host,
        pytest.raises(MediaRejected, match="without a video track"),
    ):
        await delivered(elsewhere(f"{host}/x"))


@pytest.mark.parametrize("name", ["png", "jpeg", "mp4"])
async def test_content_credentials_stay_and_the_sidecar_mentions_them(
    name: str, sandbox: Sandbox, store_url: str
) -> None:
    bodies = {"/signed": signed(name), "/plain": saved("png")}
    with serving(lambda request: Reply(200, {}, bodies[request.path])) as host:
        asset = (await delivered(elsewhere(f"{host}/signed", Kind.VIDEO if name == "mp4" else Kind.IMAGE))).asset
        plain = (
            await delivered(Generation(id="g2", status=Status.COMPLETED, output=Output(url=f"{host}/plain")))
        ).asset
    assert await content(open_session().store, asset.uri) == bodies["/signed"]
    assert (await sidecar_of(asset.uri))["content_credentials"] == "c2pa"
    sidecar = await sidecar_of(plain.uri)
    assert (sidecar["content_credentials"], sidecar["bytes_behind_end"]) == (None, 0)


# ---------------------------------------------------------------- encoded


@pytest.mark.parametrize("encoding", ENCODED)
async def test_what_is_encoded_is_decoded(encoding: str, sandbox: Sandbox, store_url: str) -> None:
    body = ENCODED[encoding](PNG)
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    headers = {"content-encoding": encoding, "etag": '"1"', "repr-digest": f"sha-256=:{digest}:"}
    with serving(lambda request: Reply(200, headers, body)) as host:
        asset = (await delivered(picture_at(f"{host}/x.png"))).asset
    assert await content(open_session().store, asset.uri) == PNG
    assert (asset.size, asset.sha256, asset.content_type) == (len(PNG), hashlib.sha256(PNG).hexdigest(), "image/png")


async def test_a_made_file_that_was_gzipped_is_stored_unpacked(sandbox: Sandbox) -> None:
    body = made("png-gzipped.png.gz")
    with serving(lambda request: Reply(200, {"content-encoding": "gzip"}, body)) as host:
        asset = (await delivered(picture_at(f"{host}/x.png"))).asset
    assert await content(open_session().store, asset.uri) == gzip.decompress(body)


async def test_an_encoded_download_that_breaks_once_starts_afresh(sandbox: Sandbox) -> None:
    asked: list[Request] = []
    body, first = gzip.compress(PNG), Once(lambda request: True)

    def breaking(request: Request) -> Reply:
        asked.append(request)
        cut_at = len(body) // 2 if first(request) else None
        return Reply(200, {"content-encoding": "gzip", "etag": '"1"'}, body, cut_at)

    with serving(breaking) as host:
        asset = (await delivered(picture_at(f"{host}/x.png"))).asset
    assert asset.sha256 == hashlib.sha256(PNG).hexdigest()
    assert [request.headers.get("range") for request in asked] == [None, None]
    assert leftovers(open_session().store) == 0


async def test_an_encoded_download_without_a_length_is_not_taken_for_whole_when_it_ends_early(sandbox: Sandbox) -> None:
    # Behind its end a picture may have anything, so that only the encoding shows that something is missing.
    body = gzip.compress(PNG + bytes(range(256)) * 100)[:-9]
    problem = "in the middle of its encoding"
    with serving_without_a_length(body, "Content-Encoding: gzip") as host, pytest.raises(DownloadBroken, match=problem):
        await delivered(picture_at(f"{host}/x.png"))
    assert leftovers(open_session().store) == 0


async def test_an_encoded_download_that_always_breaks_comes_to_an_end(sandbox: Sandbox) -> None:
    asked, body = [], gzip.compress(PNG)

    def breaking(request: Request) -> Reply:
        asked.append(request)
        return Reply(200, {"content-encoding": "gzip", "etag": '"1"'}, body, cut_at=len(body) - 1)

    with serving(breaking) as host, pytest.raises(DownloadBroken):
        await delivered(picture_at(f"{host}/x.png"))
    assert len(asked) <= 6


async def test_the_rest_of_a_plain_file_is_not_taken_from_an_encoded_one(sandbox: Sandbox) -> None:
    def encoding_ranges(request: Request) -> Reply:
        if "range" not in request.headers:
            return Reply(200, {"etag": '"1"'}, PNG, cut_at=None if len(asked) else len(PNG) // 2)
        asked.append(request)
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        headers = {
            "etag": '"1"',
            "content-encoding": "gzip",
            "content-range": f"bytes {start}-{len(PNG) - 1}/{len(PNG)}",
        }
        return Reply(206, headers, gzip.compress(PNG)[: len(PNG) - start])

    asked: list[Request] = []
    with serving(encoding_ranges) as host:
        asset = (await delivered(picture_at(f"{host}/x.png"))).asset
    assert (asset.sha256, len(asked)) == (hashlib.sha256(PNG).hexdigest(), 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "aws-chunked", "utf-8", "gzip, utf-8"])
async def test_a_label_on_what_was_never_encoded_keeps_nothing_out(encoding: str, sandbox: Sandbox) -> None:
    with serving(lambda request: Reply(200, {"content-encoding": encoding}, PNG)) as host:
        asset = (await delivered(picture_at(f"{host}/x.png"))).asset
    assert asset.sha256 == hashlib.sha256(PNG).hexdigest()


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("compress", b"\x1f\x9d\x90" + bytes(range(200)), "an unknown encoding"),
        ("gzip", gzip.compress(PNG)[:-8] + bytes(8), "incorrect data check"),
        ("gzip", gzip.compress(PNG)[:-9], "its end is missing"),
        ("gzip, gzip, gzip, gzip", gzip.compress(PNG), "4 stacked encodings"),
    ],
)
async def test_what_can_not_be_decoded_is_refused_with_the_reason_and_kept_as_it_came(
    encoding: str, body: bytes, reason: str, sandbox: Sandbox, store_url: str
) -> None:
    problem = rf"sent as {encoding}, which can't be decoded: .*{reason}"
    with (
        serving(lambda request: Reply(200, {"content-encoding": encoding}, body)) as host,
        pytest.raises(MediaRejected, match=problem) as caught,
    ):
        await delivered(picture_at(f"{host}/x.png"))
    assert await content(open_session().store, str(caught.value.kept_at)) == body


@pytest.mark.parametrize(("encoding", "library"), [("br", "brotli"), ("zstd", "zstandard")])
async def test_an_encoding_without_its_library_names_the_package(encoding: str, library: str, sandbox: Sandbox) -> None:
    assert importlib.util.find_spec(library) is None, "the lock holds it by now: test that it decodes"
    body = b"\x28\xb5\x2f\xfd" + bytes(range(255))
    with (
        serving(lambda request: Reply(200, {"content-encoding": encoding}, body)) as host,
        pytest.raises(MediaRejected, match=f"the package {library} is needed"),
    ):
        await delivered(picture_at(f"{host}/x.png"))


async def test_an_encoded_page_is_called_a_page(sandbox: Sandbox) -> None:
    body = gzip.compress(b"<!doctype html><title>Sign in</title>")
    with (
        serving(lambda request: Reply(200, {"content-encoding": "gzip"}, body)) as host,
        pytest.raises(MediaRejected, match="served an HTML page") as caught,
    ):
        await delivered(picture_at(f"{host}/x.png"))
    assert await content(open_session().store, str(caught.value.kept_at)) == gzip.decompress(body)


async def test_large_rejected_bytes_are_kept_decoded(sandbox: Sandbox, store_url: str) -> None:
    broken = CLIP_BYTES + (10_000_100).to_bytes(4, "big") + b"free" + bytes(10_000_000)
    with (
        serving(lambda request: Reply(200, {"content-encoding": "gzip"}, gzip.compress(broken))) as host,
        pytest.raises(MediaRejected, match="a truncated MP4") as caught,
    ):
        await delivered(elsewhere(f"{host}/x.mp4"))
    assert await content(open_session().store, str(caught.value.kept_at)) == broken


async def test_the_limit_is_one_of_decoded_bytes(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_MAX_ASSET_BYTES", "5000000")
    start = CLIP_BYTES + (400_000_000).to_bytes(4, "big") + b"free"
    engine = zlib.compressobj(wbits=31)
    bomb = engine.compress(start) + b"".join(engine.compress(bytes(1_000_000)) for _ in range(400)) + engine.flush()
    assert len(bomb) < 4_000_000
    with (
        serving(lambda request: Reply(200, {"content-encoding": "gzip"}, bomb)) as host,
        pytest.raises(MediaRejected, match="more than 5000000 bytes") as caught,
    ):
        await delivered(elsewhere(f"{host}/x.mp4"))
    assert caught.value.setting == "VEOGEN_MAX_ASSET_BYTES"
    assert len(await content(open_session().store, str(caught.value.kept_at))) == 5_000_001


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("form", ["{path}", "//{host}{path}", "{host}{path}", "{bare}"])
async def test_a_link_that_leaves_something_out_leads_to_the_service(
    form: str, sandbox: Sandbox, monkeypatch: Any
) -> None:
    generation = await bought(sandbox)
    assert generation.output is not None
    whole = generation.output.url
    host, _, path = whole.partition("://")[2].partition("/")
    monkeypatch.setenv("VEOGEN_BASE_URL", f"http://{host}/api/v1")
    url = form.format(host=host, path=f"/{path}", bare=path)
    asset = (await delivered(generation.model_copy(update={"receipt": None, "output": Output(url=url)}))).asset
    assert asset.source_url == whole.partition("?")[0]


@pytest.mark.parametrize(
    ("url", "leads_to"),
    [
        ("/storage/x.png?a=%2F", "https://veogen.studio/storage/x.png?a=%2F"),
        ("storage/generations/x.png", "https://veogen.studio/storage/generations/x.png"),
        ("//cdn.example/x.png", "https://cdn.example/x.png"),
        ("cdn.example.com/x.png", "https://cdn.example.com/x.png"),
        ("cdn.example.com:8443/a/x.png", "https://cdn.example.com:8443/a/x.png"),
        ("[2001:db8::1]:8443/x.png", "https://[2001:db8::1]:8443/x.png"),
        ("folder.v1/x.png", "https://veogen.studio/folder.v1/x.png"),
        ("x.png", "https://veogen.studio/x.png"),
        ("http://cdn.example/a%2fb?sig=%7E", "http://cdn.example/a%2fb?sig=%7E"),
        ("data:image/png;base64,AA", "data:image/png;base64,AA"),
        ("not a link", "not a link"),
    ],
)
def test_where_a_link_leads_to(url: str, leads_to: str) -> None:
    assert absolute_url("https://veogen.studio/api/v1", url) == leads_to
