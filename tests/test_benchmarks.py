"""Benchmarks that cannot be run everywhere still have to work where they can be."""

from __future__ import annotations

import json
import subprocess
import sys

WITHOUT = """
import importlib.abc, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "deepspeed", "mlflow", "webdataset", "torchmetrics"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Absent())
sys.argv = ["gpu", "--device", "cpu", "--rounds", "1"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_the_gpu_benchmark_needs_nothing_but_torch_and_runs_on_a_cpu() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "gpu" and result["device"] == "cpu"
    assert set(result["ratios"]) == {"layer-d64-e8-k2", "loop-d64-e8-k2", "block-d64", "mfu-d64"}
    assert all(value > 0 for value in result["ratios"].values())
