"""No shell line of the documentation escapes: the parser of the program that it starts understands it."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.cli._app import _app as prefect_app
from prefect.settings import Settings as PrefectSettings
from prefect.settings.legacy import _get_settings_fields

from prefect_veogen import Settings
from prefect_veogen.cli.arguments import parser
from prefect_veogen.sandbox.__main__ import main as sandbox
from tests.support.commands import COMMANDS
from tests.support.examples import PAGES, ROOT

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PREFECT_VARIABLES = {*_get_settings_fields(PrefectSettings)}
DEPLOYMENTS = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]


def lines() -> list[str]:
    """Return the lines of all shell blocks, and what stands between backticks and begins like one."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found |= {line.strip() for line in block.splitlines()}
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
        found |= {span for span in spans if re.match(r"(prefect-veogen|python|pip) \S", span)}
    return sorted(found - {""})


def words_of(line: str) -> list[str]:
    return shlex.split(line.removeprefix(".venv/bin/"), comments=True)


LINES = [line for line in lines() if words_of(line)]


def test_there_are_lines_of_every_kind() -> None:
    assert {words_of(line)[0] for line in LINES} == {"prefect-veogen", "prefect", "python", "make", "pip", "export"}


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_understood(line: str) -> None:
    program, *words = words_of(line)
    {
        "prefect-veogen": check_own,
        "prefect": check_prefect,
        "python": check_python,
        "make": check_make,
        "pip": check_pip,
        "export": check_export,
    }[program](words)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.stem)
def test_a_page_that_runs_a_flow_from_a_checkout_says_how_without_one(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"^python flows/(\w+)\.py", text, re.MULTILINE):
        assert f"python -m prefect_veogen.flows.{name}" in text
    for name in re.findall(r"^from flows\.(\w+) import", text, re.MULTILINE):
        assert f"prefect_veogen.flows.{name}" in text


def check_own(words: list[str]) -> None:
    if words[0] == "sandbox":
        check_sandbox(words[1:])
    else:
        assert parser().parse_args(words).command in COMMANDS


def check_sandbox(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sandbox([*words, "--help"])
    assert ended.value.code == 0


def check_prefect(words: list[str]) -> None:
    words = [word for word in words if word != "--no-prompt"]
    command, bound, _ = prefect_app.parse_args(words, exit_on_error=False, print_error=False)
    assert callable(command)
    if words[:2] == ["deployment", "run"]:
        check_run(bound.arguments["name"], bound.arguments.get("params") or [])


def check_run(name: str, parameters: list[str]) -> None:
    """Check that there is such a deployment, and that its flow has those parameters."""
    (flow,) = (flow_of(it) for it in DEPLOYMENTS if it["name"] == name.partition("/")[2])
    assert flow.name == name.partition("/")[0]
    assert {it.partition("=")[0] for it in parameters} <= {*inspect.signature(flow.fn).parameters}


def flow_of(deployment: dict[str, Any]) -> Flow[Any, Any]:
    path, _, name = deployment["entrypoint"].partition(":")
    flow: Flow[Any, Any] = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    return flow


def check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "prefect_veogen.sandbox"]:
        check_sandbox(words[2:])
        return
    module, *given = words[words[0] == "-m" :]
    path = f"{module.removeprefix('prefect_veogen.').replace('.', '/')}.py" if words[0] == "-m" else module
    source = (ROOT / path).read_text()
    assert '__name__ == "__main__"' in source
    if words[0] == "-m" and not given:  # named in a sentence, after the line with its arguments
        return
    taken = re.search(r"sys\.argv\[1:(\d)\]|sys\.argv\[(1)\]", source)
    assert len(given) == (0 if taken is None else int(taken[1] or 2) - 1)


def check_make(words: list[str]) -> None:
    assert words[0] in TARGETS


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for word in words[1:]:
        if extra := re.fullmatch(r"prefect-veogen\[(\w+)\]", word):
            assert f"\n{extra[1]} = [" in extras


def check_export(words: list[str]) -> None:
    for word in words:
        name = word.partition("=")[0]
        assert name in {f"VEOGEN_{field.upper()}" for field in Settings.model_fields} or name in PREFECT_VARIABLES
