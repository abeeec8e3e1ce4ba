"""The kernels for GPUs: run by Triton's interpreter, and compiled for a card that is not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(("file", "interpreted", "tests"), [("interpreted.py", "1", 36), ("compiled.py", "0", 16)])
def test_kernels(file: str, interpreted: str, tests: int) -> None:
    pytest.importorskip("triton", reason="the kernels need triton, which there is for Linux only")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name(file))],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": interpreted, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stdout.count(".") >= tests and "skipped" not in done.stdout, done.stdout
