"""Importance loss: no prompt expert is forgotten, and none is punished for small differences.

The importance of an expert is its mean routing weight. Its squared variation over the experts of a site is the loss,
where it is above a threshold; below, value and gradient are exactly zero, so that experts may specialise. A running
mean over steps takes the place of the batch's own importance, because a small batch (in the extreme one sample, whose
confident routing is no imbalance at all) says little. Weights without noise are used.

Shapes: L sites, K experts, B samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parallel import summed_over_ranks
from parallel.moe.balance import squared_variation


class Importance(nn.Module):
    """The loss of all sites together, with its memory of the past.

    Args:
        sites: L. experts: K. cut: squared variation that is free. ema: share of the past.
    """

    def __init__(self, sites: int, experts: int, cut: float, ema: float) -> None:
        super().__init__()
        self.cut, self.ema = cut, ema
        self.register_buffer("mean_LK", torch.full((sites, experts), 1 / experts))
        self.register_buffer("steps_1", torch.zeros(1))
        self.mean_LK: Tensor
        self.steps_1: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """A running mean stays in float32, whatever precision the model has."""
        super()._apply(fn, recurse)
        self.mean_LK, self.steps_1 = self.mean_LK.float(), self.steps_1.float()
        return self

    def forward(self, weights: list[Tensor], counted: list[Tensor]) -> Tensor:
        """Mean over sites of the squared variation above the cut; collective, the same value on every rank.

        Args:
            weights: per site (B, K). counted: per site (B,) bool, samples that count (those with a context).
        """
        sums_LK = torch.stack([(w * c[:, None]).sum(0) for w, c in zip(weights, counted, strict=True)])
        number_L1 = torch.stack([c.sum() for c in counted]).to(sums_LK)[:, None]
        shared = summed_over_ranks(torch.cat([sums_LK, number_L1], 1))
        sums_LK, number_L1 = shared[:, :-1], shared[:, -1:].detach()
        batch_LK = torch.where(number_L1 > 0, sums_LK / number_L1.clamp_min(1), self.mean_LK)
        # The plain mean of all steps so far, until there are enough of them for the running one.
        past = torch.minimum(self.steps_1 / (self.steps_1 + 1), torch.full_like(self.steps_1, self.ema))
        importance_LK = past * self.mean_LK + (1 - past) * batch_LK
        if self.training:
            self.mean_LK, self.steps_1 = importance_LK.detach(), self.steps_1 + 1
        variation_L = squared_variation(importance_LK)
        return torch.where(variation_L > self.cut, variation_L, torch.zeros_like(variation_L)).mean()
