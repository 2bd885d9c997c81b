"""What both kinds of store promise: conditional documents, streamed media, listings."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from prefect_veogen.errors import StoreRefused, StoreUnavailable, VeogenError
from prefect_veogen.store import LocalStore, Store, VersionConflict, open_store
from prefect_veogen.store.s3_writer import PART_BYTES
from tests.support.servers import Reply, Request, relayed, serving
from tests.support.stores import assert_one_creator_wins, in_bucket, opened, refusing, unfinished, written

WEIRD_KEYS = ["assets/ä ö/%41 +&?#.png", "a'b\"c/d=e,f;g.json", "汉字/🎬.mp4", "x" * 200, "spaces at end "]


async def test_an_object_is_read_through_in_pieces_and_one_that_is_absent_is_none(store: Store) -> None:
    _, etag = await written(store, "assets/clip.mp4", 5 * PART_BYTES // 2)
    sizes: list[int] = []
    read = await store.read_through("assets/clip.mp4", lambda piece: sizes.append(len(piece)))
    assert read == await store.stat("assets/clip.mp4")
    assert read is not None
    assert (read.size, read.etag) == (sum(sizes), etag)
    assert max(sizes) <= 1024 * 1024
    assert await store.read_through("assets/none", lambda piece: None) is None
    with pytest.raises(StoreUnavailable, match="assets/none is gone"):
        await store.sha256("assets/none")


async def test_exactly_one_of_many_concurrent_creators_wins(store: Store) -> None:
    await assert_one_creator_wins(store)


# Imports the store without the package around it: importing Prefect would take two seconds in each process.
RACER = """
import asyncio, sys, types
sys.modules["prefect_veogen"] = package = types.ModuleType("prefect_veogen")
package.__path__ = [sys.argv.pop()]
from prefect_veogen.store import AlreadyExists, VersionConflict, open_store

async def main(url, me):
    store = open_store(url)
    won = 0
    for number in range(12):
        try:
            await store.create(f"race/{number}", f"{me} {number}".encode())
            won += 1
        except AlreadyExists:
            pass
    added = 0
    while added < 12:
        document = await store.read("count")
        try:
            body = b"%d by %s" % (int(document.body.split()[0]) + 1, me.encode())
            await store.replace("count", body, document.version)
            added += 1
        except VersionConflict:
            pass
    print(won)

asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_agree_on_one_creator_and_lose_no_update(store: Store, store_url: str) -> None:
    asyncio.run(store.create("count", b"0"))
    package = str(Path(__file__).parents[2] / "prefect_veogen")
    commands = [[sys.executable, "-c", RACER, store_url, f"racer-{number}", package] for number in range(3)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    assert sum(int(racer.communicate()[0]) for racer in racers) == 12
    count = asyncio.run(store.read("count"))
    assert count is not None
    assert count.body.split()[0] == b"36"


async def test_a_document_is_replaced_only_if_it_is_unchanged(store: Store) -> None:
    first = await store.create("one.json", b"1")
    second = await store.replace("one.json", b"2", first)
    with pytest.raises(VersionConflict):
        await store.replace("one.json", b"3", first)
    with pytest.raises(VersionConflict):
        await store.replace("missing.json", b"3", first)
    document = await store.read("one.json")
    assert document is not None
    assert (document.body, document.version) == (b"2", second)


async def test_concurrent_increments_are_all_counted(store: Store) -> None:
    await store.create("count", b"0 nobody")

    async def add(name: int) -> None:
        while True:
            document = await store.read("count")
            assert document is not None
            body = b"%d %d" % (int(document.body.split()[0]) + 1, name)
            with suppress(VersionConflict):
                await store.replace("count", body, document.version)
                return

    await asyncio.gather(*(add(number) for number in range(10)))
    document = await store.read("count")
    assert document is not None
    assert document.body.split()[0] == b"10"


async def test_a_store_that_honours_conditional_writes_is_accepted(store: Store) -> None:
    await store.check()
    await store.check()


async def test_concurrent_checks_share_one_check_and_its_failure(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def denied(request: Request) -> Reply:
        asked.append(f"{request.method} {request.path}")
        return refusing(403, "AccessDenied")(request) if is_closed else relayed(s3_server, request)

    is_closed = True
    with serving(denied) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        results = await asyncio.gather(*(store.check() for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, StoreRefused) for result in results)
        assert len(asked) == 1
        is_closed = False
        await asyncio.gather(*(store.check() for _ in range(20)))
        proven_by = len(asked)
        await store.check()
    assert len(asked) == len(set(asked)) + 3 == proven_by  # the first of all, and thrice the probe of the conditions


async def test_a_check_leaves_no_object_but_that_of_the_conditional_writes(store: Store) -> None:
    await store.check()
    left = [] if isinstance(store, LocalStore) else ["receipts/.conditional-writes"]
    assert [found.key for found in await store.list_objects("")] == left
    assert unfinished(store) == 0


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 11 * PART_BYTES + 1])
async def test_a_stream_is_stored_whole_and_invisible_until_committed(store: Store, size: int) -> None:
    before = store.writer("assets/clip.mp4", "video/mp4")
    await before.write(b"half of something")
    assert await store.list_objects("") == []
    await before.abort()
    digest, etag = await written(store, "assets/clip.mp4", size)
    stat = await store.stat("assets/clip.mp4")
    assert stat is not None
    assert (stat.size, stat.etag) == (size, etag)
    assert await store.sha256("assets/clip.mp4") == digest
    assert unfinished(store) == 0


@pytest.mark.parametrize("size", [0, 10, 3 * PART_BYTES + 5])
async def test_an_aborted_stream_leaves_nothing(store: Store, size: int) -> None:
    writer = store.writer("assets/clip.mp4", "video/mp4")
    await writer.write(bytes(size))
    await writer.abort()
    await writer.abort()
    assert unfinished(store) == 0
    assert await store.list_objects("") == []


@pytest.mark.parametrize("size", [10, PART_BYTES + 1])
async def test_a_stream_is_quarantined_where_the_store_can_rename_it(store: Store, size: int) -> None:
    writer = store.writer("assets/clip.mp4", "video/mp4")
    await writer.write(bytes(size))
    kept = await writer.quarantine("rejected/clip")
    assert kept is (isinstance(store, LocalStore) or size < PART_BYTES)
    assert [found.key for found in await store.list_objects("")] == (["rejected/clip"] if kept else [])
    assert unfinished(store) == 0


@pytest.mark.parametrize("kind", ["directory", "bucket"])
async def test_what_killed_writers_left_behind_is_cleared_once_it_is_old(
    kind: str, tmp_path: Path, strict_s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    if kind == "bucket":
        store = in_bucket(monkeypatch, strict_s3, "unfinished")
        store.client().create_bucket(Bucket="unfinished")
    writers = [store.writer(key, "video/mp4") for key in ("assets/clip.mp4", "rejected/clip")]
    for writer in writers:
        await writer.write(bytes(PART_BYTES + 1))
    assert unfinished(store) == 2
    assert await store.clear_unfinished(3600) == 0
    assert await store.clear_unfinished(-5) == 2
    assert unfinished(store) == 0
    for writer in writers:
        with suppress(VeogenError):  # S3 knows no such upload any more
            await writer.abort()


@pytest.mark.parametrize("key", WEIRD_KEYS)
async def test_any_key_is_written_read_listed_and_named(store: Store, key: str) -> None:
    await store.put(key, b"1", "text/plain")
    await store.create(f"{key}.json", b"2")
    document = await store.read(key)
    assert document is not None
    assert document.body == b"1"
    assert sorted(found.key for found in await store.list_objects(key[:2])) == [key, f"{key}.json"]
    assert store.key(store.uri(key)) == key
    link = await store.presign(key, 60)
    assert link is None or (await opened(link)).content == b"1"


async def test_only_objects_below_the_prefix_are_listed(store: Store) -> None:
    for key in ("receipts/v1-a-1.json", "receipts/v1-b-1.json", "receiptsx/v1-a-1.json", "assets/v1-a-1.json"):
        await store.put(key, b"{}", "application/json")
    assert [found.key for found in await store.list_objects("receipts/v1-a")] == ["receipts/v1-a-1.json"]
    assert await store.list_objects("nothing/here") == []
    assert await store.read("nothing/here") is None
    assert await store.stat("nothing/here") is None
    assert await store.stat("receipts/v1-a-1.json/below") is None


def test_a_foreign_uri_has_no_key(store: Store) -> None:
    assert store.key("s3://another-bucket/media/assets/x.png") is None
    assert store.key("file:///elsewhere/assets/x.png") is None
    assert store.key("https://veogen.studio/x.png") is None
