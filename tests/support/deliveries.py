"""Purchases that are delivered: what was bought, what its media host serves, and what the store then holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from prefect_veogen.download.deliver import deliver
from prefect_veogen.models import Delivery, Generation, GenerationRequest, Kind, Output, Status
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from prefect_veogen.store import S3Store, Store

PICTURE = GenerationRequest(model="gpt-4o-image", prompt="A red fox, ink on paper")
CLIP = GenerationRequest(model="veo-3.1-fast", prompt="A red fox walks through snow")
MIB = 1024 * 1024
LARGE = 9 * MIB
CLIP_BYTES = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\0\x2cmoov\0\0\0\x24trak\0\0\0\x1cmdia"
CLIP_BYTES += b"\0\0\0\x14hdlr" + bytes(8) + b"vide" + (16 + 3_000_000).to_bytes(4, "big") + b"mdat"
CLIP_BYTES += bytes(range(256)) * (3_000_008 // 256) + bytes(3_000_008 % 256)


async def bought(sandbox: Sandbox, request: GenerationRequest = CLIP) -> Generation:
    session = open_session()
    generation = (await on_io(buy(session, request))).generation
    sandbox.advance(600)
    return await on_io(wait(session, generation))


async def delivered(generation: Generation) -> Delivery:
    return await on_io(deliver(open_session(), generation))


async def content(store: Store, uri: str) -> bytes:
    key = store.key(uri)
    document = await store.read(key) if key else None
    assert document is not None
    return document.body


async def served(sandbox: Sandbox, generation_id: str) -> bytes:
    """Return what the media host serves for a generation when nothing goes wrong."""
    sandbox.clear_faults()
    url = next(record.output_url for record in sandbox.generations if record.id == generation_id)
    assert url is not None
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).content


def media_requests(sandbox: Sandbox) -> list[Any]:
    return [record for record in sandbox.requests if record.origin == "media"]


def delete(store: Store, key: str) -> None:
    if isinstance(store, S3Store):
        store.client().delete_object(Bucket=store.bucket, Key=store.prefix + key)
    else:
        Path(store.uri(key).removeprefix("file://")).unlink()


def leftovers(store: Store) -> int:
    if isinstance(store, S3Store):
        return len(store.client().list_multipart_uploads(Bucket=store.bucket).get("Uploads", ()))
    return len(list((Path(store.uri("").removeprefix("file://")) / ".unfinished").glob("*")))


def elsewhere(url: str, kind: Kind = Kind.VIDEO) -> Generation:
    """Return a completed generation, bought elsewhere, whose file lies on another server."""
    return Generation(id="gen-1", status=Status.COMPLETED, type=kind, output=Output(url=url))


@contextmanager
def serving_without_a_length(body: bytes, header: str = "Server: none") -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header(*header.split(": "))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def receipt_of(generation: Generation) -> Any:
    assert generation.receipt is not None
    entry = await open_session().ledger.read(generation.receipt)
    assert entry is not None
    return entry.receipt
