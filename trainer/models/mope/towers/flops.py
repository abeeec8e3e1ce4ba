"""What a step of a model with towers costs: tokens of its layers, passes through them, arithmetic of a record."""

from __future__ import annotations

import torch
from torch import Tensor

from data_shards import Batch
from trainer.models.mope.towers.model import TowerModel
from trainer.models.mope.towers.sites import Site


def site_tokens(model: TowerModel, what: str, site: Site) -> float:
    """Tokens of a record at a layer; of texts, the mean."""
    tower = model.tower(what)
    first = float(tower.patches if what == "image" else model.text_tokens)
    return first / 4**site.stage if tower.family == "swin" else first


def passes(model: TowerModel, what: str) -> int:
    """Forward passes that a step of a tower is worth: a frozen one has half of a backward pass, or none."""
    if model.tower(what).trained:
        return 3
    return 2 if what in model.prompts or model.config.method == "lora" else 1


def record_flops(model: TowerModel) -> float:
    """Two FLOPs a weight and token in each pass, of one record."""
    total = 0.0
    for what in model.towers:
        for site in model.tower(what).sites:
            weights = sum(parameter.numel() for parameter in site.layer.parameters())
            total += 2 * site_tokens(model, what, site) * weights * passes(model, what)
    return total


class RecordFlops:
    """Arithmetic of models whose cost is about the same for every record."""

    features: tuple[str, ...] = ("records",)

    def __init__(self, each: float) -> None:
        self.each = each

    def measure(self, batch: Batch) -> Tensor:
        """(1,) float64: records."""
        return torch.tensor([float(len(batch))], dtype=torch.float64, device=batch.device)

    def step_flops(self, features_X: Tensor) -> float:
        """FLOPs of forward and backward."""
        return float(features_X[0]) * self.each
