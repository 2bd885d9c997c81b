"""One large video on its way from the media host into a store: how fast, and in how much memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import servers

_BUCKET = "bench"
_SPEED = 200.0
_PROMPT = "a very long clip"
_POLLS = {"VEOGEN_VIDEO_POLL_SECONDS": "0.1", "VEOGEN_REQUESTS_PER_MINUTE": "100000"}
_COMPLETED_WITHIN_SECONDS = 60.0
# Reading a file whole holds it twice here, and the S3 server of this machine holds it once more.
_MAX_IN_MEMORY = 1024**3


@dataclass(frozen=True)
class Transfer:
    """One file, moved in one way to one kind of place."""

    way: str
    place: str
    size: int
    seconds: float
    cpu_seconds: float
    grown_bytes: int

    @property
    def bytes_per_second(self) -> float:
        return self.size / self.seconds


def measure_transfers(size_bytes: int, folder: Path) -> list[Transfer]:
    """Measure moving a video of a size, for each way and place, each in a process of its own."""
    folder.mkdir(parents=True)
    options = ("--tiny-media", "--requests-per-minute", "0")
    with servers.sandbox(_SPEED, *options) as sandbox, servers.s3_server(_BUCKET) as s3:
        sandbox.arm("media-huge", times=None, size_bytes=size_bytes)
        environment = servers.plain_environment(sandbox.environment, s3, _POLLS)
        link = _buy_clip(sandbox.environment)
        found = []
        for way, place, source, target in (
            ("ours", "directory", _PROMPT, str(folder / "store")),
            ("streamed", "directory", link, str(folder / "streamed")),
            ("whole", "directory", link, str(folder / "whole")),
            ("ours", "bucket", f"{_PROMPT} in a bucket", f"s3://{_BUCKET}/media"),
            ("streamed", "bucket", link, _BUCKET),
            ("whole", "bucket", link, _BUCKET),
        ):
            if way == "whole" and size_bytes > _MAX_IN_MEMORY:
                continue
            arguments = [way if way == "ours" else f"{way}_to_{place}", source, target]
            result = servers.measure_in_child("benchmarks.media_child", arguments, environment, folder)
            if result["size"] != size_bytes:
                raise RuntimeError(f"{way} stored {result['size']} of {size_bytes} bytes")
            found.append(Transfer(way, place, **result))
            servers.empty_bucket(_BUCKET, s3)
            _delete_videos(Path(target))
    return found


def _buy_clip(environment: Mapping[str, str]) -> str:
    """Buy a clip, wait for its completion and return its URL."""
    api, token = environment["VEOGEN_BASE_URL"], environment["VEOGEN_API_TOKEN"]
    bought = servers.fetch(f"{api}/generations", {"model": "veo-3.1-fast", "prompt": _PROMPT}, token=token)
    give_up_at = time.monotonic() + _COMPLETED_WITHIN_SECONDS
    while time.monotonic() < give_up_at:
        generation = servers.fetch(f"{api}/generations/{bought['data']['id']}", token=token)["data"]
        if generation["output"]:
            return str(generation["output"]["url"])
        time.sleep(0.1)
    raise RuntimeError("the clip was never completed")


def _delete_videos(target: Path) -> None:
    """Delete the stored videos, to free the disk."""
    if target.is_dir():
        for path in target.rglob("*.mp4"):
            path.unlink()
