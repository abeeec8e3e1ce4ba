"""The first evaluation of a start waits for no import: all ranks would wait with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

METRICS = """
import sys, torch
from data_shards import TaskSpec
from trainer.metrics.scores import task_metrics

truth = torch.tensor([[0.0], [1.0], [1.0]])
for task in (TaskSpec("t", "binary"), TaskSpec("t", "multiclass", classes=("a", "b")), TaskSpec("t", "regression")):
    got = task_metrics(task, torch.zeros(3, task.dim), truth)
    print(len(got), end=" ")
print(*(name for name in ("torchmetrics", "scipy", "sklearn", "matplotlib", "transformers") if name in sys.modules))
"""


def test_metrics_of_every_kind_need_torch_alone():
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", METRICS], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "5", "3"]
