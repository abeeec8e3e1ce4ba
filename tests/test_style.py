"""Linter, formatter and type checker as tests, so that one command says whether the project is in order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "tool",
    [["ruff", "check", "--quiet", "."], ["ruff", "format", "--check", "--quiet", "."], ["mypy", "--no-error-summary"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_tool_finds_nothing(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(tool)}:\n{done.stdout}{done.stderr}"
