"""The loss of a micro-batch, scaled so that the engine's averages give the mean over the global batch."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from data_shards import Batch
from parallel import RoutingStats, balance_losses
from trainer.models.layers.heads import TaskLoss
from trainer.models.output import Fused
from trainer.session import Session


def step_loss(
    session: Session,
    batch: Batch,
    output: Fused,
    stats: list[RoutingStats],
    counts: Mapping[str, float],
    met: Container[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's loss of one micro-batch, and its parts as they are logged.

    A part that the whole step has nothing for (a task without a label in it, masks that are not there) is in the loss
    with the value 0, as every parameter takes part in every step; it is not among the parts that are logged, and
    `loss` is not either where nothing was learned from (no label, or of tasks of weight 0 only).

    The engine averages gradients over ranks and micro-batches; task sums are divided by the labels of the whole step,
    so they are multiplied by both numbers. Balance losses are computed from global sums on every rank, whose gradients
    reach only this rank's own tokens: they are multiplied by the number of ranks.

    Args:
        stats: routing of this micro-batch, summed over ranks. counts: task -> labels of the whole step, 1 for none.
        met: tasks that have a label in the step.
    """
    world, micro = session.context.world, session.config.training.accumulation
    parts: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}  # of no task; a task may have the name of one
    learned = False
    total = torch.zeros((), device=session.device)
    for task in session.tasks:
        value = task_loss(session.losses[task.name], output, task.name, batch.targets[task.name])
        mean = value / counts[task.name]
        weight = session.config.training.task_weight(task.name)
        total = total + weight * mean * world * micro
        if task.name in met:
            parts[task.name], learned = mean, learned or weight > 0
    task_total = total / (world * micro)
    moe = session.config.model.moe
    for name, value in balance_losses(stats, moe).items():
        coefficient = getattr(moe, name)
        if coefficient and stats:
            total = total + coefficient * value * world
            terms[name] = coefficient * value / (world * micro)
    for name, value in output.losses.items():
        total = total + value * world
        if name not in output.empty:
            terms[name] = value / (world * micro)
    extra = ("balance", "entropy", "z", *output.losses)
    parts |= terms
    # A model that has no task learns from terms of its own.
    if learned or (not session.tasks and not output.empty):
        parts["loss"] = task_total + sum(terms[name] for name in extra if name in terms)
    return total, parts


def task_loss(loss: TaskLoss, output: Fused, task: str, target_Bt: Tensor) -> Tensor:
    """Sum over labelled records; of a head of several members the mean of theirs."""
    members_KBC = output.members.get(task)
    if members_KBC is None:
        return loss(output.logits[task], target_Bt)  # type: ignore[no-any-return]
    members = len(members_KBC)
    return loss(members_KBC.flatten(0, 1), target_Bt.repeat(members, 1)) / members  # type: ignore[no-any-return]
