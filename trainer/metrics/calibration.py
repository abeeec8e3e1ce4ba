"""Whether a model's probabilities mean what they say: reliability, calibration error, temperature scaling.

A calibrated model is right in 70 % of the cases to which it gives 70 %. Training pushes logits beyond that; one number
per task, fitted on the validation part, divides them back (temperature scaling, Guo et al. 2017). It changes no
ranking and no decision of the largest probability, so only probabilities get better, never accuracy or AUROC.

Shape legend: B records, C logits of a task, t targets of a task, X statements (a probability and whether it came true).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from data_shards import TaskSpec

BINS = 15
RANGE = (math.log(0.05), math.log(20.0))  # of the logarithm


@dataclass(frozen=True)
class Reliability:
    """Statements by stated probability, in equal bins of [0, 1]: how many, mean probability, share that came true."""

    count: Tensor
    stated: Tensor
    true: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap between stated and true, weighted by statements; NaN for none."""
        gap = (self.stated - self.true).abs() * self.count
        return float(gap.sum() / self.count.sum())


def has_temperature(task: TaskSpec) -> bool:
    """Whether its logits are those of classes; those of regression are values, those of survival hazards."""
    return task.kind not in ("regression", "survival")


def bin_of(probability_X: Tensor, bins: int) -> Tensor:
    """int64 [X]: which of the equal bins of [0, 1]."""
    return (probability_X * bins).long().clamp(0, bins - 1)


def reliability(probability_X: Tensor, true_X: Tensor, bins: int = BINS) -> Reliability:
    """Bin statements; `true_X` is 0 or 1."""
    bin_X = bin_of(probability_X, bins)
    empty = torch.zeros(bins, dtype=torch.float64)
    count = empty.index_add(0, bin_X, torch.ones_like(probability_X, dtype=torch.float64))
    stated = empty.index_add(0, bin_X, probability_X.double()) / count.clamp_min(1)
    true = empty.index_add(0, bin_X, true_X.double()) / count.clamp_min(1)
    return Reliability(count, stated, true)


def statements(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor) -> tuple[Tensor, Tensor] | None:
    """(probability_X, true_X) over labelled records; None for regression, and for survival, of which see `censored`.

    Binary and multi-label: the probability of each label. Multi-class: the probability of the chosen class.
    """
    if not has_temperature(task):
        return None
    if task.kind == "multiclass":
        known_B = ~target_Bt[:, 0].isnan()
        probability_B, chosen_B = logits_BC[known_B].softmax(dim=1).max(dim=1)
        return probability_B, (chosen_B == target_Bt[known_B, 0].long()).to(probability_B)
    known_Bt = ~target_Bt.isnan()
    return logits_BC[known_Bt].sigmoid(), target_Bt[known_Bt]


def statements_name(task: TaskSpec) -> str:
    """What `statements` are called in a figure: those of several labels lie together, where the metric `ece` is the
    mean over labels."""
    return f"{task.name}, labels together" if task.kind == "multilabel" and task.dim > 1 else task.name


def nll(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats; NaN without any label."""
    if task.kind == "multiclass":
        known_B = ~target_Bt[:, 0].isnan()
        return float(functional.cross_entropy(logits_BC[known_B], target_Bt[known_B, 0].long()))
    known_Bt = ~target_Bt.isnan()
    return float(functional.binary_cross_entropy_with_logits(logits_BC[known_Bt], target_Bt[known_Bt]))


def fit_temperature(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor) -> float:
    """The temperature that makes these labels most likely when logits are divided by it; 0.05 to 20, 1 = as they are.

    The likelihood has one maximum along the temperature, so a bounded search finds it. 1.0 for tasks that have none and
    where nothing is labelled.
    """
    if not has_temperature(task) or bool(target_Bt.isnan().all()):
        return 1.0
    from scipy import optimize  # late: it would slow every worker's start

    logits_BC, target_Bt = logits_BC.double(), target_Bt.double()

    def cost(log_temperature: float) -> float:
        return nll(task, logits_BC / math.exp(log_temperature), target_Bt)

    return math.exp(optimize.minimize_scalar(cost, bounds=RANGE, method="bounded", options={"xatol": 1e-5}).x)
