"""What the documentation says is so: commands exist, code runs, tables agree with the code, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen import Asset, Settings, errors
from prefect_veogen.campaign.manifest import read_manifest
from prefect_veogen.cli import main
from prefect_veogen.cli.arguments import parser
from prefect_veogen.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CHAPTERS = sorted((ROOT / "docs").glob("*.md"))
MANUAL = "\n".join([README, *(page.read_text() for page in CHAPTERS)])
"""What users read: the README and the chapters it links to."""
PAGES = [*sorted(ROOT.glob("*.md")), *CHAPTERS]
MAX_README_LINES = 150
COMMANDS = ("demo", "models", "balance", "plan", "receipts", "sweep", "reconcile", "costs", "setup", "deploy", "doctor")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", MANUAL, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Return what stands between single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def command_lines() -> list[str]:
    lines = [line.strip() for block in blocks("bash") for line in block.splitlines()]
    return sorted({line.removeprefix(".venv/bin/") for line in [*lines, *map(str.strip, spans(MANUAL))] if line})


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)


OWN_COMMANDS = [line for line in command_lines() if line.startswith("prefect-veogen ")]
SCRIPTS = [line for line in command_lines() if line.startswith("python flows/")]


def section(text: str, heading: str) -> str:
    return text.partition(f"{heading}\n")[2].partition("\n## ")[0]


# ---------------------------------------------------------------- the door


def test_the_readme_is_short_and_proves_its_promise_before_it_speaks_of_speed() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES
    headings = re.findall(r"^## (.*)", README, re.MULTILINE)
    assert headings.index("Why it is safe") < headings.index("Many at once")
    assert "<!-- paid-once -->" in section(README, "## Why it is safe")
    assert README.index("<!-- /paid-once -->") < README.index("docs/benchmarks.md")


def test_every_chapter_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", README)}
    assert {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"} <= linked


def test_the_readme_repeats_the_benchmarks_figure() -> None:
    table = (ROOT / "docs" / "benchmarks.md").read_text().partition("<!-- benchmarks -->")[2]
    figures = re.search(r"^\| requests per generation \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE)
    assert figures is not None
    by_hand, ours = (f"{float(figure):.2g}".removesuffix(".0") for figure in figures.groups())
    assert f"240 generations take {ours} requests each, where a careful flow by hand takes {by_hand}" in " ".join(
        README.split()
    )


# ---------------------------------------------------------------- commands


def test_the_manual_shows_commands_of_every_kind() -> None:
    assert len(OWN_COMMANDS) >= 6
    assert len(SCRIPTS) >= 2


@pytest.mark.parametrize("line", OWN_COMMANDS)
def test_a_command_line_is_understood(line: str) -> None:
    options = parser().parse_args(words_of(line)[1:])
    assert options.command in COMMANDS


@pytest.mark.parametrize("line", SCRIPTS)
def test_a_script_exists_and_takes_that_many_words(line: str) -> None:
    _, script, *words = words_of(line)
    source = (ROOT / script).read_text()
    assert '__name__ == "__main__"' in source
    taken = re.search(r"sys\.argv\[1:(\d)\]|sys\.argv\[(1)\]", source)
    assert len(words) == (0 if taken is None else int(taken[1] or 2) - 1)


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
    (source,) = [source for source in blocks("python") if "async def poster" in source]
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
    (source,) = [source for source in blocks("python") if "veogen_sandbox" in source]
    (tmp_path / "test_readme.py").write_text(f"{POSTER}\n{source}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in ran.stdout, ran.stdout


async def test_the_manifest_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = blocks("csv")
    path = tmp_path / "rows.csv"
    path.write_text(text)
    rows = await read_manifest(path)
    assert [(row.id, row.motion is not None) for row in rows] == [("hero", True), ("tile", False)]


# ---------------------------------------------------------------- tables


def settings_table() -> dict[str, str]:
    """Return the defaults by variable, as the chapter says them."""
    defaults: dict[str, str] = {}
    table = (ROOT / "docs" / "settings.md").read_text()
    for names, default in re.findall(r"^\| (`VEOGEN_[^|]*) \|([^|]*)\|", table, re.MULTILINE):
        variables = re.findall(r"`(VEOGEN_\w+)`", names)
        texts = default.split(",") if len(variables) > 1 else [default]
        defaults.update(zip(variables, (text.strip().strip("`") for text in texts), strict=True))
    return defaults


def test_the_settings_table_has_every_setting() -> None:
    assert {*settings_table()} == {f"VEOGEN_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_settings_table_has_the_right_default(name: str) -> None:
    written, default = settings_table()[f"VEOGEN_{name.upper()}"], Settings.model_fields[name].default
    if default is None:
        assert written in (
            "",
            "no cap",
            "600 for images, 1800 for videos",
            "only if the API itself is at a private address",
        )
    elif written.endswith("GiB"):
        assert int(written.split()[0]) * 1024**3 == default
    else:
        assert written == str(default).lower()


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


def test_the_tree_of_errors_in_their_docstring_is_the_tree() -> None:
    text = inspect.getdoc(errors) or ""
    above: list[str] = []
    drawn = {}
    for indent, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+)\b(?:  |$)", text, re.MULTILINE):
        above[len(indent) // 4 :] = [name]
        drawn[name] = above[-2] if len(above) > 1 else None
    real = {
        name: next((base.__name__ for base in value.__mro__[1:] if not base.__name__.startswith("_")), None)
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.VeogenError) and not name.startswith("_")
    }
    assert drawn == {name: None if name == "VeogenError" else base for name, base in real.items()}


# ---------------------------------------------------------------- names and links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_every_file_named_exists(page: Path) -> None:
    named = [span for span in spans(page.read_text()) if re.fullmatch(r"[\w./-]+\.(py|yaml|md|toml)|[a-z_]+/", span)]
    in_a_store = {"assets/", "receipts/", "rejected/", "budgets/", "claims/", "campaigns/", "inputs/"}
    places = (ROOT, ROOT / "prefect_veogen")
    assert [name for name in named if name not in in_a_store and not any((it / name).exists() for it in places)] == []


def test_every_public_name_of_the_manual_is_importable() -> None:
    package: Any = importlib.import_module("prefect_veogen")
    for name in ("submit_generation", "wait_for_generation", "download_asset", "generate", "VeogenCredentials"):
        assert f"`{name}`" in MANUAL
        assert hasattr(package, name)
    assert Asset is package.Asset


def test_the_version_is_the_same_everywhere() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main(["--version"])
    assert printed.getvalue().strip() == f"prefect-veogen {version[1]}"
