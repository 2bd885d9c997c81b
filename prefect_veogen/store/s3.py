"""An S3 bucket as a store: conditional PUTs, multipart uploads."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect_veogen.errors import StoreUnavailable, UnsafeStore
from prefect_veogen.store.interface import (
    FOLDERS,
    THUMBNAILS,
    AlreadyExists,
    Document,
    ListedObject,
    Stat,
    Store,
    VersionConflict,
    in_thread,
)
from prefect_veogen.store.refusals import S3Location, S3Refusal, convert_errors
from prefect_veogen.store.s3_client import make_client
from prefect_veogen.store.s3_writer import S3Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_veogen.store.interface import Writer
    from prefect_veogen.store.s3_client import S3Access

_READ_BYTES = 1024 * 1024
_MAX_CONFLICTS = 100
PROOF = "receipts/.conditional-writes"
"""The document that `check` leaves behind."""
_PROBE = ".probe"
_NO_ETAG = '"00000000000000000000000000000000"'


class S3Store(Store):
    """A prefix of an S3 bucket, reached the way boto3 always is (environment, profile, role) unless by `access`."""

    def __init__(self, bucket: str, prefix: str, access: S3Access | None = None) -> None:
        super().__init__()
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.access = access
        self._client_lock = threading.Lock()
        self._client: Any = None
        self._client_ends = math.inf

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def key(self, uri: str) -> str | None:
        own = self.uri("")
        return uri.removeprefix(own) if uri.startswith(own) else None

    async def create(self, key: str, body: bytes) -> str:
        try:
            return await self._put_if(key, body, IfNoneMatch="*")
        except VersionConflict:
            raise AlreadyExists(key) from None

    async def replace(self, key: str, body: bytes, version: str) -> str:
        return await self._put_if(key, body, IfMatch=version)

    async def put(self, key: str, body: bytes, content_type: str) -> None:
        await self._call_object("put_object", key, Body=body, ContentType=content_type)

    async def read(self, key: str) -> Document | None:
        return await in_thread(self._read, key)

    async def list_objects(self, prefix: str) -> list[ListedObject]:
        return await in_thread(self._list_objects, prefix)

    async def stat(self, key: str) -> Stat | None:
        try:
            head = await self._call("head_object", Key=self.prefix + key)
        except S3Refusal as refusal:
            if refusal.status == 404:
                return None
            raise refusal.to_error() from None
        return Stat(int(head["ContentLength"]), str(head["ETag"]))

    async def read_through(self, key: str, take: Callable[[bytes], None]) -> Stat | None:
        return await in_thread(self._read_through, key, take)

    def writer(self, key: str, content_type: str) -> Writer:
        return self._writer(key, content_type)

    async def presign(self, key: str, seconds: int) -> str | None:
        return str(await in_thread(self._presign, key, seconds))

    async def _prove(self) -> None:
        body = b"This object shows that the store honours conditional writes.\n"
        with contextlib.suppress(AlreadyExists):
            await self.create(PROOF, body)
        honoured = await self._refuses(PROOF, body, IfNoneMatch="*")
        if not honoured or not await self._refuses(PROOF, body, IfMatch=_NO_ETAG):
            raise self._unsafe()
        # No check stops another: an upload that was started has to be aborted, whatever else fails.
        outcomes = await asyncio.gather(
            in_thread(self._try_listing),
            self._try_multipart_upload(),
            self.stat(f"assets/{_PROBE}"),
            *(self._try_writing(folder) for folder in FOLDERS if folder not in ("assets/", "receipts/", THUMBNAILS)),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _try_writing(self, folder: str) -> None:
        # S3 checks the permission before the condition, which is never met: so nothing is left behind.
        await self._refuses(f"{folder}{_PROBE}", b"", IfMatch=_NO_ETAG)

    async def _try_multipart_upload(self) -> None:
        upload = self._writer(f"assets/{_PROBE}", "application/octet-stream")
        await upload.begin()
        await upload.abort()

    def _try_listing(self) -> None:
        try:
            self._call_in_thread("list_objects_v2", Prefix=f"{self.prefix}receipts/", MaxKeys=1)
        except S3Refusal as refusal:
            raise refusal.to_error() from None

    async def clear_unfinished(self, older_than_seconds: float) -> int:
        return await in_thread(self._clear_unfinished, older_than_seconds)

    def client(self) -> Any:
        """Return the boto3 client, created on first use because importing boto3 is slow; blocks its thread."""
        with self._client_lock:
            if self._client is None or time.monotonic() >= self._client_ends:
                self._client = make_client(self.access, self._location())
                self._client_ends = time.monotonic() + (self.access.lifetime_seconds if self.access else math.inf)
            return self._client

    def checksum_of_parts(self) -> dict[str, str]:
        """Return the argument that declares the checksums boto3 adds to the parts of an upload, if it adds them."""
        adds_checksums = self.client().meta.config.request_checksum_calculation == "when_supported"
        return {"ChecksumAlgorithm": "CRC32"} if adds_checksums else {}

    async def _put_if(self, key: str, body: bytes, **condition: str) -> str:
        for _ in range(_MAX_CONFLICTS):
            try:
                response = await self._call(
                    "put_object", Key=self.prefix + key, Body=body, ContentType="application/json", **condition
                )
            except S3Refusal as refusal:
                if refusal.status == 409:
                    await asyncio.sleep(0.05)
                    continue
                if refusal.status == 501:
                    raise self._unsafe() from None
                # IfMatch on a missing object gets 404.
                if refusal.status not in (412, 404) or refusal.code == "NoSuchBucket":
                    raise refusal.to_error() from None
                document = await self.read(key)
                if document is not None and document.body == body:
                    # boto3 repeats a write whose response was lost; the second attempt conflicts with the first.
                    return document.version
                raise VersionConflict(key) from None
            return str(response["ETag"])
        raise StoreUnavailable(f"{self.uri(key)} has too much write contention")

    async def _refuses(self, key: str, body: bytes, **condition: str) -> bool:
        try:
            await self._call("put_object", Key=self.prefix + key, Body=body, **condition)
        except S3Refusal as refusal:
            if refusal.status in (409, 412):
                return True
            if refusal.status == 404 and refusal.code != "NoSuchBucket":  # a condition on a missing object
                return True
            if refusal.status != 501:
                raise refusal.to_error() from None
        return False

    def _read(self, key: str) -> Document | None:
        try:
            response = self._call_in_thread("get_object", Key=self.prefix + key)
            with convert_errors(self._location(self.prefix + key)), contextlib.closing(response["Body"]) as body:
                return Document(body.read(), str(response["ETag"]))
        except S3Refusal as refusal:
            if refusal.code in ("NoSuchKey", "404"):
                return None
            raise refusal.to_error() from None

    def _list_objects(self, prefix: str) -> list[ListedObject]:
        found = []
        with convert_errors(self._location()):
            pages = self.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for item in page.get("Contents", ()):
                    key = str(item["Key"]).removeprefix(self.prefix)
                    found.append(ListedObject(key, item["LastModified"], int(item["Size"])))
        return found

    def _presign(self, key: str, seconds: int) -> str:
        target = {"Bucket": self.bucket, "Key": self.prefix + key}
        with convert_errors(self._location()):
            return str(self.client().generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    def _read_through(self, key: str, take: Callable[[bytes], None]) -> Stat | None:
        try:
            response = self._call_in_thread("get_object", Key=self.prefix + key)
        except S3Refusal as refusal:
            if refusal.code in ("NoSuchKey", "404"):
                return None
            raise refusal.to_error() from None
        size = 0
        with convert_errors(self._location(self.prefix + key)), contextlib.closing(response["Body"]) as body:
            for chunk in body.iter_chunks(_READ_BYTES):
                size += len(chunk)
                take(chunk)
        return Stat(size, str(response["ETag"]))

    def _clear_unfinished(self, older_than_seconds: float) -> int:
        oldest = datetime.now(UTC).timestamp() - older_than_seconds
        with convert_errors(self._location()):
            client = self.client()
            pages = client.get_paginator("list_multipart_uploads")
            uploads = [
                upload
                for folder in ("assets/", "inputs/", "rejected/")  # the folders of media
                for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + folder)
                for upload in page.get("Uploads", ())
                if upload["Initiated"].timestamp() < oldest
            ]
            for upload in uploads:
                client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(uploads)

    def _writer(self, key: str, content_type: str) -> S3Writer:
        return S3Writer(self._call_object, key, content_type, self.checksum_of_parts)

    async def _call_object(self, operation: str, key: str, **arguments: Any) -> Any:
        try:
            return await self._call(operation, Key=self.prefix + key, **arguments)
        except S3Refusal as refusal:
            raise refusal.to_error() from None

    async def _call(self, operation: str, **arguments: Any) -> Any:
        return await in_thread(self._call_in_thread, operation, **arguments)

    def _call_in_thread(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import ClientError

        client = self.client()
        location = self._location(str(arguments.get("Key", "")))
        with convert_errors(location):
            try:
                response = getattr(client, operation)(Bucket=self.bucket, **arguments)
            except ClientError as error:
                raise S3Refusal(error, location) from None
        if _REQUIRED_FIELDS.get(operation, "ResponseMetadata") not in response:
            raise StoreUnavailable(f"The server at {self.uri('')} is not an S3 server")
        return response

    def _location(self, key: str = "") -> S3Location:
        return S3Location(self.bucket, self.prefix, key, self.access.name if self.access else "")

    def _unsafe(self) -> UnsafeStore:
        return UnsafeStore(f"The store at {self.uri('')} ignores conditional writes, so two workers could both buy")


_REQUIRED_FIELDS = {
    "complete_multipart_upload": "ETag",
    "create_multipart_upload": "UploadId",
    "get_object": "ETag",
    "head_object": "ETag",
    "put_object": "ETag",
    "upload_part": "ETag",
}
