"""The pictures of the documentation: taken by the tests that drive what they show, and kept by `make pictures`."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Page

MAX_BYTES = 200_000
# A logo is loaded from its owner's site, which can't be reached here.
_HIDE_BROKEN_IMAGES = """
for (const image of document.images) if (image.complete && !image.naturalWidth) image.style.visibility = "hidden"
"""


def save_picture(tab: Page, name: str) -> None:
    """Save what the tab shows as `<name>.png` in the folder DOCS_IMAGES; without that, only check that it is small."""
    tab.evaluate(_HIDE_BROKEN_IMAGES)
    picture = tab.screenshot(scale="css")
    assert len(picture) <= MAX_BYTES
    if folder := os.environ.get("DOCS_IMAGES"):
        (Path(folder) / f"{name}.png").write_bytes(picture)
