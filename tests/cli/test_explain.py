"""`prefect-veogen explain`: an error's entry, offline, from a checkout and from the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prefect_veogen import errors
from prefect_veogen.errors import StillRunning
from tests.support.commands import Run

ROOT = Path(__file__).parents[2]


def test_the_command_that_an_error_names_prints_its_entry(run: Run) -> None:
    command = str(StillRunning("It runs")).partition("(more: prefect-veogen ")[2].removesuffix(")")
    code, out, err = run(*command.split())
    assert (code, err) == (0, "")
    assert out.startswith("StillRunning\n\nWhat happened. The time of waiting is over")
    assert "**" not in out
    assert "](" not in out


@pytest.mark.parametrize("name", ["stillrunning", "prefect_veogen.errors.StillRunning"])
def test_a_name_is_found_however_it_is_written(run: Run, name: str) -> None:
    assert run("explain", name) == run("explain", "StillRunning")


def test_a_misspelt_name_gets_the_nearest_one(run: Run) -> None:
    code, out, err = run("explain", "StilRuning")
    assert (code, out) == (1, "")
    assert err == "Error: There is no error 'StilRuning'\nWhat to do: Is StillRunning meant?\n"
    assert "`prefect-veogen explain` lists all" in run("explain", "zzz")[2]


def test_without_a_name_all_are_listed(run: Run) -> None:
    code, out, _ = run("explain")
    assert code == 0
    listed = [line.split()[0] for line in out.splitlines()[1:-2]]
    assert listed[0] == "VeogenError"
    assert all(issubclass(getattr(errors, name), errors.VeogenError) for name in listed)


@pytest.mark.slow
def test_the_wheel_brings_the_entries_along(tmp_path: Path) -> None:
    build = [str(ROOT / ".uv/bin/uv"), "build", "--quiet", "--wheel", "--python", sys.executable]
    subprocess.run([*build, "--no-build-isolation", "--out-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    story = "from prefect_veogen.cli import main; main(['explain', 'UnsafeStore'])"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {story}"],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith("UnsafeStore\n")
