"""What hazards say: the chance to come through to a time, the median time, and one number that ranks records.

Logits are those of the hazards of a task's intervals (`trainer/models/layers/hazard.py`). The cumulative hazard is the
sum of softplus(logit), -log(1 - h), of the intervals that have ended; within an interval it grows evenly, which is a
constant hazard. Nothing is said of what lies beyond the last edge.

Shapes: B records, K intervals, T times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from data_shards import TaskSpec


def edges_of(task: TaskSpec) -> Tensor:
    """float64 (K,): as times are kept, in float32."""
    return torch.tensor(task.edges, dtype=torch.float32).double()


def survival_at_edges(logits_BK: Tensor) -> Tensor:
    """float64 (B, K): chance that nothing has happened by the end of each interval."""
    return (-functional.softplus(logits_BK.double()).cumsum(dim=1)).exp()


def median_time(task: TaskSpec, logits_BK: Tensor) -> Tensor:
    """float64 (B,): when the chance falls to one half; NaN where it is still above at the last edge."""
    grid_K1, total_BK1 = _cumulative(task, logits_BK)
    half_B1 = torch.full((len(logits_BK), 1), math.log(2.0), dtype=torch.float64)
    last = len(grid_K1) - 1
    end_B1 = torch.searchsorted(total_BK1.contiguous(), half_B1)
    inside_B1 = end_B1.clamp(1, last)
    before_B1, after_B1 = total_BK1.gather(1, inside_B1 - 1), total_BK1.gather(1, inside_B1)
    begin_B1, stop_B1 = grid_K1[inside_B1 - 1], grid_K1[inside_B1]
    time_B1 = begin_B1 + (half_B1 - before_B1) / (after_B1 - before_B1) * (stop_B1 - begin_B1)
    return torch.where(end_B1 <= last, time_B1, math.nan)[:, 0]


def risk(task: TaskSpec, logits_BK: Tensor) -> Tensor:
    """float64 (B,): time that is lost before the last edge, on average, in the unit of the times; more is worse.

    It is the area above the curve, the restricted mean time lost (Andersen 2013), and ranks records also where curves
    cross.
    """
    grid_K1, total_BK1 = _cumulative(task, logits_BK)
    hazard_BK = total_BK1.diff(dim=1)
    # The mean of exp(-x) over [0, hazard], which is 1 where nothing happens.
    tiny_BK = hazard_BK < 1e-12
    mean_BK = torch.where(tiny_BK, 1.0, -torch.expm1(-hazard_BK) / hazard_BK.masked_fill(tiny_BK, 1.0))
    lived_BK = (-total_BK1[:, :-1]).exp() * mean_BK
    return ((1 - lived_BK) * grid_K1.diff()).sum(dim=1)


def _cumulative(task: TaskSpec, logits_BK: Tensor) -> tuple[Tensor, Tensor]:
    """(K + 1,) times from 0 to the last edge, and (B, K + 1) cumulative hazards there."""
    total_BK = functional.softplus(logits_BK.double()).cumsum(dim=1)
    return functional.pad(edges_of(task), (1, 0)), functional.pad(total_BK, (1, 0))
