"""Small files of media, made on the spot: each colour has bytes of its own."""

from __future__ import annotations

import io
import wave

from PIL import Image


def png(colour: str = "red") -> bytes:
    """Return a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def wav() -> bytes:
    """Return a moment of silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(200))
    return file.getvalue()
