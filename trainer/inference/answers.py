"""What a model says of a task, as numbers whose differences mean something."""

from __future__ import annotations

from torch import Tensor

from data_shards import TaskSpec
from trainer.metrics.survival import survival_at_edges


def answer(task: TaskSpec, logits_BC: Tensor) -> Tensor:
    """Logits as probabilities, of survival those to live beyond each edge; the values themselves for regression."""
    if task.kind == "regression":
        return logits_BC
    if task.kind == "survival":
        return survival_at_edges(logits_BC).to(logits_BC)
    return logits_BC.softmax(dim=1) if task.kind == "multiclass" else logits_BC.sigmoid()
