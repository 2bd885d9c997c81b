"""The files behind outputs: their paths on the media host, and what is drawn for each."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefect_veogen.sandbox.catalogue import Kind, Model
from prefect_veogen.sandbox.generations import Generation, MediaPath
from prefect_veogen.sandbox.media import MediaFile, MediaSpec, Studio, clip_pace, pixel_size

_MAX_BACKDROP_DEPTH = 3


class Outputs:
    """Issues paths of the media host and draws the files behind them. Safe to use from many threads."""

    def __init__(self, *, tiny_media: bool, video_bytes: int | None) -> None:
        self.origin = "http://127.0.0.1"
        self._tiny_media = tiny_media
        self._video_bytes = video_bytes
        self._paths: dict[str, MediaPath] = {}
        self._studio = Studio()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all paths."""
        with self._lock:
            self._paths.clear()

    # --- paths

    def new_path(self, kind: Kind) -> MediaPath:
        """Make up a path that can't be guessed; it is served once it has been shown."""
        folder, ending = ("generations", "png") if kind == "image" else ("videos", "mp4")
        path = MediaPath(f"/storage/{folder}/{secrets.token_hex(12)}.{ending}")
        path.size_bytes = self._video_bytes if kind == "video" else None
        return path

    def show(self, generation: Generation) -> dict[str, Any]:
        """Shape the output of a generation and serve it from now on; an expired path is replaced."""
        url = self.origin + self._publish(generation).path
        output = {"url": url, "content_type": generation.spec.content_type}
        if generation.model.kind == "video":
            output["download_url"] = f"{url}?download=1"
        return output

    def _publish(self, generation: Generation) -> MediaPath:
        with self._lock:
            if generation.file.expired:
                old = generation.file
                generation.file = self.new_path(generation.model.kind)
                generation.file.variant, generation.file.size_bytes = old.variant, old.size_bytes
            generation.file.generation = generation
            self._paths[generation.file.path] = generation.file
            return generation.file

    def find(self, path: str) -> MediaPath | None:
        """Find the file at a path of the media host; None unless it has been shown as an output."""
        with self._lock:
            return self._paths.get(path)

    # --- files

    def draw(self, media: MediaPath) -> MediaFile:
        """Draw the file at a path. Slow the first time: keep it off the event loop."""
        generation = media.generation
        if generation is None:
            raise LookupError(f"{media.path} was never shown as an output")
        spec = replace(generation.spec, variant=media.variant) if media.variant else generation.spec
        return self._studio.padded(spec, media.size_bytes) if media.size_bytes else self._studio.file(spec)

    def draw_other_kind(self, media: MediaPath) -> MediaFile:
        """Draw a picture in place of a clip, a clip in place of a picture."""
        width, height = pixel_size("image", {}, tiny=True)
        seconds, rate = clip_pace(1, height, tiny=True)
        other: Kind = "image" if media.generation and media.generation.model.kind == "video" else "video"
        spec = MediaSpec(other, width, height, "not what you ordered", seconds=seconds, frames_per_second=rate)
        return self._studio.file(spec)

    def draw_preview(self, generation: Generation) -> MediaFile:
        """Draw the file of a generation for the control page."""
        return self._studio.file(generation.spec)

    def describe(self, model: Model, prompt: str, options: Mapping[str, Any]) -> MediaSpec:
        """Describe the file that a request is to become."""
        every = {**model.defaults(), **options}
        tiny = self._tiny_media
        width, height = pixel_size(model.kind, every, tiny=tiny)
        pace = clip_pace(model.seconds(options), min(width, height), tiny=tiny)
        seconds, rate = pace if model.kind == "video" else (0, 0)
        facts = [model.slug, every.get("resolution"), every.get("aspect_ratio"), f"{seconds} s" if seconds else None]
        return MediaSpec(
            kind=model.kind,
            width=width,
            height=height,
            prompt=prompt,
            caption=" · ".join(fact for fact in facts if fact),
            seconds=seconds,
            frames_per_second=rate,
            backdrop=self._backdrop(options.get("image_urls") or []),
        )

    def _backdrop(self, image_urls: Sequence[str]) -> MediaSpec | str | None:
        """Recognise one of our own pictures; any other URL only seeds the colours and is never fetched."""
        if not image_urls:
            return None
        url = image_urls[0].split("?")[0]
        media = self.find(url.removeprefix(self.origin)) if url.startswith(self.origin) else None
        if media is None or media.generation is None or _depth(media.generation.spec) >= _MAX_BACKDROP_DEPTH:
            return url
        return media.generation.spec


def _depth(spec: MediaSpec) -> int:
    depth, below = 1, spec.backdrop
    while isinstance(below, MediaSpec):
        depth, below = depth + 1, below.backdrop
    return depth
