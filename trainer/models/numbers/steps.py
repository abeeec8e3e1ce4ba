"""A number as steps (piecewise-linear encoding; Gorishniy, Rubachev & Babenko 2022), so that a linear layer bends it.

Step t is 0 below its knot, 1 above the next one, and grows in a straight line between. Numbers are normal scores, so
knots that divide the normal distribution into parts of equal chance stand at quantiles of the training part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.layers.standardise import Constant
from trainer.models.numbers.scale import END

STEPS = 8


class Steps(nn.Module):
    """(...) scores -> (..., STEPS), each in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        inner = torch.special.ndtri(torch.arange(1, STEPS, dtype=torch.float64) / STEPS).float()
        knots = torch.cat([torch.tensor([-END]), inner, torch.tensor([END])])
        self.low, self.width = Constant(knots[:-1]), Constant(knots.diff())

    def forward(self, score: Tensor) -> Tensor:
        return ((score[..., None] - self.low()) / self.width()).clamp(0, 1)
