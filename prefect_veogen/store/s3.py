"""An S3 bucket as a store: conditional PUTs, multipart uploads. The only door to boto3."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from prefect_veogen.errors import ConfigurationError, StoreUnavailable, UnsafeStore, masked
from prefect_veogen.process.io_loop import uninterrupted
from prefect_veogen.settings import user_agent
from prefect_veogen.store.interface import (
    FOLDERS,
    AlreadyThere,
    Changed,
    Document,
    Found,
    Stat,
    Store,
    Writer,
    in_thread,
)
from prefect_veogen.store.refusals import Place, Refused, unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

PART_BYTES = 8 * 1024 * 1024
_PARTS_IN_FLIGHT = 3
_READ_BYTES = 1024 * 1024
_MAX_CONFLICTS = 100
_PROBE = ".probe"
_NO_ETAG = '"00000000000000000000000000000000"'


class S3Store(Store):
    """A prefix of an S3 bucket, reached the way boto3 always is (environment, profile, role)."""

    def __init__(self, bucket: str, prefix: str) -> None:
        super().__init__()
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._client_lock = threading.Lock()
        self._client: Any = None

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
        except Refused as refused:
            raise refused.told() from None

    async def read(self, key: str) -> Document | None:
        return await in_thread(self._read, key)

    async def find(self, prefix: str) -> list[Found]:
        return await in_thread(self._find, prefix)

    async def stat(self, key: str) -> Stat | None:
        try:
            head = await self._call("head_object", Key=self.prefix + key)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise refused.told() from None
        return Stat(int(head["ContentLength"]), str(head["ETag"]))

    async def sha256(self, key: str) -> str:
        return await in_thread(self._sha256, key)

    def writer(self, key: str, content_type: str) -> Writer:
        return _S3Writer(self, key, content_type)

    async def link(self, key: str, seconds: int) -> str | None:
        return str(await in_thread(self._link, key, seconds))

    async def _prove(self) -> None:
        probe, body = "receipts/.conditional-writes", b"This object shows that the store honours conditional writes.\n"
        with contextlib.suppress(AlreadyThere):
            await self.create(probe, body)
        honoured = await self._refuses(probe, body, IfNoneMatch="*")
        if not honoured or not await self._refuses(probe, body, IfMatch=_NO_ETAG):
            raise self._unsafe()
        # All to their end: an upload that was begun is to be aborted, whatever else fails.
        outcomes = await asyncio.gather(
            in_thread(self._list_one),
            self._begin_and_abort(),
            self.stat(f"assets/{_PROBE}"),
            *(self._try_writing(folder) for folder in FOLDERS if folder not in ("assets/", "receipts/")),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _try_writing(self, folder: str) -> None:
        # Whether one may write is decided before the condition, which nothing fulfils: so nothing is left behind.
        await self._refuses(f"{folder}{_PROBE}", b"", IfMatch=_NO_ETAG)

    async def _begin_and_abort(self) -> None:
        upload = _S3Writer(self, f"assets/{_PROBE}", "application/octet-stream")
        await upload.begin()
        await upload.abort()

    def _list_one(self) -> None:
        try:
            self._call_now("list_objects_v2", Prefix=f"{self.prefix}receipts/", MaxKeys=1)
        except Refused as refused:
            raise refused.told() from None

    async def clear_unfinished(self, older_than_seconds: float) -> int:
        return await in_thread(self._clear_unfinished, older_than_seconds)

    def client(self) -> Any:
        """Return the boto3 client, made on first use: importing boto3 takes its time."""
        with self._client_lock:
            if self._client is None:
                import boto3
                from botocore.config import Config
                from botocore.exceptions import BotoCoreError

                config = Config(signature_version="s3v4", max_pool_connections=50, user_agent_extra=user_agent())
                if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
                    config = config.merge(Config(retries={"mode": "standard", "max_attempts": 5}))
                try:
                    client = boto3.session.Session().client("s3", config=config)
                    _check_setup(client.meta.endpoint_url)
                except (BotoCoreError, ValueError) as error:
                    raise ConfigurationError(
                        f"boto3 can't reach S3 as it is set up: {masked(str(error))}",
                        next_step="Check what it names: AWS_ENDPOINT_URL_S3 and the other AWS_ variables, boto3's "
                        "profile, or a proxy.",
                    ) from None
                self._client = client
            return self._client

    def checksum_of_parts(self) -> dict[str, str]:
        """Return how a multipart upload announces the checksums which boto3 adds to its parts, if it does."""
        adds_them = self.client().meta.config.request_checksum_calculation == "when_supported"
        return {"ChecksumAlgorithm": "CRC32"} if adds_them else {}

    async def _put_if(self, key: str, body: bytes, **condition: str) -> str:
        for _ in range(_MAX_CONFLICTS):
            try:
                answer = await self._call(
                    "put_object", Key=self.prefix + key, Body=body, ContentType="application/json", **condition
                )
            except Refused as refused:
                if refused.status == 409:
                    await asyncio.sleep(0.05)
                    continue
                if refused.status == 501:
                    raise self._unsafe() from None
                # IfMatch on an object that is gone is answered with 404.
                if refused.status not in (412, 404) or refused.code == "NoSuchBucket":
                    raise refused.told() from None
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
        except Refused as refused:
            if refused.status in (409, 412):
                return True
            if refused.status == 404 and refused.code != "NoSuchBucket":  # a condition on what isn't there
                return True
            if refused.status != 501:
                raise refused.told() from None
        return False

    def _read(self, key: str) -> Document | None:
        try:
            answer = self._call_now("get_object", Key=self.prefix + key)
            with _store_errors(self._place(self.prefix + key)):
                return Document(answer["Body"].read(), str(answer["ETag"]))
        except Refused as refused:
            if refused.code in ("NoSuchKey", "404"):
                return None
            raise refused.told() from None

    def _find(self, prefix: str) -> list[Found]:
        found = []
        with _store_errors(self._place()):
            pages = self.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for item in page.get("Contents", ()):
                    key = str(item["Key"]).removeprefix(self.prefix)
                    found.append(Found(key, item["LastModified"], int(item["Size"])))
        return found

    def _link(self, key: str, seconds: int) -> str:
        target = {"Bucket": self.bucket, "Key": self.prefix + key}
        with _store_errors(self._place()):
            return str(self.client().generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        try:
            answer = self._call_now("get_object", Key=self.prefix + key)
            with _store_errors(self._place(self.prefix + key)):
                for chunk in answer["Body"].iter_chunks(_READ_BYTES):
                    digest.update(chunk)
        except Refused as refused:
            raise refused.told() from None
        return digest.hexdigest()

    def _clear_unfinished(self, older_than_seconds: float) -> int:
        oldest = datetime.now(UTC).timestamp() - older_than_seconds
        with _store_errors(self._place()):
            client = self.client()
            pages = client.get_paginator("list_multipart_uploads")
            uploads = [
                upload
                for folder in ("assets/", "rejected/")  # where media goes
                for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + folder)
                for upload in page.get("Uploads", ())
                if upload["Initiated"].timestamp() < oldest
            ]
            for upload in uploads:
                client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(uploads)

    async def _call(self, operation: str, **arguments: Any) -> Any:
        return await in_thread(self._call_now, operation, **arguments)

    def _call_now(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import ClientError

        client = self.client()
        place = self._place(str(arguments.get("Key", "")))
        with _store_errors(place):
            try:
                answer = getattr(client, operation)(Bucket=self.bucket, **arguments)
            except ClientError as error:
                raise Refused(error, place) from None
        if _TELLS.get(operation, "ResponseMetadata") not in answer:
            raise StoreUnavailable(f"What answers at {self.uri('')} is no S3 server")
        return answer

    def _place(self, key: str = "") -> Place:
        return Place(self.bucket, self.prefix, key)

    def _unsafe(self) -> UnsafeStore:
        return UnsafeStore(f"The store at {self.uri('')} ignores conditional writes, so two workers could both buy")


def _check_setup(endpoint: str) -> None:
    """Pass what boto3 takes without a look and then fails with at every call, quoting it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if not re.fullmatch(r"[\x21-\x7e]*", os.environ.get(name, "")):
            raise ValueError(f"{name} holds characters which no key can have, such as a line break")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or parts.port == 0:  # asking for the port refuses one that is none
        raise ValueError(f"{endpoint} is no endpoint")
    proxy = getproxies().get(parts.scheme, "")
    if proxy and not proxy_bypass(parts.netloc):
        _check_proxy(f"{parts.scheme.upper()}_PROXY", proxy if "://" in proxy else f"http://{proxy}")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        bundle = os.environ.get(name)
        if parts.scheme == "https" and bundle and not Path(bundle).exists():
            raise ValueError(f"{name}={bundle}: there is no such file")


def _check_proxy(variable: str, url: str) -> None:
    proxy = urlsplit(url)
    try:
        fits = proxy.scheme in ("http", "https") and proxy.hostname and proxy.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{variable}={url} is no HTTP proxy, and boto3 knows no others")


# What an answer is worth nothing without.
_TELLS = {
    "complete_multipart_upload": "ETag",
    "create_multipart_upload": "UploadId",
    "get_object": "ETag",
    "head_object": "ETag",
    "put_object": "ETag",
    "upload_part": "ETag",
}


@contextlib.contextmanager
def _store_errors(place: Place) -> Iterator[None]:
    """Let no error of botocore leave this module."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise Refused(error, place).told() from None
    except (BotoCoreError, HTTPClientError, ResponseParserError, RecursionError) as error:
        raise unreachable(error, place) from None


class _S3Writer(Writer):
    """A multipart upload, or a single PUT for what fits into one part."""

    def __init__(self, store: S3Store, key: str, content_type: str) -> None:
        self._store = store
        self._key = store.prefix + key
        self._content_type = content_type
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}
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
        parts = {"Parts": [self._parts[number] for number in sorted(self._parts)]}
        answer = await self._call("complete_multipart_upload", UploadId=self._upload_id, MultipartUpload=parts)
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
            await uninterrupted(self.begin())
        self._sent += 1
        self._in_flight.append(asyncio.create_task(self._send_part(self._sent, part)))
        if len(self._in_flight) >= _PARTS_IN_FLIGHT:
            await self._in_flight.popleft()

    async def begin(self) -> None:
        """Announce an upload in parts."""
        answer = await self._call(
            "create_multipart_upload", ContentType=self._content_type, **self._store.checksum_of_parts()
        )
        self._upload_id = str(answer["UploadId"])

    async def _send_part(self, number: int, part: bytes) -> None:
        answer = await uninterrupted(self._call("upload_part", UploadId=self._upload_id, PartNumber=number, Body=part))
        self._parts[number] = {"PartNumber": number, "ETag": str(answer["ETag"])}
        if "ChecksumCRC32" in answer:
            self._parts[number]["ChecksumCRC32"] = answer["ChecksumCRC32"]

    async def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return await self._store._call(operation, Key=self._key, **arguments)  # noqa: SLF001 - same module
        except Refused as refused:
            raise refused.told() from None
