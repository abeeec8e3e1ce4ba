"""Pictures of one size as rows, one a pixel or a square of them.

Rows of a picture lie line by line; a square of rows becomes one of the next stage.

Shape legend: P pictures, h x w rows of one, W width, K = 9 rows that a block looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.models.convolutions.sizes import SIDE
from trainer.models.convolutions.stages import Level


@dataclass(frozen=True)
class PictureLevel(Level):
    """Rows of pictures, `height` x `width` each."""

    height: int
    width: int

    def neighbours(self, x_NW: Tensor, taps: int) -> Tensor:
        x_PhwW = x_NW.view(-1, self.height, self.width, x_NW.shape[1])
        edge = SIDE // 2
        wide = functional.pad(x_PhwW, (0, 0, edge, edge, edge, edge))
        shifts = [(down, right) for down in range(SIDE) for right in range(SIDE)]
        look = [wide[:, down : down + self.height, right : right + self.width] for down, right in shifts]
        return torch.cat(look, dim=-1).view(len(x_NW), taps * x_NW.shape[1])

    def merged(self, x_NW: Tensor, number: int) -> Tensor:
        side = round(number**0.5)
        return squares(x_NW.view(-1, self.height, self.width, x_NW.shape[1]), side)


def squares(x_PhwW: Tensor, side: int) -> Tensor:
    """(P, h, w, W) -> (P * h/side * w/side, side * side * W)."""
    pictures, height, width, channels = x_PhwW.shape
    cut = x_PhwW.reshape(pictures, height // side, side, width // side, side, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side * channels)
