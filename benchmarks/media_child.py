"""The process that moves one large video from the media host into a store, and measures itself.

`WAY LINK-OR-STORE RESULT`; LINK is where the peers read, our way buys a generation of its own first, unmeasured.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import boto3
import httpx

_CHUNK_BYTES = 1024 * 1024


class _Reader:
    """What `upload_fileobj` reads from: an HTTP response as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        pieces, length = [self._left], len(self._left)
        while size < 0 or length < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            pieces.append(chunk)
            length += len(chunk)
        body = b"".join(pieces)
        self._left = body[size:] if size >= 0 else b""
        return body[:size] if size >= 0 else body


def ours(prompt: str, store: str) -> Callable[[], int]:
    """Buy a generation, wait for it, and return the function that delivers it and returns its size."""
    from prefect_veogen import GenerationRequest
    from prefect_veogen.download.deliver import deliver
    from prefect_veogen.process.io_loop import on_io
    from prefect_veogen.purchase.submit import buy
    from prefect_veogen.purchase.wait import wait
    from prefect_veogen.session import open_session

    session = open_session(store=store)
    request = GenerationRequest(model="veo-3.1-fast", prompt=prompt)
    purchase = asyncio.run(on_io(buy(session, request)))
    generation = asyncio.run(on_io(wait(session, purchase.generation)))
    return lambda: asyncio.run(on_io(deliver(session, generation))).asset.size


def streamed_to_bucket(link: str, bucket: str) -> Callable[[], int]:
    """Return what a careful script does: boto3 reads the response piece by piece."""
    s3 = boto3.client("s3")
    s3.head_bucket(Bucket=bucket)

    def move() -> int:
        with httpx.stream("GET", link, timeout=60) as response:
            response.raise_for_status()
            s3.upload_fileobj(cast("IO[bytes]", _Reader(response.iter_bytes(_CHUNK_BYTES))), bucket, "streamed.mp4")
        return int(s3.head_object(Bucket=bucket, Key="streamed.mp4")["ContentLength"])

    return move


def whole_to_bucket(link: str, bucket: str) -> Callable[[], int]:
    """Return what a first script does: the whole file in memory, then the upload."""
    s3 = boto3.client("s3")
    s3.head_bucket(Bucket=bucket)

    def move() -> int:
        response = httpx.get(link, timeout=60).raise_for_status()
        s3.put_object(Bucket=bucket, Key="whole.mp4", Body=response.content)
        return len(response.content)

    return move


def streamed_to_directory(link: str, folder: str) -> Callable[[], int]:
    """Return what a careful script does: write a file piece by piece, synced to the disk."""

    def move() -> int:
        target = Path(folder) / "streamed.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        with httpx.stream("GET", link, timeout=60) as response, target.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return target.stat().st_size

    return move


def whole_to_directory(link: str, folder: str) -> Callable[[], int]:
    """Return what the shortest script does: the whole file in memory, then on the disk."""

    def move() -> int:
        target = Path(folder) / "whole.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.write_bytes(httpx.get(link, timeout=60).raise_for_status().content)

    return move


def measure(move: Callable[[], int]) -> dict[str, Any]:
    """Measure a transfer; its memory is what the process grew by."""
    before, cpu, began = _reset_peak(), _cpu_seconds(), time.monotonic()
    size = move()
    seconds = time.monotonic() - began
    return {
        "size": size,
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds() - cpu,
        "grown_bytes": max(_peak_bytes() - before, 0),
    }


def _reset_peak() -> int:
    """Reset the peak of memory to the present use where the system can (Linux); return the peak."""
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


WAYS: dict[str, Callable[[str, str], Callable[[], int]]] = {
    "ours": ours,
    "streamed_to_bucket": streamed_to_bucket,
    "whole_to_bucket": whole_to_bucket,
    "streamed_to_directory": streamed_to_directory,
    "whole_to_directory": whole_to_directory,
}

if __name__ == "__main__":
    way, source, place, result = sys.argv[1:]
    Path(result).write_text(json.dumps(measure(WAYS[way](source, place))))
