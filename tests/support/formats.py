"""Small real files of every format that is recognised, made by the usual libraries, with credentials or without."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, cast

import av
from PIL import Image

PICTURES = {"png": "image/png", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp", "avif": "image/avif"}
CLIPS = {"mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm", "matroska": "video/x-matroska"}
REAL = {**PICTURES, **CLIPS}
MANIFEST = b"\0\0\0\x2ajumb\0\0\0\x22jumdc2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71\x03c2pa\0"
C2PA = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


@cache
def real(name: str) -> bytes:
    """Return a small real file, made by the usual library."""
    return picture(name) if name in PICTURES else clip(name)


def picture(name: str) -> bytes:
    noise = Image.frombytes("RGB", (24, 16), random.Random(1).randbytes(24 * 16 * 3))
    file = io.BytesIO()
    noise.save(file, name)
    return file.getvalue()


def saved(name: str, *, size: int = 24, mode: str = "RGB", **options: Any) -> bytes:
    """Return a picture, written with the library's options."""
    frames = [Image.new(mode, (size, size), colour) for colour in range(3)]
    noise = Image.frombytes("RGB", (size, size), random.Random(2).randbytes(size * size * 3)).convert(mode)
    file = io.BytesIO()
    more = {"save_all": True, "append_images": frames} if options.pop("animated", False) else {}
    noise.save(file, name, **more, **options)
    return file.getvalue()


def clip(name: str, **options: str) -> bytes:
    codec = "libvpx" if name == "webm" else "mpeg4"
    with NamedTemporaryFile() as file:  # one with a name, because an index is moved by opening the file again
        with av.open(file.name, "w", format=name, options=options) as container:
            stream = cast("av.VideoStream", container.add_stream(codec, rate=5))
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
            container.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def chunk_of(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def signed(name: str) -> bytes:
    """Return a file with a manifest where its format has a place for it."""
    content = real(name)
    match name:
        case "png":
            return content[:33] + chunk_of(b"caBX", MANIFEST) + content[33:]
        case "jpeg":
            segment = b"JP\0\1\0\0\0\1" + MANIFEST
            return content[:2] + b"\xff\xeb" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
        case "webp":
            data = content[8:] + b"C2PA" + struct.pack("<I", len(MANIFEST)) + MANIFEST
            return b"RIFF" + struct.pack("<I", len(data)) + data
        case "gif":
            return content[:-1] + b"!\xff\x0bC2PA_GIF\1\0\0\x04abcd\0;"
        case _:
            return content + struct.pack(">I", 24 + len(MANIFEST)) + b"uuid" + C2PA + MANIFEST
