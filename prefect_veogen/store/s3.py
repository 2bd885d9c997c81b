"""An S3 bucket as a store: conditional PUTs, multipart uploads. The only door to boto3."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from prefect_veogen.errors import ConfigurationError, StoreUnavailable, UnsafeStore
from prefect_veogen.masking import masked
from prefect_veogen.settings import user_agent
from prefect_veogen.store.interface import (
    FOLDERS,
    AlreadyExists,
    Document,
    ListedObject,
    Stat,
    Store,
    VersionConflict,
    in_thread,
)
from prefect_veogen.store.refusals import S3Location, S3Refusal, connection_error
from prefect_veogen.store.s3_writer import S3Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect_veogen.store.interface import Writer

_READ_BYTES = 1024 * 1024
_MAX_CONFLICTS = 100
PROOF = "receipts/.conditional-writes"
"""The document that `check` leaves behind."""
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
            *(self._try_writing(folder) for folder in FOLDERS if folder not in ("assets/", "receipts/")),
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
        """Return the boto3 client, created on first use because importing boto3 is slow."""
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
                    _reject_unusable_setup(client.meta.endpoint_url)
                except (BotoCoreError, ValueError) as error:
                    raise ConfigurationError(
                        f"boto3 can't reach S3 as it is set up: {masked(str(error))}",
                        next_step="Check what it names: AWS_ENDPOINT_URL_S3 and the other AWS_ variables, boto3's "
                        "profile, or a proxy.",
                    ) from None
                self._client = client
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
            with _convert_errors(self._location(self.prefix + key)), contextlib.closing(response["Body"]) as body:
                return Document(body.read(), str(response["ETag"]))
        except S3Refusal as refusal:
            if refusal.code in ("NoSuchKey", "404"):
                return None
            raise refusal.to_error() from None

    def _list_objects(self, prefix: str) -> list[ListedObject]:
        found = []
        with _convert_errors(self._location()):
            pages = self.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for item in page.get("Contents", ()):
                    key = str(item["Key"]).removeprefix(self.prefix)
                    found.append(ListedObject(key, item["LastModified"], int(item["Size"])))
        return found

    def _presign(self, key: str, seconds: int) -> str:
        target = {"Bucket": self.bucket, "Key": self.prefix + key}
        with _convert_errors(self._location()):
            return str(self.client().generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    def _read_through(self, key: str, take: Callable[[bytes], None]) -> Stat | None:
        try:
            response = self._call_in_thread("get_object", Key=self.prefix + key)
        except S3Refusal as refusal:
            if refusal.code in ("NoSuchKey", "404"):
                return None
            raise refusal.to_error() from None
        size = 0
        with _convert_errors(self._location(self.prefix + key)), contextlib.closing(response["Body"]) as body:
            for chunk in body.iter_chunks(_READ_BYTES):
                size += len(chunk)
                take(chunk)
        return Stat(size, str(response["ETag"]))

    def _clear_unfinished(self, older_than_seconds: float) -> int:
        oldest = datetime.now(UTC).timestamp() - older_than_seconds
        with _convert_errors(self._location()):
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
        with _convert_errors(location):
            try:
                response = getattr(client, operation)(Bucket=self.bucket, **arguments)
            except ClientError as error:
                raise S3Refusal(error, location) from None
        if _REQUIRED_FIELDS.get(operation, "ResponseMetadata") not in response:
            raise StoreUnavailable(f"The server at {self.uri('')} is not an S3 server")
        return response

    def _location(self, key: str = "") -> S3Location:
        return S3Location(self.bucket, self.prefix, key)

    def _unsafe(self) -> UnsafeStore:
        return UnsafeStore(f"The store at {self.uri('')} ignores conditional writes, so two workers could both buy")


def _reject_unusable_setup(endpoint: str) -> None:
    """Reject settings that boto3 accepts but fails on at every call, quoting them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if not re.fullmatch(r"[\x21-\x7e]*", os.environ.get(name, "")):
            raise ValueError(f"{name} has characters that are not valid in a key, such as a line break")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or parts.port == 0:  # reading an invalid port raises ValueError
        raise ValueError(f"{endpoint} is not a valid endpoint")
    proxy = getproxies().get(parts.scheme, "")
    if proxy and not proxy_bypass(parts.netloc):
        _reject_unusable_proxy(f"{parts.scheme.upper()}_PROXY", proxy if "://" in proxy else f"http://{proxy}")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        bundle = os.environ.get(name)
        if parts.scheme == "https" and bundle and not Path(bundle).exists():
            raise ValueError(f"{name}={bundle}: there is no such file")


def _reject_unusable_proxy(variable: str, url: str) -> None:
    proxy = urlsplit(url)
    try:
        is_valid = proxy.scheme in ("http", "https") and proxy.hostname and proxy.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"{variable}={url} is not an HTTP proxy, the only kind boto3 supports")


_REQUIRED_FIELDS = {
    "complete_multipart_upload": "ETag",
    "create_multipart_upload": "UploadId",
    "get_object": "ETag",
    "head_object": "ETag",
    "put_object": "ETag",
    "upload_part": "ETag",
}


@contextlib.contextmanager
def _convert_errors(location: S3Location) -> Iterator[None]:
    """Convert every botocore error, so that none leaves this module."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise S3Refusal(error, location).to_error() from None
    except (BotoCoreError, HTTPClientError, ResponseParserError, RecursionError) as error:
        raise connection_error(error, location) from None
