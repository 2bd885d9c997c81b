"""Stores for tests: buckets behind other endpoints, every call of a store, and what is left of writers."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from prefect_veogen.store import AlreadyExists, LocalStore, S3Store, Store, open_store
from prefect_veogen.store.s3_writer import PART_BYTES
from tests.support.servers import Reply, Request

MIB = 1024 * 1024


def in_bucket(monkeypatch: pytest.MonkeyPatch, endpoint: str, bucket: str = "one") -> S3Store:
    """Return the store of a bucket behind another endpoint, with credentials that test servers accept."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = open_store(f"s3://{bucket}/media")
    assert isinstance(store, S3Store)
    return store


async def opened(link: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(link)


def unfinished(store: Store) -> int:
    if isinstance(store, LocalStore):
        return len(list((store.root / ".unfinished").glob("*")))
    assert isinstance(store, S3Store)
    return len(store.client().list_multipart_uploads(Bucket=store.bucket).get("Uploads", ()))


async def written(store: Store, key: str, size: int, chunk: int = MIB) -> tuple[str, str]:
    """Stream noise into an object; return its digest and etag."""
    writer, digest, noise = store.writer(key, "video/mp4"), hashlib.sha256(), random.Random(size).randbytes(chunk)
    for offset in range(0, size, chunk):
        piece = noise[: size - offset]
        digest.update(piece)
        await writer.write(piece)
    return digest.hexdigest(), await writer.commit()


def every_call(store: Store) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "create": lambda: store.create("one", b"1"),
        "replace": lambda: store.replace("one", b"2", '"1"'),
        "put": lambda: store.put("one", b"1", "text/plain"),
        "read": lambda: store.read("one"),
        "find": lambda: store.list_objects(""),
        "stat": lambda: store.stat("one"),
        "sha256": lambda: store.sha256("one"),
        "check": store.check,
        "clear_unfinished": lambda: store.clear_unfinished(1),
        "small writer": lambda: written(store, "assets/small", 10),
        "large writer": lambda: written(store, "assets/large", PART_BYTES + 1),
    }


async def failures(store: Store) -> dict[str, BaseException | None]:
    calls = every_call(store)
    results = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
    failed = [result if isinstance(result, BaseException) else None for result in results]
    return dict(zip(calls, failed, strict=True))


def refusing(status: int, code: str) -> Callable[[Request], Reply]:
    region = "<Region>eu-west-3</Region>" if code == "PermanentRedirect" else ""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message>{region}</Error>".encode()
    return lambda request: Reply(status, {"content-type": "application/xml"}, body)


async def assert_one_creator_wins(store: Store) -> None:
    """Create one document many times at once; exactly one body is stored."""
    bodies = [b"%d" % number for number in range(24)]
    results = await asyncio.gather(*(store.create("one.json", body) for body in bodies), return_exceptions=True)
    winners = [body for body, result in zip(bodies, results, strict=True) if isinstance(result, str)]
    assert len(winners) == 1
    assert all(isinstance(result, str | AlreadyExists) for result in results)
    document = await store.read("one.json")
    assert document is not None
    assert document.body == winners[0]
