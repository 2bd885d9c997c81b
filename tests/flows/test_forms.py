"""The forms in Prefect's UI: each field of each deployed flow says what it is, in the flow's own docstring."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

ROOT = Path(__file__).parents[2]
FLOWS = sorted(path.stem for path in (ROOT / "flows").glob("*.py"))


def form_of(name: str) -> dict[str, dict[str, Any]]:
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    assert isinstance(flow, Flow)
    return parameter_schema(flow.fn).properties


@pytest.mark.parametrize("name", FLOWS)
def test_every_field_is_described_and_has_a_widget(name: str) -> None:
    form = form_of(name)
    assert form
    assert {field: has.get("description", "") for field, has in form.items() if not has.get("description")} == {}
    assert [field for field, has in form.items() if not has.keys() & {"type", "anyOf", "$ref", "enum"}] == []


@pytest.mark.parametrize("name", FLOWS)
def test_the_form_describes_no_field_that_is_not_there(name: str) -> None:
    text = inspect.getdoc(getattr(importlib.import_module(f"flows.{name}"), name).fn) or ""
    lines = text.partition("\nArgs:\n")[2].partition("\n\n")[0].splitlines()
    described = [line.strip().partition(":")[0] for line in lines if not line.startswith("     ")]
    assert described == list(form_of(name)), "in the order of the form"


@pytest.mark.parametrize("name", FLOWS)
def test_the_form_asks_for_nothing_that_only_python_has(name: str) -> None:
    assert "format': 'path" not in str(form_of(name))
    assert "Asset" not in str(form_of(name))


def test_the_form_of_the_approval_refuses_the_numbers_that_the_flow_would() -> None:
    form = form_of("approve_then_animate")
    assert (form["variants"]["minimum"], form["variants"]["maximum"]) == (1, 24)
    assert form["approval_timeout_seconds"]["exclusiveMinimum"] == 0
    assert form["approval_timeout_seconds"]["maximum"] == 10 * 366 * 24 * 3600
