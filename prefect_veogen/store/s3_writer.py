"""Media on its way into a bucket: a multipart upload of growing parts, or a single PUT if one part is enough."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from prefect_veogen.process.concurrency import run_uninterrupted
from prefect_veogen.store.interface import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

PART_BYTES = 8 * 1024 * 1024
_MAX_PARTS_IN_FLIGHT = 3


class CallObject(Protocol):
    """One call of the S3 API on an object of the store, by boto3's name for the call."""

    async def __call__(self, operation: str, key: str, **arguments: Any) -> Any:
        """Return boto3's response; raises only `StoreRefused` and `StoreUnavailable`."""


class S3Writer(Writer):
    """A stream into one object; nothing is visible before `commit`."""

    def __init__(
        self, call_object: CallObject, key: str, content_type: str, checksum_of_parts: Callable[[], dict[str, str]]
    ) -> None:
        self._call_object = call_object
        self._key = key
        self._content_type = content_type
        self._checksum_of_parts = checksum_of_parts
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}
        self._parts_sent = 0
        self._in_flight: deque[asyncio.Task[None]] = deque()

    async def write(self, chunk: bytes) -> None:
        self._buffer += chunk
        while len(self._buffer) >= self._part_bytes():
            part = bytes(self._buffer[: self._part_bytes()])
            del self._buffer[: len(part)]
            await self._send(part)

    async def commit(self) -> str:
        if self._upload_id is None:
            response = await self._call("put_object", Body=bytes(self._buffer), ContentType=self._content_type)
            return str(response["ETag"])
        if self._buffer:
            await self._send(bytes(self._buffer))
        while self._in_flight:
            await self._in_flight.popleft()
        parts = {"Parts": [self._parts[number] for number in sorted(self._parts)]}
        response = await self._call("complete_multipart_upload", UploadId=self._upload_id, MultipartUpload=parts)
        return str(response["ETag"])

    async def abort(self) -> None:
        for task in self._in_flight:
            task.cancel()
        # A part that is still being sent would survive the abort, so all of them are awaited first.
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        self._in_flight.clear()
        if self._upload_id is not None:
            upload_id, self._upload_id = self._upload_id, None
            await self._call("abort_multipart_upload", UploadId=upload_id)

    async def quarantine(self, key: str) -> bool:
        # A multipart upload can't be renamed.
        if self._upload_id is not None and key != self._key:
            await self.abort()
            return False
        self._key = key
        await self.commit()
        return True

    async def begin(self) -> None:
        """Start a multipart upload."""
        response = await self._call(
            "create_multipart_upload", ContentType=self._content_type, **self._checksum_of_parts()
        )
        self._upload_id = str(response["UploadId"])

    def _part_bytes(self) -> int:
        # S3 takes at most 10,000 parts: they grow with the object, so that its size needn't be known beforehand.
        return PART_BYTES << (self._parts_sent // 1000)

    async def _send(self, part: bytes) -> None:
        if self._upload_id is None:
            await run_uninterrupted(self.begin())
        self._parts_sent += 1
        self._in_flight.append(asyncio.create_task(self._send_part(self._parts_sent, part)))
        if len(self._in_flight) >= _MAX_PARTS_IN_FLIGHT:
            await self._in_flight.popleft()

    async def _send_part(self, number: int, part: bytes) -> None:
        response = await run_uninterrupted(
            self._call("upload_part", UploadId=self._upload_id, PartNumber=number, Body=part)
        )
        self._parts[number] = {"PartNumber": number, "ETag": str(response["ETag"])}
        if "ChecksumCRC32" in response:
            self._parts[number]["ChecksumCRC32"] = response["ChecksumCRC32"]

    async def _call(self, operation: str, **arguments: Any) -> Any:
        return await self._call_object(operation, self._key, **arguments)
