"""Pictures and clips that open in any player, drawn from a small description; the prompt can be read on each."""

from __future__ import annotations

import hashlib
import io
import random
import tempfile
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # Pillow and PyAV are imported when something is drawn: many users never need them.
    from PIL import Image, ImageFont

Color = tuple[int, int, int]

IMAGE_TYPE = "image/png"
VIDEO_TYPE = "video/mp4"
CHUNK_BYTES = 256 * 1024

_TINY_SIDE = 160
_FRAMES_PER_SECOND = 10
_TINY_FRAMES_PER_SECOND = 5
# INVENTION: what the resolution names mean in pixels. Videos: the short side; pictures: the long side.
_SHORT_SIDES = {"480p": 480, "720p": 720, "1080p": 1080, "4k": 2160}
_LONG_SIDES = {"0.5K": 512, "1K": 1024, "2K": 2048, "4K": 4096}


@dataclass(frozen=True)
class MediaSpec:
    """Everything that determines the bytes of one file; equal specs give equal files."""

    kind: Literal["image", "video"]
    width: int
    height: int
    prompt: str
    caption: str = ""
    seconds: int = 0
    frames_per_second: int = _FRAMES_PER_SECOND
    backdrop: MediaSpec | str | None = None
    variant: int = 0

    @property
    def content_type(self) -> str:
        return IMAGE_TYPE if self.kind == "image" else VIDEO_TYPE


class MediaFile(Protocol):
    """Bytes to serve, readable by range."""

    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop`` in pieces."""
        ...


@dataclass(frozen=True)
class WholeFile:
    """A file held in memory."""

    content: bytes
    etag: str
    content_type: str

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for offset in range(start, stop, CHUNK_BYTES):
            yield self.content[offset : min(offset + CHUNK_BYTES, stop)]


@dataclass(frozen=True)
class PaddedFile:
    """A valid MP4 of any size: a real clip followed by a `free` box of zeros which exist only while they are sent."""

    clip: WholeFile
    size: int

    @property
    def etag(self) -> str:
        return '"{}-{}"'.format(self.clip.etag.strip('"'), self.size)

    @property
    def content_type(self) -> str:
        return self.clip.content_type

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        head = self.clip.content + self._free_box_header()
        zeros = bytes(CHUNK_BYTES)
        position = start
        while position < stop:
            count = min(CHUNK_BYTES, stop - position)
            piece = head[position : position + count]
            yield piece + zeros[: count - len(piece)]
            position += count

    def _free_box_header(self) -> bytes:
        length = self.size - self.clip.size
        if length < 16:
            raise ValueError(f"a padded clip needs at least {self.clip.size + 16} bytes, not {self.size}")
        # The 64-bit form of the box size, so that files above 4 GiB need no second case.
        return b"\0\0\0\1free" + length.to_bytes(8, "big")


class Studio:
    """Draws files and caches the most recently used ones, up to ``memory_bytes``. Safe to use from many threads."""

    def __init__(self, memory_bytes: int = 64 * 1024 * 1024) -> None:
        self._memory_bytes = memory_bytes
        self._cached_bytes = 0
        self._files: OrderedDict[MediaSpec, WholeFile] = OrderedDict()
        self._drawing: dict[MediaSpec, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def cached_bytes(self) -> int:
        """The size of all cached files."""
        return self._cached_bytes

    def file(self, spec: MediaSpec) -> WholeFile:
        """Return the file of ``spec``, drawn now unless it is cached."""
        with self._lock:
            if known := self._find_cached(spec):
                return known
            lock = self._drawing.setdefault(spec, threading.Lock())
        with lock:  # two requests for one new file draw it once
            with self._lock:
                if known := self._find_cached(spec):
                    return known
            drawn = _draw(spec)
            with self._lock:
                self._cache(spec, drawn)
            return drawn

    def padded(self, spec: MediaSpec, size: int) -> PaddedFile:
        """Return a video of exactly ``size`` bytes which plays a tiny clip."""
        tiny = replace(spec, width=_TINY_SIDE, height=90, seconds=1, frames_per_second=_TINY_FRAMES_PER_SECOND)
        return PaddedFile(self.file(replace(tiny, backdrop=None)), size)

    def _find_cached(self, spec: MediaSpec) -> WholeFile | None:
        if spec not in self._files:
            return None
        self._files.move_to_end(spec)
        return self._files[spec]

    def _cache(self, spec: MediaSpec, drawn: WholeFile) -> None:
        self._drawing.pop(spec, None)
        if spec in self._files or drawn.size > self._memory_bytes:
            return
        self._files[spec] = drawn
        self._cached_bytes += drawn.size
        while self._cached_bytes > self._memory_bytes:
            _, oldest = self._files.popitem(last=False)
            self._cached_bytes -= oldest.size


def pixel_size(kind: str, options: Mapping[str, Any], *, tiny: bool) -> tuple[int, int]:
    """Convert `aspect_ratio` and `resolution` into even pixels; the tiny form keeps the ratio only."""
    across, down = (int(part) for part in str(options.get("aspect_ratio", "1:1")).split(":"))
    if tiny:
        scale = Fraction(_TINY_SIDE, max(across, down))
    elif kind == "video":
        scale = Fraction(_SHORT_SIDES[options.get("resolution", "720p")], min(across, down))
    else:
        scale = Fraction(_LONG_SIDES[options.get("resolution", "1K")], max(across, down))
    return _even(across * scale), _even(down * scale)


def clip_pace(seconds: int, height: int, *, tiny: bool) -> tuple[int, int]:
    """Return the seconds and frames per second of a clip: large ones have fewer frames, to be drawn quickly."""
    if tiny:
        return 1, _TINY_FRAMES_PER_SECOND
    return seconds, max(2, _FRAMES_PER_SECOND * 720 // max(720, height))


def _even(pixels: Fraction) -> int:
    return max(2, round(pixels / 2) * 2)


def _draw(spec: MediaSpec) -> WholeFile:
    content = _png(_picture(spec)) if spec.kind == "image" else _mp4(spec)
    return WholeFile(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"', spec.content_type)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _picture(spec: MediaSpec) -> Image.Image:
    """Draw the still: the backdrop with the prompt over it."""
    picture = _backdrop(spec, spec.width, spec.height)
    label = _label(spec)
    picture.paste(label, (0, picture.height - label.height), label)
    return picture


def _backdrop(spec: MediaSpec, width: int, height: int) -> Image.Image:
    from PIL import ImageOps

    if isinstance(spec.backdrop, MediaSpec):
        return ImageOps.fit(_picture(spec.backdrop), (width, height))
    return _pattern(spec.backdrop or spec.prompt, spec.variant, width, height)


def _pattern(text: str, variant: int, width: int, height: int) -> Image.Image:
    """Draw a gradient with discs, in colours and places that depend on the text only."""
    from PIL import Image, ImageDraw, ImageOps

    dice = random.Random(f"{text}/{variant}")
    dark, light, accent = _colors(dice)
    ramp = Image.linear_gradient("L").rotate(dice.choice((0, 90, 180, 270)))
    picture = ImageOps.colorize(ramp, dark, light).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture, "RGBA")
    for _ in range(6):
        radius = dice.uniform(0.05, 0.28) * min(width, height)
        x, y = dice.uniform(0, width), dice.uniform(0, height)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*accent, dice.randint(50, 150)))
    return picture


def _colors(dice: random.Random) -> tuple[Color, Color, Color]:
    import colorsys

    hue = dice.random()

    def color(shift: float, saturation: float, brightness: float) -> Color:
        red, green, blue = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, brightness)
        return int(red * 255), int(green * 255), int(blue * 255)

    return color(0, 0.8, 0.3), color(0.12, 0.7, 0.9), color(dice.uniform(0.3, 0.6), 0.7, 1)


def _label(spec: MediaSpec) -> Image.Image:
    """Draw the prompt, wrapped, and the caption on a half-transparent band as wide as the picture."""
    from PIL import Image, ImageDraw

    size = max(9, min(spec.width, spec.height) // 16)
    font, margin = _font(size), size // 2
    lines = _wrap(spec.prompt, font, spec.width - 2 * margin)
    small = _font(max(8, size // 2))
    band_height = min(spec.height, int(len(lines) * size * 1.3) + (size if spec.caption else 0) + 2 * margin)
    band = Image.new("RGBA", (spec.width, band_height), (0, 0, 0, 150))
    draw = ImageDraw.Draw(band)
    for row, line in enumerate(lines):
        draw.text((margin, margin + row * size * 1.3), line, font=font, fill="white")
    if spec.caption:
        draw.text((margin, band_height - margin - size * 0.7), spec.caption, font=small, fill=(255, 255, 255, 200))
    return band


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _wrap(text: str, font: Any, width: int, max_lines: int = 4) -> list[str]:
    lines: list[str] = []
    # The font that comes with Pillow has no accents.
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text[:400]) if not unicodedata.combining(letter))
    for word in plain.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < max_lines:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} …"
            break
    return lines


def _mp4(spec: MediaSpec) -> bytes:
    import av

    # A file and not memory: only then can the index go to the front, where players (and our padding) need it.
    with tempfile.TemporaryDirectory(prefix="veogen-sandbox-") as folder:
        path = Path(folder, "clip.mp4")
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            options = {"preset": "ultrafast", "crf": "28", "threads": "1"}
            stream = container.add_stream("libx264", rate=spec.frames_per_second, options=options)
            stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, "yuv420p"
            for number, picture in enumerate(_frames(spec)):
                frame: Any = av.VideoFrame.from_image(picture)  # type: ignore[no-untyped-call]
                frame.pts, frame.time_base = number, Fraction(1, spec.frames_per_second)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


def _frames(spec: MediaSpec) -> Iterator[Image.Image]:
    """Pan over a backdrop a little larger than the frame, under a still label and over a growing progress bar.

    The label is at the top, because an animated picture brings its own at the bottom.
    """
    from PIL import ImageDraw

    count = spec.seconds * spec.frames_per_second
    spare_x, spare_y = _even(Fraction(spec.width, 8)), _even(Fraction(spec.height, 8))
    scene = _backdrop(spec, spec.width + spare_x, spec.height + spare_y)
    label = _label(spec)
    bar = max(2, spec.height // 90)
    for number in range(count):
        left, top = spare_x * number // count, spare_y * (count - number) // count
        picture = scene.crop((left, top, left + spec.width, top + spec.height))
        picture.paste(label, (0, 0), label)
        done = (0, spec.height - bar, spec.width * (number + 1) // count, spec.height)
        ImageDraw.Draw(picture).rectangle(done, fill="white")
        yield picture
