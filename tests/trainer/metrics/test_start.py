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
life = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 0.0]])
print(len(task_metrics(TaskSpec("t", "survival", edges=(1.0, 2.0)), torch.zeros(3, 2), life)), end=" ")
for task in (TaskSpec("t", "binary"), TaskSpec("t", "multiclass", classes=("a", "b")), TaskSpec("t", "regression")):
    got = task_metrics(task, torch.zeros(3, task.dim), truth)
    print(len(got), end=" ")
LATE = ("torchmetrics", "sksurv", "scipy", "sklearn", "matplotlib", "transformers")
print(*(name for name in LATE if name in sys.modules))
"""


def test_metrics_of_every_kind_need_torch_alone():
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", METRICS], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "6", "5", "3"]
