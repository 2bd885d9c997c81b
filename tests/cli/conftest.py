"""Commands run in this process."""

from __future__ import annotations

import pytest

from prefect_veogen.cli import main
from tests.support.commands import Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process and return its exit code, stdout and stderr."""

    def run_it(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as wrong_usage:
            code = int(wrong_usage.code or 0)
        written = capsys.readouterr()
        return code, written.out, written.err

    return run_it
