"""Heads and losses, one per task: binary, multi-class, multi-label, regression; survival's loss is in `hazard.py`.

A label may be missing (NaN): the record then takes no part in that task's loss. Losses are returned as sums over
labelled records, so that the caller can divide by the count over all ranks and micro-batches: a rank without any
labelled record contributes exactly 0, and the result does not depend on how records were spread over ranks.

Shape legend: B records, C logits of a task, t targets of a task (1 for binary and multi-class).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import TaskSpec
from data_shards.records.statistics import SplitStatistics, TaskStatistics
from data_shards.records.survival import life_table
from trainer.models.layers.standardise import Constant

SCALED = ("regression", "survival")  # answers are deviations from what the training part says of all records


class Skip(nn.Module):
    """(B, D) tokens before any fusion, summed -> what they add to the logits (B, C): nothing, before it has learned.

    Without a bias, so that a modality that says nothing adds nothing.
    """

    def __init__(self, dim: int, logits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(logits, dim))

    def forward(self, first_BD: Tensor) -> Tensor:
        return functional.linear(first_BD.to(self.weight.dtype), self.weight).float()


class Head(nn.Module):
    """Pooled vector -> logits of one task.

    A regression head answers in the target's own unit, a survival head about the hazards of a life table, and one of
    classes about `mean` where `answer_scale` gives one.
    """

    def __init__(
        self,
        task: TaskSpec,
        inputs: int,
        hidden: int,
        dropout: float,
        mean: list[float],
        std: list[float],
        skip: Skip | None = None,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.scaled = task.kind in SCALED or any(mean)
        self.network = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, task.dim)
        )
        self.mean, self.std = Constant(torch.tensor(mean)), Constant(torch.tensor(std))

    def forward(self, pooled_BX: Tensor, first_BD: Tensor | None = None) -> Tensor:
        """(B, X), and, for the skip, (B, D) -> float32 (B, C)."""
        logits_BC = self.network(pooled_BX).float()
        if self.skip is not None and first_BD is not None:
            logits_BC = logits_BC + self.skip(first_BD)
        return logits_BC * self.std() + self.mean() if self.scaled else logits_BC


class TaskLoss(nn.Module):
    """Sum of a task's loss over labelled records, and their number.

    Args:
        task: of any kind but survival, whose loss is `hazard.HazardLoss`.
        class_weight: C weights (multi-class), or 2 weights of the classes 0 and 1 (binary); None = all 1.
        scale: standard deviation of the targets (regression); the loss is in units of it.
        focal: power γ of the focal loss (Lin et al. 2017): what is answered with probability p for the true class
            counts (1 - p)^γ times. 0 = the likelihood alone. Of classes and labels.
    """

    def __init__(
        self, task: TaskSpec, class_weight: list[float] | None, scale: list[float], focal: float = 0.0
    ) -> None:
        super().__init__()
        self.kind, self.focal = task.kind, focal
        self.weight = Constant(torch.tensor(class_weight)) if class_weight is not None else None
        self.scale = Constant(torch.tensor(scale))

    def labelled(self, target_Bt: Tensor) -> Tensor:
        """(B, t) targets -> (B,) bool: has any label."""
        return (~target_Bt.isnan()).any(dim=1)

    def forward(self, logits_BC: Tensor, target_Bt: Tensor) -> Tensor:
        return self.of_each(logits_BC, target_Bt).sum()

    def of_each(self, logits_BC: Tensor, target_Bt: Tensor) -> Tensor:
        """(B,) what each record or moment adds to the sum; 0 without a label."""
        present_Bt = ~target_Bt.isnan()
        target_Bt = torch.where(present_Bt, target_Bt, torch.zeros_like(target_Bt))
        each_Bt = self._each(logits_BC, target_Bt) * present_Bt
        # Several targets of one record are averaged: a record counts once.
        return each_Bt.sum(1) / present_Bt.sum(1).clamp_min(1)

    def _each(self, logits_BC: Tensor, target_Bt: Tensor) -> Tensor:
        if self.kind == "regression":
            return functional.smooth_l1_loss(logits_BC / self.scale(), target_Bt / self.scale(), reduction="none")
        if self.kind == "multiclass":
            weight = self.weight() if self.weight is not None else None
            chosen_B = target_Bt[:, 0].long()
            loss_Bt = functional.cross_entropy(logits_BC, chosen_B, weight=weight, reduction="none")[:, None]
            if not self.focal:
                return loss_Bt
            return loss_Bt * self._doubt(functional.cross_entropy(logits_BC, chosen_B, reduction="none")[:, None])
        loss_Bt = functional.binary_cross_entropy_with_logits(logits_BC, target_Bt, reduction="none")
        if self.focal:
            loss_Bt = loss_Bt * self._doubt(loss_Bt)
        if self.weight is not None:
            loss_Bt = loss_Bt * self.weight()[target_Bt.long()]
        return loss_Bt

    def _doubt(self, nats_Bt: Tensor) -> Tensor:
        """(1 - p)^γ of -log p; never quite 0, where a power below 1 would have no slope."""
        return (-torch.expm1(-nats_Bt)).clamp_min(1e-6) ** self.focal


def target_scale(statistics: SplitStatistics, task: TaskSpec) -> tuple[list[float], list[float]]:
    """Mean and deviation of a task's training targets (0 and 1 where there are none).

    Of survival the log odds of the training part's life table, and 1: what a head answers before it has learned.
    """
    table = statistics.tasks.get(task.name)
    if task.kind == "survival":
        hazard_K = life_table(table.counts) if table is not None and table.counts else np.full(task.dim, 0.5)
        return np.log(hazard_K / (1 - hazard_K)).tolist(), [1.0] * task.dim
    mean, std = (table.mean, table.std) if table is not None else ((0.0,), (1.0,))
    return list(mean), [value if value > 1e-12 else 1.0 for value in std]


def answer_scale(
    statistics: SplitStatistics, task: TaskSpec, start: str, balanced: bool = False
) -> tuple[list[float], list[float]]:
    """Mean and scale of a head's answers: `target_scale` of numbers and of survival, of classes 0 and 1, or, with
    `start` = base, what is best said of a record that nobody has looked at, and 1.

    Args:
        balanced: whether classes weigh inversely to their frequency, so that all are alike.
    """
    if task.kind in SCALED:
        return target_scale(statistics, task)
    known = start == "base" and task.name in statistics.tasks
    return base_logits(statistics.tasks[task.name], task, balanced) if known else [0.0] * task.dim, [1.0] * task.dim


def base_logits(table: TaskStatistics, task: TaskSpec, balanced: bool) -> list[float]:
    """Log odds of each label (binary, multi-label) or log frequencies of the classes, of the training part.

    Each class is counted half a time more than it was seen, so one that was never seen has a finite logit.
    """
    if task.kind == "multilabel":
        return [math.log((mean * table.labelled + 0.5) / ((1 - mean) * table.labelled + 0.5)) for mean in table.mean]
    if not table.counts or (balanced and all(table.counts)):
        return [0.0] * task.dim
    counts = [count + 0.5 for count in table.counts]
    if task.kind == "binary":
        return [math.log(counts[1] / counts[0])]
    return [math.log(count / sum(counts)) for count in counts]
