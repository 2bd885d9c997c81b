"""Prefect's UI in a browser, used as a person would: forms are filled in, buttons are pressed."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from playwright.sync_api import Locator, Page
from playwright.sync_api import TimeoutError as TooSlow

from tests.support.pictures import save_picture

_SUBMIT_PATIENCE_MS = 15_000.0


@dataclass(frozen=True)
class PrefectUi:
    """A tab that shows the UI of a server."""

    tab: Page
    server: str

    def start_run(self, deployment_id: str, fields: dict[str, str], picture: str | None = None) -> None:
        """Fill in the form of a deployment and submit it; `picture` is what the form's picture is called."""
        self._go(f"deployments/deployment/{deployment_id}/run")
        self.tab.get_by_role("heading", name="Parameters").wait_for()
        while not self._submit(fields, picture):
            pass  # the form was still being built: what was filled in is gone

    def _submit(self, fields: dict[str, str], picture: str | None) -> bool:
        self._fill(fields, picture)
        self.tab.get_by_role("button", name="Submit").click()
        with contextlib.suppress(TooSlow):
            self.tab.wait_for_url(re.compile(r"tab=Runs"), wait_until="commit", timeout=_SUBMIT_PATIENCE_MS)
            return True
        return False

    def save_block(self, slug: str, name: str, fields: dict[str, str], picture: str | None = None) -> None:
        """Fill in the form of a block type and save it as `name`; `picture` is what the form's picture is called."""
        self._go(f"blocks/catalog/{slug}/create")
        self.tab.get_by_label("Name", exact=True).fill(name)
        self._fill(fields, picture)
        self.tab.get_by_role("button", name="Save").click()
        self.tab.wait_for_url(re.compile(r"/blocks/block/"), wait_until="commit")

    def _fill(self, fields: dict[str, str], picture: str | None) -> None:
        for field, text in fields.items():
            label = self.tab.locator("label", has_text=re.compile(rf"^{field}( \(Optional\))?$"))
            label.locator("xpath=following::textarea[1]").fill(text)
        if picture is not None:
            save_picture(self.tab, picture)

    def show_run(self, run_id: str, part: str = "Logs") -> None:
        """Show a run, and that part of its page."""
        self._go(f"runs/flow-run/{run_id}?tab={part}")

    def show_artifact(self, artifact_id: str) -> None:
        """Show an artifact."""
        self._go(f"artifacts/artifact/{artifact_id}")

    def resume(self, run_id: str) -> Locator:
        """Open the form with which a suspended run is resumed, and return it."""
        self.show_run(run_id)
        self.tab.locator("button:has(svg.lucide-ellipsis-vertical)").first.click()
        self.tab.get_by_role("menuitem", name="Resume").click()
        return self.tab.get_by_role("dialog")

    def choose(self, button: Locator, option: str) -> None:
        """Choose an option of a list that opens by a button."""
        button.click()
        self.tab.get_by_role("option", name=option).click()

    def _go(self, path: str) -> None:
        # Its own analytics can't be reached, so that it never comes to rest: what is needed is waited for.
        self.tab.goto(f"{self.server}/v2/{path}", wait_until="domcontentloaded")
