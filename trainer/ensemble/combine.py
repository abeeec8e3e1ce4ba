"""The weighted mean of what several models say, as the outputs of one model.

What is averaged are chances, never logits: of a class, of a label, of the time of an event. The mean is turned back
into logits in double precision and in logarithms, so a chance near 0 or 1 loses nothing and nothing is clipped. Of
regression the values are averaged.

Shape legend: M members, B records, C logits of a task, K intervals of a survival task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from data_shards import TaskSpec
from trainer.metrics.predictions import Predictions


def mean_logits(task: TaskSpec, logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Float32 (B, C), whose chances are the members' weighted mean.

    Args:
        logits: of each member, (B, C). weights: not negative, with sum 1.

    Raises ValueError: a task whose answers cannot be averaged.
    """
    used = [(own.double(), weight) for own, weight in zip(logits, weights, strict=True) if weight > 0]
    if len(used) == 1:
        return logits[[weight > 0 for weight in weights].index(True)]
    x_MBC = torch.stack([own for own, _ in used])
    weight_M = torch.tensor([weight for _, weight in used], dtype=torch.float64)
    share_M11 = weight_M.log()[:, None, None]
    if task.kind == "regression":
        return (weight_M[:, None, None] * x_MBC).sum(dim=0).float()
    if task.kind == "multiclass":
        return (x_MBC.log_softmax(dim=2) + share_M11).logsumexp(dim=0).float()
    if task.kind in ("binary", "multilabel"):
        yes_BC, no_BC = ((logsigmoid(sign * x_MBC) + share_M11).logsumexp(dim=0) for sign in (1, -1))
        return (yes_BC - no_BC).float()
    if task.kind == "survival":
        return _mean_hazards(x_MBC, share_M11)
    raise ValueError(f"task {task.name}: answers of kind {task.kind} have no mean, so runs that give them make no one")


def _mean_hazards(x_MBK: Tensor, share_M11: Tensor) -> Tensor:
    """Logits of the hazards of the mean survival curve: the event in an interval against none by its end."""
    alive_MBK = -softplus(x_MBK).cumsum(dim=2)  # log chance by the end of each interval
    before_MBK = torch.cat([torch.zeros_like(alive_MBK[:, :, :1]), alive_MBK[:, :, :-1]], dim=2)
    event_MBK = before_MBK + logsigmoid(x_MBK)
    return ((event_MBK + share_M11).logsumexp(dim=0) - (alive_MBK + share_M11).logsumexp(dim=0)).float()


def combined(
    tasks: Sequence[TaskSpec], members: Sequence[Predictions], weights: Mapping[str, Sequence[float]]
) -> Predictions:
    """What the members say together of the same samples.

    Args:
        weights: task -> weight of each member.

    Raises ValueError: they did not read the same samples.
    """
    first = members[0]
    for number, other in enumerate(members[1:], start=2):
        if not _same(first, other):
            raise ValueError(
                f"members 1 and {number} did not read the same samples: {len(first):,} and {len(other):,}; "
                "predict the same data, with none of it damaged"
            )
    logits = {task.name: mean_logits(task, [own.logits[task.name] for own in members], weights[task.name])
              for task in tasks}  # fmt: skip
    targets = {task.name: first.targets[task.name] for task in tasks}
    return Predictions(first.index_B, logits, targets, {}, first.skipped, first.moment_B)


def _same(first: Predictions, other: Predictions) -> bool:
    if (first.moment_B is None) != (other.moment_B is None) or not torch.equal(first.index_B, other.index_B):
        return False
    if first.moment_B is None or other.moment_B is None:
        return True
    return torch.equal(first.moment_B.nan_to_num(-1.0), other.moment_B.nan_to_num(-1.0))
