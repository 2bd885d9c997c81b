"""The Python blocks of the documentation, and what is said about running each.

A page's blocks are run in their order, in one namespace, as a reader would paste them. A comment above one says more:

    <!-- run: CODE -->          and then run this, such as a call of the function which the block defines
    <!-- run by: FILE -->       it needs more than a sandbox: that test runs it
    <!-- not run: REASON -->
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- (run|run by|not run): (.*?) -->\n)?^```(?:python|py)\n(.*?)^```", re.MULTILINE | re.DOTALL
)
_DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Example:
    """One block, with its page and what the comment above it says."""

    page: Path
    source: str
    order: str
    """"run", "run by" or "not run"."""
    said: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.source.partition(chr(10))[0]}"

    @property
    def only_defines(self) -> bool:
        """Whether running it shows nothing: it defines functions, which nothing calls."""
        body = ast.parse(self.source).body
        return any(not isinstance(node, ast.Import | ast.ImportFrom) for node in body) and all(
            isinstance(node, _DEFINES) for node in body
        )


def examples_of(page: Path) -> list[Example]:
    """Return a page's Python blocks in their order."""
    found = _BLOCK.findall(page.read_text())
    return [Example(page, source, order or "run", said) for order, said, source in found]


def run_example(example: Example, names: dict[str, Any]) -> None:
    """Run a block, and what is said to be run after it, in a namespace; `await` may stand outside of functions."""
    for source in filter(None, (example.source, example.said)):
        code = compile(source, str(example.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)
