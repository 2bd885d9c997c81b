"""The store: conditional documents, streamed media, and no surprises from S3."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest

from prefect_veogen.errors import (
    STORE_TROUBLE,
    ConfigurationError,
    StoreRefused,
    StoreUnavailable,
    UnsafeStore,
    VeogenError,
)
from prefect_veogen.store import AlreadyThere, Changed, LocalStore, S3Store, Store, open_store
from prefect_veogen.store.s3 import PART_BYTES, _S3Writer
from tests.support.servers import Once, Reply, Request, relayed, serving, without

MIB = 1024 * 1024
WEIRD_KEYS = ["assets/ä ö/%41 +&?#.png", "a'b\"c/d=e,f;g.json", "汉字/🎬.mp4", "x" * 200, "spaces at end "]


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


@pytest.fixture(scope="module")
def strict_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server in another process, which checks checksums and the signatures of links."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3"}
    command = [sys.executable, "-m", "ministack"]
    folder = tmp_path_factory.mktemp("ministack")
    server = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def in_bucket(monkeypatch: pytest.MonkeyPatch, endpoint: str, bucket: str = "one") -> S3Store:
    """Return the store of a bucket behind another endpoint, with the credentials that servers for tests take."""
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
    async with httpx.AsyncClient() as anybody:
        return await anybody.get(link)


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


# ---------------------------------------------------------------- documents


async def test_exactly_one_of_many_concurrent_creators_wins(store: Store) -> None:
    bodies = [b"%d" % number for number in range(24)]
    results = await asyncio.gather(*(store.create("one.json", body) for body in bodies), return_exceptions=True)
    winners = [body for body, result in zip(bodies, results, strict=True) if isinstance(result, str)]
    assert len(winners) == 1
    assert all(isinstance(result, str | AlreadyThere) for result in results)
    document = await store.read("one.json")
    assert document is not None
    assert document.body == winners[0]


# Imports the store without the package around it, which would take two seconds for Prefect in each process.
RACER = """
import asyncio, sys, types
sys.modules["prefect_veogen"] = package = types.ModuleType("prefect_veogen")
package.__path__ = [sys.argv.pop()]
from prefect_veogen.store import AlreadyThere, Changed, open_store

async def main(url, me):
    store = open_store(url)
    won = 0
    for number in range(12):
        try:
            await store.create(f"race/{number}", f"{me} {number}".encode())
            won += 1
        except AlreadyThere:
            pass
    added = 0
    while added < 12:
        document = await store.read("count")
        try:
            body = b"%d by %s" % (int(document.body.split()[0]) + 1, me.encode())
            await store.replace("count", body, document.version)
            added += 1
        except Changed:
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
    with pytest.raises(Changed):
        await store.replace("one.json", b"3", first)
    with pytest.raises(Changed):
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
            with suppress(Changed):
                await store.replace("count", body, document.version)
                return

    await asyncio.gather(*(add(number) for number in range(10)))
    document = await store.read("count")
    assert document is not None
    assert document.body.split()[0] == b"10"


@pytest.mark.parametrize("step", ["create", "replace"])
async def test_a_repeated_write_whose_answer_was_lost_is_recognised_as_our_own(
    step: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await open_store(f"s3://{bucket}/media").create("old", b"1")
    forget = Once(lambda request: request.method == "PUT")

    def forgetful(request: Request) -> Reply | None:
        reply = relayed(s3_server, request)
        return None if forget(request) else reply

    with serving(forgetful) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        told = await (store.create("new", b"2") if step == "create" else store.replace("old", b"2", version))
        document = await store.read("new" if step == "create" else "old")
    assert forget.happened
    assert document is not None
    assert (document.body, document.version) == (b"2", told)


async def test_a_conflict_is_tried_again(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = Once(lambda request: request.method == "PUT")
    body = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
    with serving(lambda r: Reply(409, {}, body) if conflict(r) else relayed(s3_server, r)) as proxy:
        await in_bucket(monkeypatch, proxy, bucket).create("one", b"1")
    assert conflict.happened


# ---------------------------------------------------------------- a store that guards money


async def test_a_store_that_honours_conditions_passes(store: Store) -> None:
    await store.check()
    await store.check()


async def test_an_s3_server_that_checks_more_passes(strict_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = in_bucket(monkeypatch, strict_s3)
    store.client().create_bucket(Bucket=store.bucket)
    await store.check()
    digest, _ = await written(store, "assets/clip.mp4", PART_BYTES + MIB)
    assert await store.sha256("assets/clip.mp4") == digest


@pytest.mark.parametrize("ignored", ["if-none-match", "if-match"])
async def test_an_s3_server_that_ignores_conditions_is_refused(
    ignored: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(request: Request) -> Reply:
        return relayed(s3_server, without(request, ignored))

    with serving(careless) as proxy, pytest.raises(UnsafeStore, match="both buy"):
        await in_bucket(monkeypatch, proxy, bucket).check()


@pytest.mark.parametrize("unknown", ["if-none-match", "if-match"])
async def test_an_s3_server_without_conditions_is_refused(
    unknown: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(request: Request) -> Reply:
        if unknown in request.headers:
            return Reply(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
        return relayed(s3_server, request)

    with serving(answers) as proxy, pytest.raises(UnsafeStore, match="both buy"):
        await in_bucket(monkeypatch, proxy, bucket).check()


async def test_who_checks_at_the_same_time_shares_one_proof_and_its_failure(
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


@pytest.mark.parametrize("folder", ["assets", "budgets", "campaigns", "claims", "receipts", "rejected"])
async def test_a_folder_of_the_bucket_that_may_not_be_written_is_named_before_anything_is_bought(
    folder: str, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(request: Request) -> Reply:
        closed = request.method in ("PUT", "POST") and f"/media/{folder}/" in request.path
        return refusing(403, "AccessDenied")(request) if closed else relayed(s3_server, request)

    with serving(answers) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        with pytest.raises(StoreRefused, match=f"Allow s3:PutObject on arn:aws:s3:::{bucket}/media/{folder}/\\*"):
            await store.check()
    assert unfinished(store) == 0


async def test_a_proof_leaves_no_object_but_the_one_of_the_conditions(store: Store) -> None:
    await store.check()
    left = [] if isinstance(store, LocalStore) else ["receipts/.conditional-writes"]
    assert [found.key for found in await store.find("")] == left
    assert unfinished(store) == 0


# ---------------------------------------------------------------- directories that are no ordinary ones


def without_links(error: int) -> Callable[..., None]:
    """Return the operating system's answer of a file system that has no hard links."""

    def link(*arguments: Any, **keywords: Any) -> None:
        raise OSError(error, os.strerror(error))

    return link


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
async def test_without_hard_links_one_of_many_creators_still_wins(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", without_links(error))
    store = open_store(tmp_path)
    await store.check()
    await test_exactly_one_of_many_concurrent_creators_wins(store)
    assert unfinished(store) == 0


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOTSUP, None], ids=["ENOLCK", "ENOTSUP", "no effect"])
async def test_a_directory_without_locks_is_refused(
    answer: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        if answer is not None:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UnsafeStore, match="s3://bucket/prefix"):
        await open_store(tmp_path).check()


WITHOUT_FCNTL = """
import asyncio, sys
sys.modules["fcntl"] = None  # as on Windows
import prefect_veogen
from prefect_veogen.errors import UnsafeStore
from prefect_veogen.store import open_store
try:
    asyncio.run(open_store(sys.argv[1]).check())
except UnsafeStore as error:
    print(error)
"""


def test_a_system_without_file_locks_imports_the_package_and_is_told_to_use_a_bucket(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path / "store")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "can't guard money" in told
    assert "Use s3://bucket/prefix as VEOGEN_STORE" in told
    assert not (tmp_path / "store").exists()


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory in which somebody without rights works, as we do then ourselves: root may write anywhere."""
    with TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(me)


@pytest.mark.parametrize("folder", ["", "assets", "claims", "receipts", ".unfinished"])
async def test_a_folder_that_may_not_be_written_is_named_before_anything_is_bought(
    folder: str, open_to_all: Path
) -> None:
    closed = open_to_all / "store" / folder
    closed.mkdir(parents=True)
    closed.chmod(0o555)
    with pytest.raises(StoreRefused, match="Permission denied") as caught:
        await open_store(open_to_all / "store").check()
    assert str(closed) in str(caught.value)
    closed.chmod(0o755)
    await open_store(open_to_all / "store").check()


async def test_a_folder_on_another_disk_is_refused_before_anything_is_bought(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "assets").symlink_to(elsewhere)
        with pytest.raises(StoreRefused, match="another file system"):
            await open_store(tmp_path).check()
        assert os.listdir(elsewhere) == []  # noqa: PTH208 - a symlink's other end


async def test_a_full_disk_is_refused_before_anything_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_full_disk = os.statvfs_result((4096, 4096, 1_000_000, 2, 2, 1000, 1000, 1000, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: of_a_full_disk)
    with pytest.raises(StoreUnavailable, match="8,192 bytes"):
        await open_store(tmp_path).check()


# ---------------------------------------------------------------- media


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 11 * PART_BYTES + 1])
async def test_a_stream_arrives_whole_and_is_visible_only_then(store: Store, size: int) -> None:
    before = store.writer("assets/clip.mp4", "video/mp4")
    await before.write(b"half of something")
    assert await store.find("") == []
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
    assert await store.find("") == []


@pytest.mark.parametrize("after", [0.1, 0.5], ids=["while it begins", "while it sends"])
async def test_a_cancelled_stream_leaves_nothing_after_abort(
    after: float, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[str] = []

    def slow_parts(request: Request) -> Reply:
        time.sleep(0.3 if "partNumber" in request.path or request.path.endswith("?uploads") else 0)
        reply = relayed(s3_server, request)
        answered.append(request.method)
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
        assert answered[-1] == "DELETE"
        assert unfinished(store) == 0


class HeldThreads(ThreadPoolExecutor):
    """Threads that have begun their work, but get nowhere until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.let_go = threading.Event(), threading.Event()

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        def held() -> Any:
            self.begun.set()
            self.let_go.wait()
            return work(*arguments, **keywords)

        return super().submit(held)


@pytest.mark.parametrize("step", ["write", "commit"])
async def test_a_cancelled_stream_into_a_directory_waits_for_the_thread_that_writes(step: str, tmp_path: Path) -> None:
    store, threads = open_store(str(tmp_path)), HeldThreads()
    writer = store.writer("assets/clip.mp4", "video/mp4")
    if step == "commit":
        await writer.write(b"clip")
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads)
    working = asyncio.create_task(writer.write(b"clip") if step == "write" else writer.commit())
    await loop.run_in_executor(ThreadPoolExecutor(1), threads.begun.wait)
    working.cancel()
    done, _ = await asyncio.wait([working], timeout=0.1)
    threads.let_go.set()
    await asyncio.gather(working, return_exceptions=True)
    await writer.abort()
    assert not done
    assert unfinished(store) == 0


@pytest.mark.parametrize("size", [10, PART_BYTES + 1])
async def test_a_stream_can_be_set_aside(store: Store, size: int) -> None:
    writer = store.writer("assets/clip.mp4", "video/mp4")
    await writer.write(bytes(size))
    kept = await writer.set_aside("rejected/clip")
    assert kept is (isinstance(store, LocalStore) or size < PART_BYTES)
    assert [found.key for found in await store.find("")] == (["rejected/clip"] if kept else [])
    assert unfinished(store) == 0


@pytest.mark.parametrize("kind", ["directory", "bucket"])
async def test_what_killed_writers_left_is_cleared_when_it_is_old(
    kind: str, tmp_path: Path, strict_s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    if kind == "bucket":
        store = in_bucket(monkeypatch, strict_s3, "unfinished")
        store.client().create_bucket(Bucket="unfinished")
    killed = [store.writer(key, "video/mp4") for key in ("assets/clip.mp4", "rejected/clip")]
    for writer in killed:
        await writer.write(bytes(PART_BYTES + 1))
    assert unfinished(store) == 2
    assert await store.clear_unfinished(3600) == 0
    assert await store.clear_unfinished(-5) == 2
    assert unfinished(store) == 0
    for writer in killed:
        with suppress(StoreUnavailable):  # there is nothing left to be aborted
            await writer.abort()


def test_parts_grow_so_that_the_largest_object_of_s3_fits() -> None:
    writer = _S3Writer(S3Store("bucket", ""), "key", "video/mp4")
    sizes = []
    for sent in range(10_000):
        writer._sent = sent
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


# ---------------------------------------------------------------- names and listings


@pytest.mark.parametrize("key", WEIRD_KEYS)
async def test_any_key_is_written_read_found_and_named(store: Store, key: str) -> None:
    await store.put(key, b"1", "text/plain")
    await store.create(f"{key}.json", b"2")
    document = await store.read(key)
    assert document is not None
    assert document.body == b"1"
    assert sorted(found.key for found in await store.find(key[:2])) == [key, f"{key}.json"]
    assert store.key(store.uri(key)) == key
    link = await store.link(key, 60)
    assert link is None or (await opened(link)).content == b"1"


async def test_a_listing_goes_on_over_all_pages(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []

    def small_pages(request: Request) -> Reply:
        if "list-type=2" in request.path:
            pages.append(request.path)
            request = replace(request, path=f"{request.path}&max-keys=7")
        return relayed(s3_server, request)

    keys = sorted(f"receipts/{number:03}.json" for number in range(20))
    with serving(small_pages) as proxy:
        store = in_bucket(monkeypatch, proxy, bucket)
        await asyncio.gather(*(store.put(key, b"{}", "application/json") for key in [*keys, "assets/other"]))
        assert [found.key for found in await store.find("receipts/")] == keys
    assert len(pages) == 3


async def test_only_what_is_below_the_prefix_is_found(store: Store) -> None:
    for key in ("receipts/v1-a-1.json", "receipts/v1-b-1.json", "receiptsx/v1-a-1.json", "assets/v1-a-1.json"):
        await store.put(key, b"{}", "application/json")
    assert [found.key for found in await store.find("receipts/v1-a")] == ["receipts/v1-a-1.json"]
    assert await store.find("nothing/here") == []
    assert await store.read("nothing/here") is None
    assert await store.stat("nothing/here") is None
    assert await store.stat("receipts/v1-a-1.json/below") is None


def test_a_foreign_uri_has_no_key(store: Store) -> None:
    assert store.key("s3://another-bucket/media/assets/x.png") is None
    assert store.key("file:///elsewhere/assets/x.png") is None
    assert store.key("https://veogen.studio/x.png") is None


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://no bucket/prefix",
        "s3://user:hunter2@bucket/prefix",
        "s3://bucket?key=hunter2",
        "s3://bucket/\ud800",
        "http://bucket/prefix",
        "gs://bucket/prefix",
        "S3://bucket/c",
        "s3:/bucket",
        "s3:bucket",
        Path("s3://bucket/prefix"),
        "file:/tmp/x",
        "file://",
        "file://relative/x",
        "file:///tmp/x?y",
        "",
        "  ",
        "~nobody-of-that-name/x",
        "a\0b",
        "\ud800",
        b"bytes",
    ],
    ids=ascii,
)
def test_what_is_no_store_is_refused_with_what_would_be_one(url: str | Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no place to store things") as caught:
        open_store(url)
    assert "s3://bucket/prefix, file:///absolute/path or a path (VEOGEN_STORE, store= or --store)" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/dev/null", Path(__file__), Path(__file__).as_uri()], ids=["device", "Path", "URL"])
def test_a_file_is_no_store(place: str | Path) -> None:
    with pytest.raises(ConfigurationError, match="is a file, not a directory"):
        open_store(place)


def test_paths_and_file_urls_name_the_same_directory(tmp_path: Path) -> None:
    by_path = open_store(str(tmp_path / "a b"))
    assert open_store((tmp_path / "a b").as_uri()) is by_path
    assert open_store("a b") is by_path
    assert open_store(Path("a b")) is by_path
    assert by_path.key((tmp_path / "a b" / "x").as_uri()) == "x"


def test_another_environment_or_process_is_another_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{bucket}/media")
    assert open_store(f"s3://{bucket}/media/") is store
    child = os.fork()
    if child == 0:
        os._exit(open_store(f"s3://{bucket}/media") is store)
    assert os.waitpid(child, 0)[1] == 0
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert open_store(f"s3://{bucket}/media") is not store


# ---------------------------------------------------------------- links


async def test_a_link_can_be_read_by_anybody_until_it_expires(strict_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = in_bucket(monkeypatch, strict_s3, "links")
    store.client().create_bucket(Bucket="links")
    await store.put("assets/x.png", b"picture", "image/png")
    link = await store.link("assets/x.png", 1)
    assert link is not None
    assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["1"]
    assert (await opened(link)).content == b"picture"
    assert (await opened(link.replace("x.png", "y.png"))).status_code == 403
    await asyncio.sleep(2.1)
    assert (await opened(link)).status_code == 403


# ---------------------------------------------------------------- failures


def every_call(store: Store) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "create": lambda: store.create("one", b"1"),
        "replace": lambda: store.replace("one", b"2", '"1"'),
        "put": lambda: store.put("one", b"1", "text/plain"),
        "read": lambda: store.read("one"),
        "find": lambda: store.find(""),
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


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (refusing(400, "InvalidRequest"), "400"),
        (lambda request: Reply(307, {"location": "http://127.0.0.1:9/"}), ""),
        (lambda request: Reply(200, {"content-type": "text/html"}, b"<html>Please sign in", cut_at=12), ""),
    ],
    ids=["400", "redirect", "half a page"],
)
async def test_what_s3_refuses_is_told_without_an_error_of_botocore(
    answers: Callable[[Request], Reply], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answers) as endpoint:
        failed = await failures(in_bucket(monkeypatch, endpoint))
    for call, error in failed.items():
        assert error is None or isinstance(error, VeogenError | Changed | AlreadyThere), (call, repr(error))
        if says:
            assert isinstance(error, StoreUnavailable), call
            assert says in str(error)
            assert "What to do: Check VEOGEN_STORE" in str(error)


PERMISSIONS = {
    "create": "s3:PutObject",
    "replace": "s3:PutObject",
    "put": "s3:PutObject",
    "read": "s3:GetObject",
    "find": "s3:ListBucket",
    "stat": "s3:GetObject",
    "sha256": "s3:GetObject",
    "check": "s3:PutObject",
    "clear_unfinished": "s3:ListBucketMultipartUploads",
    "small writer": "s3:PutObject",
    "large writer": "s3:PutObject",
}


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", ""),
        (403, "SomethingNew", ""),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "aws sso login"),
        (400, "TokenRefreshRequired", "aws sso login"),
        (403, "RequestTimeTooSkewed", "Set the clock"),
        (404, "NoSuchBucket", "There is no bucket one"),
        (301, "PermanentRedirect", "AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
    ],
)
async def test_what_only_the_setup_can_cure_is_told_once_with_its_name(
    status: int, code: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answers(request: Request) -> Reply:
        asked.append(request.path)
        return refusing(status, code)(request)

    with serving(answers) as endpoint:
        store = in_bucket(monkeypatch, endpoint)
        for call, work in every_call(store).items():
            if call == "stat" and status != 403:
                continue  # an answer to HEAD has no body, which would name the reason
            asked.clear()
            with pytest.raises(StoreRefused, match="run it again") as caught:
                await work()
            assert len(asked) == 1 or code == "PermanentRedirect", (call, asked)  # boto3 asks for the region itself
            if call != "stat" or not says:
                assert (says or f"{PERMISSIONS[call]} on arn:aws:s3:::one") in str(caught.value), call
            assert "Nothing was bought" not in str(caught.value)


async def test_the_region_of_the_bucket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>No.</Message><Region>eu-west-3</Region></Error>"
    with serving(lambda request: Reply(400, {}, body)) as endpoint:
        store = in_bucket(monkeypatch, endpoint)
        with pytest.raises(StoreRefused, match="Set AWS_DEFAULT_REGION to eu-west-3"):
            await store.put("one", b"1", "text/plain")


async def test_the_permission_that_aws_names_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"User: me is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:1:key/2"
    body = b"<Error><Code>AccessDenied</Code><Message>" + text + b"</Message></Error>"
    with serving(lambda request: Reply(403, {}, body)) as endpoint:
        store = in_bucket(monkeypatch, endpoint)
        with pytest.raises(StoreRefused, match=r"kms:GenerateDataKey.*\n.*Allow kms:GenerateDataKey"):
            await store.put("one", b"1", "text/plain")


async def test_a_role_that_cannot_be_assumed_is_a_matter_of_the_setup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = "aws_access_key_id = a\naws_secret_access_key = b\n"
    role = "role_arn = arn:aws:iam::123456789012:role/x\nsource_profile = me\nregion = us-east-1\n"
    (tmp_path / "config").write_text(f"[profile me]\n{keys}[profile one]\n{role}")
    with serving(refusing(403, "AccessDenied")) as endpoint:
        in_bucket(monkeypatch, endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "one")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
        with pytest.raises(StoreRefused, match="AssumeRole"):
            await S3Store("one", "").put("one", b"1", "text/plain")


async def test_boto3_is_told_the_name_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def answers(request: Request) -> Reply:
        names.append(request.headers["user-agent"])
        return refusing(403, "No")(request)

    with serving(answers) as endpoint, pytest.raises(StoreRefused):
        await in_bucket(monkeypatch, endpoint).put("one", b"1", "text/plain")
    assert "prefect-veogen/" in names[0]


@pytest.mark.parametrize("how", ["refused", "dropped", "not xml"])
async def test_a_server_that_is_not_there_is_told_without_an_error_of_botocore(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Reply(200, {"content-type": "text/html"}, b"<html><p>Please sign in</html>")
    with serving(lambda request: answer if how == "not xml" else None) as endpoint:
        store = in_bucket(monkeypatch, "http://127.0.0.1:9" if how == "refused" else endpoint)
        failed = await failures(store)
    for call, error in failed.items():
        if how == "not xml":
            assert error is None or isinstance(error, VeogenError | Changed | AlreadyThere), (call, repr(error))
        else:
            assert isinstance(error, STORE_TROUBLE), (call, repr(error))


@pytest.mark.parametrize("call", ["create", "link"])
async def test_missing_credentials_are_told_without_an_error_of_botocore(
    call: str, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = in_bucket(monkeypatch, s3_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = S3Store("one", "")
    with pytest.raises(StoreRefused, match="credentials"):
        await (store.create("one", b"1") if call == "create" else store.link("one", 60))


async def test_an_unknown_profile_is_a_matter_of_the_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match="nobody"):
        await open_store("s3://one/media").read("one")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "hunter2\n"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2\r\n"),
        ("AWS_SESSION_TOKEN", "hunt\ner2"),
        ("AWS_ENDPOINT_URL_S3", "http://user:hunter2@127.0.0.1:99999"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:port"),
        ("AWS_ENDPOINT_URL_S3", "ftp://127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_S3", "http://user:hunter2@no host"),
        ("HTTP_PROXY", "socks5://user:hunter2@127.0.0.1:9"),
        ("HTTP_PROXY", "http://user:hunter2@127.0.0.1:port"),
        ("HTTP_PROXY", "http://user:hunter2@127.0.0.1:99999"),
    ],
)
async def test_what_boto3_could_never_use_is_a_matter_of_the_setup_and_not_shown(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bucket(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    for error in (await failures(S3Store("one", "media"))).values():
        assert isinstance(error, ConfigurationError)
        assert variable in str(error)
        assert "hunt" not in f"{error} {error.__dict__}"


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_a_bundle_of_certificates_that_is_not_there_is_told_by_its_name(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bucket(monkeypatch, "https://127.0.0.1:9")
    monkeypatch.setenv(variable, "/nowhere.pem")
    with pytest.raises(ConfigurationError, match=f"{variable}=/nowhere.pem"):
        await S3Store("one", "media").read("one")


async def test_bytes_damaged_on_their_way_are_refused(strict_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging(request: Request) -> Reply:
        if request.body.startswith(b"picture"):
            request = replace(request, body=b"P" + request.body[1:])
        return relayed(strict_s3, request)

    with serving(damaging) as proxy:
        store = in_bucket(monkeypatch, proxy, "damaged")
        store.client().create_bucket(Bucket="damaged")
        with pytest.raises(StoreUnavailable, match="400"):
            await store.put("assets/x.png", b"picture", "image/png")
        assert await store.stat("assets/x.png") is None


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 3 MB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
async def test_a_stream_that_fills_the_disk_leaves_nothing_after_abort(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    writer = store.writer("assets/clip.mp4", "video/mp4")
    with pytest.raises(StoreUnavailable, match="could not be used"):
        for _ in range(5):
            await writer.write(bytes(1_000_123))
    with suppress(StoreUnavailable):
        await writer.abort()
    assert unfinished(store) == 0


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("step", ["create", "put"])
async def test_a_document_that_fills_the_disk_leaves_nothing(step: str, tmp_path: Path) -> None:
    store, body = open_store(str(tmp_path)), bytes(4_000_000)
    with pytest.raises(StoreUnavailable, match="could not be used"):
        await (store.create("one", body) if step == "create" else store.put("one", body, "text/plain"))
    assert unfinished(store) == 0


async def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    failed = await failures(open_store(str(tmp_path / "file" / "store")))
    assert {call for call, error in failed.items() if error is None} <= {"read", "find", "stat", "clear_unfinished"}
    for call, error in failed.items():
        assert error is None or isinstance(error, StoreUnavailable | Changed), (call, repr(error))


def test_the_tests_talk_to_a_real_s3_client(bucket: str) -> None:
    assert boto3.client("s3").head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPStatusCode"] == 200
