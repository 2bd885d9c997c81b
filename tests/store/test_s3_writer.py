"""Uploads into a bucket: parts that fit, content types, and nothing left behind."""

from __future__ import annotations

import asyncio
import time

import pytest

from prefect_veogen.store import S3Store, open_store
from prefect_veogen.store.s3_writer import PART_BYTES, S3Writer
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.stores import MIB, in_bucket, unfinished, written


@pytest.mark.parametrize("after", [0.1, 0.5], ids=["while it begins", "while it sends"])
async def test_a_cancelled_stream_leaves_nothing_after_abort(
    after: float, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods: list[str] = []

    def slow_parts(request: Request) -> Reply:
        time.sleep(0.3 if "partNumber" in request.path or request.path.endswith("?uploads") else 0)
        reply = relayed(s3_server, request)
        methods.append(request.method)
        return reply

    with serving(slow_parts) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        await store.stat("assets/clip.mp4")
        writer = store.writer("assets/clip.mp4", "video/mp4")
        writing = asyncio.create_task(writer.write(bytes(4 * PART_BYTES)))
        await asyncio.sleep(after)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await writer.abort()
        await asyncio.sleep(0.4)
        # A part that arrives behind the abort would stay, and cost, without being seen anywhere.
        assert methods[-1] == "DELETE"
        assert unfinished(store) == 0


def test_parts_grow_so_that_the_largest_object_of_s3_fits() -> None:
    writer = S3Store("bucket", "").writer("key", "video/mp4")
    assert isinstance(writer, S3Writer)
    sizes = []
    for sent in range(10_000):
        writer._parts_sent = sent
        sizes.append(writer._part_bytes())
    assert set(sizes[:1000]) == {PART_BYTES}
    assert sum(sizes) >= 5 * 1024**4
    assert max(sizes) <= 5 * 1024**3
    # Up to the largest download accepted by default, the parts in flight stay small.
    assert sum(sizes[:2000]) >= 20 * 1024**3
    assert sizes[1999] <= 16 * MIB


async def test_content_types_are_stored_in_a_bucket(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/media")
    assert isinstance(store, S3Store)
    await written(store, "small.mp4", 10)
    await written(store, "large.mp4", PART_BYTES + 1)
    await store.put("note.json", b"{}", "application/json")
    types = [
        store.client().head_object(Bucket=bucket, Key=f"media/{key}")["ContentType"]
        for key in ("small.mp4", "large.mp4", "note.json")
    ]
    assert types == ["video/mp4", "video/mp4", "application/json"]
