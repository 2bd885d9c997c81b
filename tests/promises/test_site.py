"""The site is built without a warning, its links lead somewhere, and no page loads anything from elsewhere."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml

from tests.promises.test_architecture import PUBLIC_MODULES
from tests.support.browser import chromium

ROOT = Path(__file__).parents[2]
LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "video": "src",
    "source": "src",
    "object": "data",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


class Page(HTMLParser):
    """What a built page loads, links to, and can be linked by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.links: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        elif LOADS.get(tag, "") in found and found.get("rel") not in ("canonical", "prev", "next"):
            self.loads.add(found[LOADS[tag]])


def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_of_the_folder_is_in_the_navigation(site: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = [page for section in yaml.safe_load(text)["nav"] for part in section.values() for page in part]
    named = {path for page in listed for path in page.values()}
    assert named == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(listed) == len(named)


def test_the_reference_shows_all_that_its_modules_offer_and_nothing_else_of_them(site: Path) -> None:
    shown = Page(site / "reference.html").anchors
    for name in PUBLIC_MODULES:
        module = importlib.import_module(f"prefect_veogen.{name}")
        listed = {f"{module.__name__}.{offered}" for offered in getattr(module, "__all__", ())}
        found = {anchor for anchor in shown if anchor.rpartition(".")[0] == module.__name__}
        assert found == listed or (found and not listed), module


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loaded = {(path.name, address) for path, page in pages(site).items() for address in page.loads}
    assert [it for it in sorted(loaded) if it[1].startswith(("http:", "https:", "//"))] == []
    styles = {(path.name, "@import" in text or "url(http" in text) for path, text in _texts(site, "*.css")}
    assert [name for name, is_loading in styles if is_loading] == []


def _texts(site: Path, pattern: str) -> Iterator[tuple[Path, str]]:
    return ((path, path.read_text()) for path in site.rglob(pattern))


def test_every_link_and_every_anchor_within_the_site_leads_somewhere(site: Path) -> None:
    found = pages(site)
    broken = []
    for path, page in found.items():
        for link in page.links | page.loads:
            address, anchor = urldefrag(link)
            if "://" in address or address.startswith(("mailto:", "javascript:")):
                continue
            target = (path.parent / unquote(address)).resolve() if address else path
            if not target.exists() or (anchor and target in found and unquote(anchor) not in found[target].anchors):
                broken.append((path.name, link))
    assert broken == []


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_asks_nobody_else_finds_an_error_and_shows_the_drawings(served: str, scheme: str) -> None:
    asked: list[str] = []
    with chromium() as browser:
        tab = browser.new_context(color_scheme="dark" if scheme == "dark" else "light").new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"{served}/concepts.html")
        tab.wait_for_function("[...document.images].every(image => image.naturalWidth > 0)")
        colors = tab.evaluate("document.body.getAttribute('data-md-color-scheme')")
        tab.wait_for_load_state("load")
        tab.locator("input[name=query]").click()
        tab.locator("input[name=query]").press_sequentially("StillRunning", delay=20)
        tab.locator(".md-search-result__item a[href*='errors.html']").first.wait_for(state="attached")
        tab.goto(f"{served}/reference.html")
    assert colors == {"light": "default", "dark": "slate"}[scheme]
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
