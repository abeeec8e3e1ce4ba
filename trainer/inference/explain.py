"""What a single prediction rests on: which modalities it would change without, and which experts served its tokens.

The share of a modality is measured, not read off attention weights: the record is predicted again without it, and the
shares of a record are the changes that this makes, divided by their sum. The share of an expert is the part of the
gate weight of the record's tokens that it received, for each block. Prompt experts say their weights themselves.

Shape legend: B records, M modalities, L blocks, E experts, N tokens, R (token, expert) rows, C logits of a task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import Batch, TaskSpec
from parallel import MoELayer
from parallel.moe.choice import Choice
from trainer.inference.answers import answer
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.missing import keep_modalities
from trainer.models.output import Fused


@dataclass(frozen=True)
class Explained:
    """A model's output and what it rests on: share_BM per task; share_BLE, None where no tokens go to experts."""

    output: Fused
    modalities: dict[str, Tensor]
    experts_BLE: Tensor | None


def check_explainable(model: nn.Module) -> None:
    """Raise ValueError for a model that cannot do without a modality, as each is hidden once."""
    towers: Any = getattr(model, "towers", None)
    stand_ins: Any = getattr(model, "missing", None)
    if towers is not None and set(towers) - set(stand_ins):
        raise ValueError(
            "--explain hides each modality in turn, and this model was trained without a stand-in for an absent "
            "picture or text: fine-tune it with mope.missing=learned, or predict without --explain"
        )


def explain(model: nn.Module, batch: Batch, tasks: list[TaskSpec]) -> Explained:
    """Predict a batch and say what the answers rest on."""
    output, experts_BLE = watched_forward(model, batch)
    return Explained(output, modality_shares(model, batch, tasks, output), experts_BLE)


def watched_forward(model: nn.Module, batch: Batch) -> tuple[Fused, Tensor | None]:
    """The model's output, and share_BLE: gate weight of a record's tokens by expert; sums to 1 per record and block.

    A record without any token has zeros. None for models without a layer of experts.
    """
    fusion: FuseMoE | None = getattr(model, "fusion", None)
    if fusion is None:
        return model(batch), None
    sample_N = fusion.embed(batch)[1].sample_N
    shares: list[Tensor] = []

    def observer(experts: int) -> Callable[[Choice], None]:
        def observe(choice: Choice) -> None:
            total = torch.zeros(len(batch), experts, device=sample_N.device)
            share_BE = total.index_add(0, sample_N, choice.gates())
            shares.append(share_BE / share_BE.sum(dim=1, keepdim=True).clamp_min(1e-12))

        return observe

    layers = [module for module in fusion.blocks.modules() if isinstance(module, MoELayer)]
    try:
        for layer in layers:
            layer.observer = observer(layer.config.experts)
        output = model(batch)
    finally:
        for layer in layers:
            layer.observer = None
    return output, torch.stack(shares, dim=1)


def modality_shares(model: nn.Module, batch: Batch, tasks: list[TaskSpec], whole: Fused) -> dict[str, Tensor]:
    """share_BM per task: how much the answer changes when a modality is hidden, over the sum of all such changes.

    The change is the mean absolute difference of the probabilities (of the value, for regression; of the curve at the
    edges, for survival). Modalities that a
    record does not have get 0; so do all of them where nothing changes anything.
    """
    before = {task.name: answer(task, whole.logits[task.name]) for task in tasks}
    change = {task.name: torch.zeros(batch.present_BM.shape, device=batch.device) for task in tasks}
    for modality in batch.present_BM.any(dim=0).nonzero()[:, 0].tolist():
        keep_BM = torch.ones_like(batch.present_BM)
        keep_BM[:, modality] = False
        logits = model(keep_modalities(batch, keep_BM)).logits
        for task in tasks:
            difference_BC = (answer(task, logits[task.name]) - before[task.name]).abs()
            change[task.name][:, modality] = difference_BC.mean(dim=1) * batch.present_BM[:, modality]
    return {name: value / value.sum(dim=1, keepdim=True).clamp_min(1e-12) for name, value in change.items()}
