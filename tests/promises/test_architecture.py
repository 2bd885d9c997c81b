"""Imports go one way, every outside library has one door, and what users see is what `__all__` says.

The rooms below are the drawing in ARCHITECTURE.md, from the ground up: files at the top of the package are words and
what users import, each folder is one concept, and each may import those before it in the list. A new room has to be
given its place; a new file belongs to a room. Imports for types count as imports.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import prefect_veogen

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "prefect_veogen"

ORDER = [
    "masking",
    "errors",
    "models",
    "settings",
    "process",
    "store",
    "api",
    "ledger",
    "session",
    "download",
    "purchase",
    "campaign",
    "upkeep",
    "schedule",
    "blocks",
    "tasks",
    "jobs",
    "__init__",
    "cli",
]
BESIDE = "sandbox"
# Who hops to the I/O loop, once per call: the outermost layers, and the client for those who got one by `get_client()`.
HOPPING = ("tasks/", "cli/", "api/client.py")

# Outside libraries and who may import them; pydantic, which makes the values, may be imported everywhere.
DOORS = {
    "httpx": {"api"},
    "boto3": {"store"},
    "opentelemetry": {"process"},
    "botocore": {"store"},
    "prefect": {"blocks", "schedule", "tasks", "jobs", "cli"},
    "pydantic_settings": {"settings"},
    "dotenv": {"settings"},  # a dependency of pydantic-settings, and of Prefect
    "yaml": {"campaign", "tasks"},
    "narwhals": {"campaign"},
    "pyarrow": {"campaign"},
    "pandas": {"campaign"},
    "polars": {"campaign"},
    "rich": {"cli"},
    "av": {"download", BESIDE},
    "PIL": {"download", BESIDE},
    "uvicorn": {BESIDE},
    "starlette": {BESIDE},
    "pytest": {BESIDE},
}
PUBLIC_MODULES = [
    "errors",
    "schedule",
    "tasks.approval",
    "tasks.campaign",
    "tasks.daily",
    "tasks.fallback",
    "tasks.maintenance",
    "tasks.requests",
    "tasks.run_again",
    "tasks.runs",
    "tasks.stores",
    "tasks.storyboard",
]
MOST_FILE_LINES = 400
MOST_LINES = 45
# Tables, not logic: one row per model.
TABLES = {"sandbox/catalogue.py:_pictures"}
# What a module may hold that changes, besides a Registry: the thread of the I/O loop itself, and which leases are held
# in this process, which nothing shares.
STATE = {
    "process/io_loop.py:_thread",
    "process/io_loop.py:_lock",
    "ledger/lease.py:_active",
    "purchase/input_files.py:_known",  # digests of files by their versions: values that hold anywhere
}
# What a name begins with that says how things are, not what is done; most of these words end in "ed".
PARTICIPLES = {
    *("begun", "bought", "built", "chosen", "done", "drawn", "found", "given", "gone", "held", "kept", "known", "left"),
    *("lost", "made", "paid", "said", "seen", "sent", "shown", "spent", "taken", "told", "written"),
}
VERBS_IN_ED = {"embed", "exceed", "feed", "need", "proceed", "seed", "shed", "succeed"}


DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def lines_of_docstring(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return len((ast.get_docstring(node, clean=False) or "").splitlines())


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to: a module, or a folder of its own."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Give everything a file imports anywhere in it, for the type checker too, as dotted names."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports_of(path: Path) -> set[str]:
    """Return the parts of the package that a file imports."""
    known = {part_of(source) for source in sources()}
    found = set()
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "prefect_veogen":
            part = rest.partition(".")[0]
            found.add(part if part in known else "__init__")
    return found - {part_of(path)}


def test_every_room_has_its_place_in_the_drawing() -> None:
    assert sorted({part_of(path) for path in sources()} - {BESIDE}) == sorted(ORDER)
    drawn = re.findall(r"\w+", (ROOT / "ARCHITECTURE.md").read_text().split("```")[1])
    assert {*ORDER, BESIDE} - {"__init__"} <= {*drawn}


def test_every_file_of_a_room_is_in_the_drawing() -> None:
    drawing = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    files = {
        path.relative_to(PACKAGE).parts[1].removesuffix(".py")
        for path in sources()
        if part_of(path) not in (BESIDE, "cli") and len(path.relative_to(PACKAGE).parts) > 1
    }
    assert files - {"__init__"} <= {*re.findall(r"\w+", drawing)}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    if part == BESIDE:
        assert own_imports_of(path) == set(), "the sandbox shares no code with what it tests"
    else:
        below = set(ORDER[: ORDER.index(part)]) | ({BESIDE} if part == "cli" else set())
        assert own_imports_of(path) <= below


@pytest.mark.parametrize("library", DOORS)
def test_an_outside_library_has_one_door(library: str) -> None:
    users = {part_of(path) for path in sources() if any(name.split(".")[0] == library for name in imports_of(path))}
    assert users <= DOORS[library]


def test_every_outside_library_is_known() -> None:
    outside = {name.split(".")[0] for path in sources() for name in imports_of(path)}
    assert outside - sys.stdlib_module_names <= {*DOORS, "prefect_veogen", "pydantic"}


def modules_of(folder: Path) -> dict[str, set[str]]:
    """Return the modules below a folder, and which of them each imports."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources(folder)}
    return {
        name: {other for other in names if other != name and {other, *_inside(other, path)} & {*imports_of(path)}}
        for name, path in names.items()
        if path.stem != "__init__"
    }


def _inside(module: str, path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.rpartition(".")[0] == module}


@pytest.mark.parametrize("folder", sorted({path.parent for path in sources()} - {PACKAGE}), ids=lambda path: path.name)
def test_a_room_is_free_of_cycles(folder: Path) -> None:
    graph = modules_of(folder)
    while leaves := [name for name, below in graph.items() if not below & graph.keys() - {name}]:
        for name in leaves:
            del graph[name]
    assert graph == {}


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: count for name, count in lines.items() if count > MOST_FILE_LINES} == {}


# ---------------------------------------------------------------- what users see


def test_all_is_sorted_and_complete() -> None:
    shown = {
        name
        for name in dir(prefect_veogen)
        if not name.startswith("_") and not isinstance(getattr(prefect_veogen, name), ModuleType)
    } - {"TYPE_CHECKING"}
    assert prefect_veogen.__all__ == sorted(shown)
    assert shown == {
        "Animated",
        "Approved",
        "Asset",
        "CampaignItem",
        "CampaignReport",
        "Generation",
        "GenerationRequest",
        "GenerationRun",
        "Settings",
        "Storyboard",
        "Swept",
        "VeogenCredentials",
        "VeogenGeneration",
        "download_asset",
        "generate",
        "submit_generation",
        "wait_for_generation",
    }


@pytest.mark.parametrize("path", sources(ROOT / "flows"), ids=lambda path: path.name)
def test_a_flow_is_a_short_reading_of_public_names(path: Path) -> None:
    public = {"prefect_veogen", *(f"prefect_veogen.{name}" for name in PUBLIC_MODULES)}
    ours = [name for name in imports_of(path) if name.startswith("prefect_veogen")]
    assert {name.rpartition(".")[0] for name in ours} <= public
    assert not [name for name in ours if name.rpartition(".")[2].startswith("_")]
    assert all(name.rpartition(".")[2] in prefect_veogen.__all__ for name in ours if name.count(".") == 1)
    documented = [node for node in ast.walk(parsed(path)) if isinstance(node, DOCUMENTED)]
    assert len(path.read_text().splitlines()) - sum(map(lines_of_docstring, documented)) <= 60


def test_importing_the_package_loads_nothing_it_does_not_need_and_reads_no_settings() -> None:
    story = """
import sys, threading
import prefect
before, threads = set(sys.modules), threading.active_count()
from prefect_veogen import *
heavy = ("boto3", "botocore", "narwhals", "pyarrow", "pandas", "av", "PIL", "uvicorn", "fastapi")
heavy += ("prefect_veogen.sandbox", "prefect_veogen.cli")
print([name for name in heavy if name in sys.modules.keys() - before], threading.active_count() - threads)
"""
    wrong = {"VEOGEN_REQUESTS_PER_MINUTE": "many", "VEOGEN_BASE_URL": "nowhere"}
    ran = subprocess.run(
        [sys.executable, "-c", story], env={**os.environ, **wrong}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split("\n")[0] == "[] 0"


# ---------------------------------------------------------------- house style


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in [*sources(), *sources(ROOT / "flows")]:
        shown = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.relative_to(ROOT)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{shown}:{node.name}", node


def test_no_function_is_longer_than_a_screen() -> None:
    long = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    # A flow's docstring describes each field of its form.
    for name, node in functions():
        long[name] -= lines_of_docstring(node) if name.startswith("flows/") else 0
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES and name not in TABLES} == {}
    assert all(long[name] > MOST_LINES for name in TABLES)


def has_effects(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function waits for something, or brackets what is done in its context."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return isinstance(node, ast.AsyncFunctionDef) or "contextmanager" in decorators


def begins_with_participle(name: str) -> bool:
    first = name.lstrip("_").partition("_")[0]
    return first in PARTICIPLES or (first.endswith("ed") and first not in VERBS_IN_ED)


def test_a_function_with_effects_is_named_for_what_it_does() -> None:
    # A pure function may be named for its value; of `_bought`, nobody would expect that it writes the ledger.
    assert [name for name, node in functions() if has_effects(node) and begins_with_participle(node.name)] == []


def test_the_library_prints_nothing() -> None:
    printing = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert {name for name in printing if not name.startswith("cli/")} <= {"sandbox/__main__.py"}


def test_every_module_is_named_for_what_it_does() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "base", "misc", "core", "shared", "types"}
    assert {path.stem for path in sources()} & vague == set()


def test_no_client_is_made_and_no_environment_read_while_importing() -> None:
    for path in sources():
        for node in parsed(path).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                called = {ast.unparse(call.func) for call in ast.walk(node.value) if isinstance(call, ast.Call)}
                assert not called & {"Settings", "VeogenClient", "open_session", "os.getenv", "os.environ.get"}, path


def changing_names(path: Path) -> Iterator[str]:
    """Give the names of a module that hold something made to change: what is empty at first, weak, or a lock."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            value = node.value
            called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
            is_empty = isinstance(value, ast.Dict | ast.List | ast.Set) and not ast.unparse(value).strip("{}[]")
            if is_empty or re.search(r"Weak|Lock|(^|\.)(dict|list|set|defaultdict|deque|Counter|local)$", called):
                yield ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    for inner in ast.walk(parsed(path)):
        if isinstance(inner, ast.Global):
            yield from inner.names


def test_only_the_outermost_layers_hop_to_the_io_loop() -> None:
    calls = [
        str(path.relative_to(PACKAGE))
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "on_io"
    ]
    assert [name for name in calls if not name.startswith(HOPPING)] == []
    assert calls.count("api/client.py") == 1


def test_what_a_process_shares_is_in_a_registry() -> None:
    found = {f"{path.relative_to(PACKAGE)}:{name}" for path in sources() for name in changing_names(path)}
    assert found == STATE


def test_nothing_of_ours_is_mocked_by_the_tests() -> None:
    forbidden = ("unittest.mock", "mock", "respx", "pytest_mock", "httpx_mock")
    for path in sources(ROOT / "tests"):
        assert not [name for name in imports_of(path) if name.startswith(forbidden)], path
        replaced = [
            ast.unparse(node)
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "monkeypatch.setattr"
            # Names, files and the logo's host are the world's; only a lie of its own shows what a lying one would do.
            and ast.unparse(node.args[0]) not in ("socket", "os", "fcntl")
            and ast.unparse(node.args[1]) != "'_logo_url'"
        ]
        assert replaced == [], path
