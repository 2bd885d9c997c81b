"""Where assets and receipts live: a directory or an S3 bucket, behind one interface. The only door to boto3.

Documents are small and written whole: *created* exactly once, or *replaced* only if unchanged since they were read. The
ledger's promise rests on these two, so a store that ignores the condition is refused. Media is streamed and becomes
visible only on `commit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from prefect_veogen.errors import ConfigurationError, StoreUnavailable, UnsafeStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import BinaryIO

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PART_BYTES = 8 * 1024 * 1024
_PARTS_IN_FLIGHT = 3
_READ_BYTES = 1024 * 1024
_MAX_CONFLICTS = 100
# Beside the objects of a directory, but none of them.
_UNFINISHED = ".unfinished/"
_LOCKS = ".locks/"


@dataclass(frozen=True, slots=True)
class Document:
    """A small object as read: its bytes, and the mark by which a change is noticed."""

    body: bytes
    version: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a listing tells of one object."""

    key: str
    modified: datetime
    size: int


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store itself says of one object: size in bytes and a mark which changes with the content."""

    size: int
    etag: str


class AlreadyThere(Exception):
    """The object to be created exists: somebody else was first."""


class Changed(Exception):
    """The object to be replaced is not as it was read: somebody else was faster."""


class Writer(ABC):
    """Media on its way into the store; invisible until `commit`, without a trace after `abort`."""

    @abstractmethod
    async def write(self, chunk: bytes) -> None:
        """Take the next bytes; waits while the store is slower than the source."""

    @abstractmethod
    async def commit(self) -> str:
        """Make the object visible, whole, and return its etag."""

    @abstractmethod
    async def abort(self) -> None:
        """Leave nothing behind; harmless if nothing was written."""

    @abstractmethod
    async def set_aside(self, key: str) -> bool:
        """Move what was written to another key, and abort; `False` if the store can't, and it is gone."""


class Store(ABC):
    """One place for assets and receipts; keys are relative paths with forward slashes."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return where an object is to be found, for people and other programs."""

    @abstractmethod
    def key(self, uri: str) -> str | None:
        """Return the key of a URI of this store, `None` if it is elsewhere."""

    @abstractmethod
    async def create(self, key: str, body: bytes) -> str:
        """Write a document that isn't there yet and return its version; exactly one of many callers succeeds.

        Raises:
            AlreadyThere: it exists; nothing was written.
        """

    @abstractmethod
    async def replace(self, key: str, body: bytes, version: str) -> str:
        """Overwrite a document if it is still at `version`, and return its new version.

        Raises:
            Changed: it isn't; nothing was written.
        """

    @abstractmethod
    async def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write a small object, whatever was there."""

    @abstractmethod
    async def read(self, key: str) -> Document | None:
        """Return a document, `None` if there is none."""

    @abstractmethod
    async def find(self, prefix: str) -> list[Found]:
        """Return all objects below a prefix, however many pages that takes."""

    @abstractmethod
    async def stat(self, key: str) -> Stat | None:
        """Return an object's size and etag, `None` if there is none."""

    @abstractmethod
    async def sha256(self, key: str) -> str:
        """Return an object's digest by reading all of it, in constant memory."""

    @abstractmethod
    def writer(self, key: str, content_type: str) -> Writer:
        """Return a stream into an object."""

    @abstractmethod
    async def link(self, key: str, seconds: int) -> str | None:
        """Return a link anybody can read for so long, `None` if the store has no such thing."""

    @abstractmethod
    async def check(self) -> None:
        """Pass a store that guards money.

        Raises:
            UnsafeStore: it ignores conditional writes.
        """

    @abstractmethod
    async def clear_unfinished(self, older_than_seconds: float) -> int:
        """Remove what killed writers left behind, and return how many such things there were."""


def open_store(url: str) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///path` or a path.

    Raises:
        ConfigurationError: it is none of these.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _local(str(Path(url).expanduser().resolve()))
    if scheme == "file":
        return _local(str(Path(unquote(urlsplit(url).path)).resolve()))
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ConfigurationError(
            f"VEOGEN_STORE={url!r} is no place to store things",
            next_step="Give s3://bucket/prefix, file:///path or a path.",
        )
    # boto3 reads its environment once, when a client is made: another environment is another store. And a forked
    # process must not speak on its parent's connections.
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _s3(bucket, prefix.strip("/"), environment, os.getpid())


# ---------------------------------------------------------------- a directory


class LocalStore(Store):
    """A directory; several processes on one machine may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def uri(self, key: str) -> str:
        return (self.root / key).as_uri()

    def key(self, uri: str) -> str | None:
        if not uri.startswith("file:"):
            return None
        path = Path(unquote(urlsplit(uri).path))
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None

    async def create(self, key: str, body: bytes) -> str:
        return await _in_thread(self._create, key, body)

    async def replace(self, key: str, body: bytes, version: str) -> str:
        return await _in_thread(self._replace, key, body, version)

    async def put(self, key: str, body: bytes, content_type: str) -> None:
        await _in_thread(self._put, key, body)

    async def read(self, key: str) -> Document | None:
        return await _in_thread(self._read, key)

    async def find(self, prefix: str) -> list[Found]:
        return await _in_thread(lambda: list(self._find(prefix)))

    async def stat(self, key: str) -> Stat | None:
        return await _in_thread(self._stat, key)

    async def sha256(self, key: str) -> str:
        return await _in_thread(self._sha256, key)

    def writer(self, key: str, content_type: str) -> Writer:
        return _LocalWriter(self, key)

    async def link(self, key: str, seconds: int) -> str | None:
        return None

    async def check(self) -> None:
        if sys.platform == "win32":
            raise UnsafeStore("A directory on Windows can't guard money", next_step="Use an S3 bucket as VEOGEN_STORE.")
        await _in_thread(self.root.mkdir, parents=True, exist_ok=True)

    async def clear_unfinished(self, older_than_seconds: float) -> int:
        return await _in_thread(self._clear_unfinished, older_than_seconds)

    def _create(self, key: str, body: bytes) -> str:
        target = self._made_room_for(key)
        temporary = self._temporary(body)
        try:
            # A link appears whole or not at all, and only if the name is free.
            os.link(temporary, target)
        except FileExistsError:
            raise AlreadyThere(key) from None
        finally:
            temporary.unlink()
        _sync_directory(target.parent)
        return _digest(body)

    def _replace(self, key: str, body: bytes, version: str) -> str:
        with self._locked(key):
            document = self._read(key)
            if document is None or document.version != version:
                raise Changed(key)
            self._put(key, body)
        return _digest(body)

    def _put(self, key: str, body: bytes) -> None:
        target = self._made_room_for(key)
        self._temporary(body).replace(target)
        _sync_directory(target.parent)

    def _read(self, key: str) -> Document | None:
        try:
            body = (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Document(body, _digest(body))

    def _find(self, prefix: str) -> Iterator[Found]:
        folder = self.root / prefix.rpartition("/")[0]
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(self.root).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if key.startswith(prefix) and not key.startswith((_UNFINISHED, _LOCKS)) and path.is_file():
                    stat = path.stat()
                    yield Found(key, datetime.fromtimestamp(stat.st_mtime, UTC), stat.st_size)

    def _stat(self, key: str) -> Stat | None:
        try:
            return _file_stat(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _sha256(self, key: str) -> str:
        with (self.root / key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _made_room_for(self, key: str) -> Path:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _temporary(self, body: bytes) -> Path:
        path, file = self._open_temporary()
        with file:
            file.write(body)
            _flush_to_disk(file)
        return path

    def _open_temporary(self) -> tuple[Path, BinaryIO]:
        path = self._made_room_for(f"{_UNFINISHED}{uuid.uuid4().hex}")
        return path, path.open("xb")

    def _clear_unfinished(self, older_than_seconds: float) -> int:
        oldest, cleared = datetime.now(UTC).timestamp() - older_than_seconds, 0
        for path in (self.root / _UNFINISHED).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_mtime < oldest:
                    path.unlink()
                    cleared += 1
        return cleared

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        import fcntl

        # The kernel lets go of this lock when its holder dies, however it dies.
        name = hashlib.sha256(key.encode()).hexdigest()[:2]
        with self._made_room_for(f"{_LOCKS}{name}").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _LocalWriter(Writer):
    def __init__(self, store: LocalStore, key: str) -> None:
        self._store = store
        self._key = key
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    async def write(self, chunk: bytes) -> None:
        await _in_thread(self._write, chunk)

    async def commit(self) -> str:
        return await _in_thread(self._commit)

    async def abort(self) -> None:
        await _in_thread(self._abort)

    async def set_aside(self, key: str) -> bool:
        self._key = key
        await self.commit()
        return True

    def _write(self, chunk: bytes) -> None:
        self._opened().write(chunk)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._path, self._file = self._store._open_temporary()  # noqa: SLF001 - same module
        return self._file

    def _commit(self) -> str:
        file = self._opened()
        _flush_to_disk(file)
        file.close()
        target = self._store._made_room_for(self._key)  # noqa: SLF001 - same module
        assert self._path is not None
        self._path.replace(target)
        self._path = None
        _sync_directory(target.parent)
        return _file_stat(target).etag

    def _abort(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@lru_cache(maxsize=16)
def _local(root: str) -> LocalStore:
    return LocalStore(Path(root))


def _file_stat(path: Path) -> Stat:
    stat = path.stat()
    return Stat(stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- a bucket


class S3Store(Store):
    """A prefix of an S3 bucket, reached the way boto3 always is (environment, profile, role)."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._client_lock = threading.Lock()
        self._client: Any = None
        self._checked = False

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def key(self, uri: str) -> str | None:
        own = self.uri("")
        return uri.removeprefix(own) if uri.startswith(own) else None

    async def create(self, key: str, body: bytes) -> str:
        try:
            return await self._put_if(key, body, IfNoneMatch="*")
        except Changed:
            raise AlreadyThere(key) from None

    async def replace(self, key: str, body: bytes, version: str) -> str:
        return await self._put_if(key, body, IfMatch=version)

    async def put(self, key: str, body: bytes, content_type: str) -> None:
        try:
            await self._call("put_object", Key=self.prefix + key, Body=body, ContentType=content_type)
        except _Refused as refused:
            raise self._unavailable(refused) from None

    async def read(self, key: str) -> Document | None:
        return await _in_thread(self._read, key)

    async def find(self, prefix: str) -> list[Found]:
        return await _in_thread(self._find, prefix)

    async def stat(self, key: str) -> Stat | None:
        try:
            head = await self._call("head_object", Key=self.prefix + key)
        except _Refused as refused:
            if refused.status == 404:
                return None
            raise self._unavailable(refused) from None
        return Stat(int(head["ContentLength"]), str(head["ETag"]))

    async def sha256(self, key: str) -> str:
        return await _in_thread(self._sha256, key)

    def writer(self, key: str, content_type: str) -> Writer:
        return _S3Writer(self, key, content_type)

    async def link(self, key: str, seconds: int) -> str | None:
        return str(await _in_thread(self._link, key, seconds))

    async def check(self) -> None:
        if self._checked:
            return
        probe, body = "receipts/.conditional-writes", b"This object shows that the store honours conditional writes.\n"
        with contextlib.suppress(AlreadyThere):
            await self.create(probe, body)
        honoured = await self._refuses(probe, body, IfNoneMatch="*")
        if not honoured or not await self._refuses(probe, body, IfMatch='"00000000000000000000000000000000"'):
            raise self._unsafe()
        self._checked = True

    async def clear_unfinished(self, older_than_seconds: float) -> int:
        return await _in_thread(self._clear_unfinished, older_than_seconds)

    def client(self) -> Any:
        """Return the boto3 client, made on first use: importing boto3 takes its time."""
        with self._client_lock:
            if self._client is None:
                import boto3
                from botocore.config import Config
                from botocore.exceptions import BotoCoreError

                config = Config(signature_version="s3v4", max_pool_connections=50)
                if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
                    config = config.merge(Config(retries={"mode": "standard", "max_attempts": 5}))
                try:
                    self._client = boto3.session.Session().client("s3", config=config)
                except (BotoCoreError, ValueError) as error:
                    raise ConfigurationError(f"boto3 can't reach S3 as it is set up: {error}") from None
            return self._client

    async def _put_if(self, key: str, body: bytes, **condition: str) -> str:
        for _ in range(_MAX_CONFLICTS):
            try:
                answer = await self._call(
                    "put_object", Key=self.prefix + key, Body=body, ContentType="application/json", **condition
                )
            except _Refused as refused:
                if refused.status == 409:
                    await asyncio.sleep(0.05)
                    continue
                if refused.status == 501:
                    raise self._unsafe() from None
                # IfMatch on an object that is gone is answered with 404.
                if refused.status not in (412, 404):
                    raise self._unavailable(refused) from None
                document = await self.read(key)
                if document is not None and document.body == body:
                    # boto3 repeats a write whose answer was lost; the second one then meets the first.
                    return document.version
                raise Changed(key) from None
            return str(answer["ETag"])
        raise StoreUnavailable(f"{self.uri(key)} is written to by too many at once")

    async def _refuses(self, key: str, body: bytes, **condition: str) -> bool:
        try:
            await self._call("put_object", Key=self.prefix + key, Body=body, **condition)
        except _Refused as refused:
            if refused.status in (409, 412):
                return True
            if refused.status != 501:
                raise self._unavailable(refused) from None
        return False

    def _read(self, key: str) -> Document | None:
        try:
            answer = self._call_now("get_object", Key=self.prefix + key)
            with _store_errors(self):
                return Document(answer["Body"].read(), str(answer["ETag"]))
        except _Refused as refused:
            if refused.code in ("NoSuchKey", "404"):
                return None
            raise self._unavailable(refused) from None

    def _find(self, prefix: str) -> list[Found]:
        found = []
        with _store_errors(self):
            pages = self.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for item in page.get("Contents", ()):
                    key = str(item["Key"]).removeprefix(self.prefix)
                    found.append(Found(key, item["LastModified"], int(item["Size"])))
        return found

    def _link(self, key: str, seconds: int) -> str:
        target = {"Bucket": self.bucket, "Key": self.prefix + key}
        with _store_errors(self):
            return str(self.client().generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        try:
            answer = self._call_now("get_object", Key=self.prefix + key)
            with _store_errors(self):
                for chunk in answer["Body"].iter_chunks(_READ_BYTES):
                    digest.update(chunk)
        except _Refused as refused:
            raise self._unavailable(refused) from None
        return digest.hexdigest()

    def _clear_unfinished(self, older_than_seconds: float) -> int:
        oldest, cleared = datetime.now(UTC).timestamp() - older_than_seconds, 0
        with _store_errors(self):
            pages = self.client().get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + "assets/"):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"].timestamp() < oldest:
                        self.client().abort_multipart_upload(
                            Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        cleared += 1
        return cleared

    async def _call(self, operation: str, **arguments: Any) -> Any:
        return await _in_thread(self._call_now, operation, **arguments)

    def _call_now(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import ClientError

        client = self.client()
        with _store_errors(self):
            try:
                answer = getattr(client, operation)(Bucket=self.bucket, **arguments)
            except ClientError as error:
                raise _Refused(error.response) from None
        if _TELLS.get(operation, "ResponseMetadata") not in answer:
            raise StoreUnavailable(f"What answers at {self.uri('')} is no S3 server")
        return answer

    def _unsafe(self) -> UnsafeStore:
        return UnsafeStore(f"The store at {self.uri('')} ignores conditional writes, so two workers could both buy")

    def _unavailable(self, refused: _Refused) -> StoreUnavailable:
        return StoreUnavailable(
            f"The store at {self.uri('')} refused: {refused.code} (HTTP {refused.status}). {refused.text}"
        )


# What an answer is worth nothing without.
_TELLS = {
    "complete_multipart_upload": "ETag",
    "create_multipart_upload": "UploadId",
    "get_object": "ETag",
    "head_object": "ETag",
    "put_object": "ETag",
    "upload_part": "ETag",
}


class _Refused(Exception):
    """The bucket answered, and said no."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        self.code = str(response.get("Error", {}).get("Code", ""))
        self.text = str(response.get("Error", {}).get("Message", ""))


@contextlib.contextmanager
def _store_errors(store: S3Store) -> Iterator[None]:
    """Let no error of botocore leave this module."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise store._unavailable(_Refused(error.response)) from None  # noqa: SLF001 - same module
    except (BotoCoreError, HTTPClientError, ResponseParserError, RecursionError) as error:
        raise StoreUnavailable(f"The store at {store.uri('')} could not be reached: {error}") from None


class _S3Writer(Writer):
    """A multipart upload, or a single PUT for what fits into one part."""

    def __init__(self, store: S3Store, key: str, content_type: str) -> None:
        self._store = store
        self._key = store.prefix + key
        self._content_type = content_type
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: dict[int, str] = {}
        self._sent = 0
        self._in_flight: deque[asyncio.Task[None]] = deque()

    async def write(self, chunk: bytes) -> None:
        self._buffer += chunk
        while len(self._buffer) >= self._part_bytes():
            part = bytes(self._buffer[: self._part_bytes()])
            del self._buffer[: len(part)]
            await self._send(part)

    async def commit(self) -> str:
        if self._upload_id is None:
            answer = await self._call("put_object", Body=bytes(self._buffer), ContentType=self._content_type)
            return str(answer["ETag"])
        if self._buffer:
            await self._send(bytes(self._buffer))
        while self._in_flight:
            await self._in_flight.popleft()
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._parts.items())]
        answer = await self._call(
            "complete_multipart_upload", UploadId=self._upload_id, MultipartUpload={"Parts": parts}
        )
        return str(answer["ETag"])

    async def abort(self) -> None:
        for task in self._in_flight:
            task.cancel()
        # A part that is still being sent would survive the abort, so all of them are awaited first.
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        self._in_flight.clear()
        if self._upload_id is not None:
            upload_id, self._upload_id = self._upload_id, None
            await self._call("abort_multipart_upload", UploadId=upload_id)

    async def set_aside(self, key: str) -> bool:
        if self._upload_id is None or self._key == self._store.prefix + key:
            self._key = self._store.prefix + key
            await self.commit()
            return True
        # An upload under way can't be renamed.
        await self.abort()
        return False

    def _part_bytes(self) -> int:
        # S3 takes at most 10,000 parts: they grow with the object, so that its size needn't be known beforehand.
        return PART_BYTES << (self._sent // 1000)

    async def _send(self, part: bytes) -> None:
        if self._upload_id is None:
            await _uninterrupted(self._begin())
        self._sent += 1
        self._in_flight.append(asyncio.create_task(self._send_part(self._sent, part)))
        if len(self._in_flight) >= _PARTS_IN_FLIGHT:
            await self._in_flight.popleft()

    async def _begin(self) -> None:
        answer = await self._call("create_multipart_upload", ContentType=self._content_type)
        self._upload_id = str(answer["UploadId"])

    async def _send_part(self, number: int, part: bytes) -> None:
        answer = await _uninterrupted(self._call("upload_part", UploadId=self._upload_id, PartNumber=number, Body=part))
        self._parts[number] = str(answer["ETag"])

    async def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return await self._store._call(operation, Key=self._key, **arguments)  # noqa: SLF001 - same module
        except _Refused as refused:
            raise self._store._unavailable(refused) from None  # noqa: SLF001 - same module


@lru_cache(maxsize=16)
def _s3(bucket: str, prefix: str, environment: tuple[tuple[str, str], ...], pid: int) -> S3Store:  # noqa: ARG001 - cache key
    return S3Store(bucket, prefix)


async def _uninterrupted(work: Coroutine[Any, Any, Any]) -> Any:
    """Return the work's result; who is cancelled meanwhile waits for its end too, since a thread can't be stopped."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _in_thread(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
) -> Result:
    try:
        return await asyncio.to_thread(function, *arguments, **keywords)
    except (AlreadyThere, Changed):
        raise
    except OSError as error:
        raise StoreUnavailable(f"The store could not be used: {error}") from None
