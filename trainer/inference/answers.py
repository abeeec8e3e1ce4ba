"""What a model says: of a batch, by task, and of one task as numbers whose differences mean something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from data_shards import Batch, TaskSpec
from trainer.metrics.predictions import Predictions
from trainer.metrics.survival import survival_at_edges
from trainer.models.output import Fused


def answer(task: TaskSpec, logits_BC: Tensor) -> Tensor:
    """Logits as probabilities, of survival those to live beyond each edge; the values themselves for regression."""
    if task.kind == "regression":
        return logits_BC
    if task.kind == "survival":
        return survival_at_edges(logits_BC).to(logits_BC)
    return logits_BC.softmax(dim=1) if task.kind == "multiclass" else logits_BC.sigmoid()


def predicted(
    tasks: Sequence[TaskSpec], output: Fused, batch: Batch, temperatures: Mapping[str, float] | None = None
) -> Predictions:
    """A model's output of a batch, on the CPU.

    Args:
        temperatures: task -> number that its logits are divided by.
    """
    by_task = temperatures or {}
    logits = {task.name: (output.logits[task.name] / by_task.get(task.name, 1.0)).cpu() for task in tasks}
    targets = {task.name: batch.targets[task.name].cpu() for task in tasks}
    moment_B = None if batch.moment_B is None else batch.moment_B.cpu()
    return Predictions(batch.index_B.cpu(), logits, targets, moment_B=moment_B)
