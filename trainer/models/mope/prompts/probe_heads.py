"""Heads of fine-tuning jobs: one linear layer by default, so that what is gained is gained in the backbone.

Shapes: B records, X inputs, C logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import DatasetSchema, TaskSpec
from data_shards.records.statistics import SplitStatistics
from trainer.models.layers.heads import SCALED, target_scale
from trainer.models.layers.standardise import Constant


class ProbeHead(nn.Module):
    """Vector -> logits of one task; as `heads.Head` in the target's own unit, or about a life table.

    Args:
        hidden: width of a hidden layer with GELU; 0 = linear. mean, std: of `target_scale`.
    """

    def __init__(self, task: TaskSpec, inputs: int, hidden: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.scaled = task.kind in SCALED
        layers: list[nn.Module] = [nn.Linear(inputs, task.dim)]
        if hidden:
            layers = [nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, task.dim)]
        self.network = nn.Sequential(*layers)
        self.mean, self.std = Constant(torch.tensor(mean)), Constant(torch.tensor(std))

    def forward(self, x_BX: Tensor) -> Tensor:
        """(B, X) -> float32 (B, C)."""
        logits_BC: Tensor = self.network(x_BX).float()
        return logits_BC * self.std() + self.mean() if self.scaled else logits_BC


def probe_heads(
    schema: DatasetSchema, tasks: list[str], statistics: SplitStatistics, inputs: int, hidden: int
) -> nn.ModuleDict:
    """A head for each of the named tasks."""
    return nn.ModuleDict(
        {
            task.name: ProbeHead(task, inputs, hidden, *target_scale(statistics, task))
            for task in schema.tasks
            if task.name in tasks
        }
    )
