"""Short clips with sound, made on the spot by PyAV alone."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av


def write_clip(path: Path, *, seconds: int = 1, size: str = "160x90", hertz: int | None = 440) -> Path:
    """Write an MP4 with B-frames and a tone, or without sound; equal options give equal bytes."""
    path.write_bytes(_encoded(seconds, size, hertz))
    return path


@cache  # an encoder may give other bytes the next time, though rarely
def _encoded(seconds: int, size: str, hertz: int | None) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")  # a file, for the index is put in front of it
        with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as output:
            width, height = map(int, size.split("x"))
            video: Any = output.add_stream("libx264", rate=24, options={"preset": "veryfast", "threads": "1"})
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            sound: Any = output.add_stream("aac", rate=48000, layout="stereo") if hertz else None
            picture = f"size={size}:rate=24:duration={seconds}"
            _encode(output, video, [("testsrc2", picture), ("format", "yuv420p"), ("buffersink", None)])
            if sound is not None:
                tone = f"frequency={hertz}:sample_rate=48000:duration={seconds}"
                plain = "sample_fmts=fltp:channel_layouts=stereo"
                _encode(
                    output, sound, [("sine", tone), ("aformat", plain), ("asetnsamples", "1024"), ("abuffersink", None)]
                )
        return path.read_bytes()


def _encode(output: Any, stream: Any, filters: list[tuple[str, str | None]]) -> None:
    graph = av.filter.Graph()
    nodes = [graph.add(name, options) if options else graph.add(name) for name, options in filters]
    for before, after in pairwise(nodes):
        before.link_to(after)
    graph.configure()
    while True:
        try:
            frame = graph.pull()
        except (av.error.EOFError, av.error.BlockingIOError):
            break
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def frame_times(path: Path) -> list[float]:
    """Return when each picture of a clip is shown, in seconds, having decoded all of it."""
    with av.open(path, "r") as clip:
        return [float(frame.time or 0) for frame in clip.decode(video=0)]


def sound_seconds(path: Path) -> float:
    """Return how long the sound of a clip is, having decoded all of it."""
    with av.open(path, "r") as clip:
        return sum(frame.samples / frame.sample_rate for frame in clip.decode(audio=0))
