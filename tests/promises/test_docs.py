"""What the documentation says is so: commands exist, code runs, tables agree with the code, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import itertools
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen import Asset, Settings, errors
from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.cli import main
from prefect_veogen.ledger.transitions import EventName, IllegalTransition, State, next_state
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.store import FOLDERS
from tests.promises.test_architecture import PUBLIC_MODULES
from tests.support.commands import COMMANDS
from tests.support.settings_page import table_of_settings, written_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CHAPTERS = sorted((ROOT / "docs").rglob("*.md"))
MANUAL = "\n".join([README, *(page.read_text() for page in CHAPTERS)])
"""What users read: the README and the pages of the site."""
PAGES = [*sorted(ROOT.glob("*.md")), *CHAPTERS]
MAX_README_LINES = 150
MAX_ARCHITECTURE_LINES = 100


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", MANUAL, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Return what stands between single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def section(text: str, heading: str) -> str:
    return text.partition(f"{heading}\n")[2].partition("\n## ")[0]


# ---------------------------------------------------------------- the door


def test_the_readme_is_short_and_proves_its_promise_before_it_speaks_of_speed() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES
    headings = re.findall(r"^## (.*)", README, re.MULTILINE)
    assert headings.index("Why it is safe") < headings.index("Many at once")
    assert "<!-- paid-once -->" in section(README, "## Why it is safe")
    assert README.index("<!-- /paid-once -->") < README.index("docs/benchmarks.md")


def test_the_architecture_is_one_page_and_says_where_the_reasons_are() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= MAX_ARCHITECTURE_LINES
    assert "](docs/decisions.md)" in text


def links_of(page: Path) -> set[Path]:
    """Return the files that a page links to."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return {(page.parent / link.partition("#")[0]).resolve() for link in links if "://" not in link}


def test_every_page_is_reached_from_the_readme_by_two_links() -> None:
    near = {ROOT / "README.md"} | links_of(ROOT / "README.md")
    reached = near.union(*(links_of(page) for page in near & {*PAGES}))
    assert [str(page) for page in PAGES if page not in reached] == []


def test_the_readme_repeats_the_benchmarks_figure() -> None:
    table = (ROOT / "docs" / "benchmarks.md").read_text().partition("<!-- benchmarks -->")[2]
    figures = re.search(r"^\| requests per generation \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE)
    assert figures is not None
    by_hand, ours = (f"{float(figure):.2g}".removesuffix(".0") for figure in figures.groups())
    assert f"240 generations take {ours} requests each, where a careful flow by hand takes {by_hand}" in " ".join(
        README.split()
    )


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"for example:\n  prefect-veogen {command}" in printed.getvalue()


def test_every_command_the_changelog_names_exists() -> None:
    named = re.search(r"`prefect-veogen`: ([^.]*)\.$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert named is not None
    assert set(re.findall(r"`([a-z-]+)`", named[1])) == {*COMMANDS, "sandbox"}


def test_every_make_target_named_anywhere_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join([*(path.read_text() for path in PAGES), (ROOT / "pyproject.toml").read_text()])
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


# ---------------------------------------------------------------- code


@pytest.mark.parametrize("source", blocks("python"))
def test_code_compiles_and_what_it_imports_is_there(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            # In a checkout they lie beside the package.
            module = importlib.import_module(re.sub(r"^prefect_veogen\.flows", "flows", node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.server
async def test_the_flow_of_the_readme_runs(sandbox: Sandbox, prefect_server: None, tmp_path: Path) -> None:
    source, *others = [source for source in blocks("python") if "async def poster" in source]
    assert [other.split() for other in others] == [source.split()]  # the quick start shows the same
    path = tmp_path / "poster.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("poster", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (await module.poster("Nosferatu")).endswith(".mp4")
    assert [purchase.model for purchase in sandbox.bill] == ["gpt-4o-image", "veo-3.1-fast"]
    assert sandbox.generations[0].prompt == "A poster: Nosferatu"


POSTER = """
import asyncio
from prefect_veogen import GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.session import open_session

async def poster(title):
    for take in (1, 2):
        await on_io(buy(open_session(), GenerationRequest(model="gpt-4o-image", prompt=title, take=take)))
"""


@pytest.mark.slow
def test_the_example_test_passes_with_the_fixture_as_it_is(tmp_path: Path) -> None:
    (source,) = [source for source in blocks("python") if "veogen_sandbox" in source]  # of docs/testing.md
    (tmp_path / "test_readme.py").write_text(f"{POSTER}\n{source}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in ran.stdout, ran.stdout


async def test_the_manifest_of_the_readme_is_one(tmp_path: Path) -> None:
    text, *others = blocks("csv")
    assert {text} == {*others}  # the guide shows the same
    path = tmp_path / "rows.csv"
    path.write_text(text)
    rows = await read_manifest(path)
    assert [(row.id, row.motion is not None) for row in rows] == [("hero", True), ("tile", False)]


# ---------------------------------------------------------------- tables


def test_the_table_of_settings_is_that_of_the_code() -> None:
    assert written_table() == table_of_settings(), "write it by: make settings"


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_drawing_of_a_purchases_states_has_every_transition_and_no_other() -> None:
    drawing = (ROOT / "docs" / "images" / "states.svg").read_text()
    edges = re.findall(r'data-from="(\w+)" data-to="(\w+)" data-events="([a-z, ]+)"', drawing)
    drawn = [(source, event, target) for source, target, events in edges for event in events.split(", ")]
    assert sorted(drawn) == sorted(transitions())
    assert {*re.findall(r'data-state="(\w+)"', drawing)} == {*State}
    shown = [(label.removeprefix("↻ "), events) for events, label in re.findall(_LABEL, drawing, re.DOTALL)]
    assert len(shown) == len(edges)
    assert [label for label, events in shown if label.replace("in doubt", "unknown") != events] == []


_LABEL = r'data-events="([a-z, ]+)".*?>([^<>\n]+)</text>'


def transitions() -> Iterator[tuple[str, str, str]]:
    """Give every transition that the ledger allows: state, event, next state."""
    for state, event in itertools.product(State, EventName):
        with contextlib.suppress(IllegalTransition):
            yield state.value, event.value, next_state("v1", state, event).value


def test_the_page_of_concepts_names_every_state_and_every_event() -> None:
    states, events = re.findall(r"((?:^\|.*\n)+)", (ROOT / "docs" / "concepts.md").read_text(), re.MULTILINE)[-2:]
    assert [line.split(" | ")[0] for line in states.splitlines()[2:]] == [
        f"| {state.name.replace('_', ' ')}" for state in State
    ]
    named = {line.split(" | ")[0].removeprefix("| ") for line in events.splitlines()[2:]}
    assert named == {event.value.replace("unknown", "in doubt") for event in EventName}


def test_every_variable_named_anywhere_is_a_setting() -> None:
    known = {f"VEOGEN_{name.upper()}" for name in Settings.model_fields}
    assert {name for path in PAGES for name in re.findall(r"VEOGEN_[A-Z_]+[A-Z]", path.read_text())} <= known


def test_every_error_named_is_one() -> None:
    known = {name for name, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)}
    text = README.partition("All errors are in")[2].partition("\n\n")[0]
    named = {name for name in spans(text) if re.fullmatch(r"[A-Z][A-Za-z]+", name)}
    assert {*re.findall(r"^[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)} <= named <= known
    for name in ("UnknownSubmission", "StillRunning", "UnsafeStore", "StoreRefused", "ConfigurationError"):
        assert name in known
        assert f"`{name}`" in MANUAL


# ---------------------------------------------------------------- names and links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_every_file_named_exists(page: Path) -> None:
    named = [span for span in spans(page.read_text()) if re.fullmatch(r"[\w./-]+\.(py|yaml|md|toml)|[a-z_]+/", span)]
    in_a_store = {*FOLDERS}
    places = (ROOT, ROOT / "prefect_veogen")
    assert [name for name in named if name not in in_a_store and not any((it / name).exists() for it in places)] == []


def test_every_public_name_of_the_manual_is_importable() -> None:
    package: Any = importlib.import_module("prefect_veogen")
    for name in ("submit_generation", "wait_for_generation", "download_asset", "generate", "VeogenCredentials"):
        assert f"`{name}`" in MANUAL
        assert hasattr(package, name)
    assert Asset is package.Asset


def test_the_reference_has_every_public_name_and_every_public_module() -> None:
    package: Any = importlib.import_module("prefect_veogen")
    paths = re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    described = {id(pkgutil.resolve_name(path)) for path in paths}
    assert [name for name in package.__all__ if id(getattr(package, name)) not in described] == []
    modules = [importlib.import_module(f"prefect_veogen.{name}") for name in PUBLIC_MODULES]
    assert [module.__name__ for module in modules if id(module) not in described] == []


def test_the_version_is_the_same_everywhere() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main(["--version"])
    assert printed.getvalue().strip() == f"prefect-veogen {version[1]}"
