"""`python -m trainer` as a process: how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENDS = """
import atexit, runpy, sys

class Last:
    def __del__(self):
        print("the interpreter was taken down")

kept = Last()
atexit.register(print, "what was registered is done")
sys.argv = ["trainer", "no_such_recipe"]
print("printed", end=", ")
runpy.run_module("trainer", run_name="__main__")
"""


def test_a_process_ends_with_its_exit_code_and_without_the_interpreter_s_end() -> None:
    """In that end a thread of gloo that drops its last tensor aborts the process, now and then, on a loaded machine."""
    words = [sys.executable, "-c", ENDS]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "printed, what was registered is done\n")
    assert done.stderr.startswith("error: unknown recipe")
