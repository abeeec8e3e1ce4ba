"""A type of job that is not the project's: it learns from which modalities a record has, and from nothing else.

It stands for a package that somebody has installed: this folder on the path is all that is needed, as the entry point
of the dist-info folder beside this file names the class. `tests/trainer/models/test_job_type.py` trains, resumes,
evaluates, predicts and plans it by the ordinary commands.

Shapes: B records, M modalities, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from data_shards import Batch, DatasetSchema, TaskSpec
from data_shards.records.statistics import SplitStatistics
from parallel import Dispatcher
from trainer.config.run_config import RunConfig
from trainer.config.section import Section
from trainer.models.job_type import JobType, RecordCost
from trainer.models.output import Fused


class PresenceConfig(Section):
    """Section `presence`."""

    width: int = Field(4, ge=1, description="width of the layer between presence and heads")


class PresenceModel(nn.Module):
    """Presence -> one layer -> a linear head a task."""

    def __init__(self, schema: DatasetSchema, tasks: list[str], width: int) -> None:
        super().__init__()
        self.inside = nn.Linear(len(schema.modalities), width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, schema.task(name).dim) for name in tasks})

    def forward(self, batch: Batch) -> Fused:
        present_BM = batch.present_BM.to(self.inside.weight.dtype)
        pooled_BD = self.inside(present_BM).tanh()
        return Fused({name: head(pooled_BD).float() for name, head in self.heads.items()}, [], pooled_BD)


class PresenceCounter:
    """Two FLOPs a weight and record, three times for forward and backward."""

    features = ("records",)

    def __init__(self, model: nn.Module) -> None:
        self.each = 6.0 * sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)

    def measure(self, batch: Batch) -> Tensor:
        return torch.tensor([float(len(batch))], dtype=torch.float64, device=batch.device)

    def step_flops(self, features_X: Tensor) -> float:
        return float(features_X[0]) * self.each


class PresenceJob(JobType):
    """`job: presence`."""

    name = "presence"
    section = PresenceConfig

    def build(
        self,
        config: RunConfig,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        dispatcher: Dispatcher,
        weights: bool = True,
    ) -> PresenceModel:
        return PresenceModel(schema, tasks, config.presence.width)  # type: ignore[attr-defined]

    def counter(self, config: RunConfig, schema: DatasetSchema, tasks: list[TaskSpec], model: Any) -> PresenceCounter:
        return PresenceCounter(model)

    def cost(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: Any) -> RecordCost:
        width = model.inside.out_features
        return RecordCost(PresenceCounter(model).each, len(schema.modalities) + width, width)
