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
from trainer.models.layers.grouped_linear import Blocks


@dataclass(frozen=True)
class PictureLevel:
    """Rows of one stage, `height` x `width` of each picture; `blocks`: how many each modality has."""

    blocks: Blocks
    height: int
    width: int

    def neighbours(self, x_NW: Tensor) -> Tensor:
        """(N, K * W): the square of rows around each row, line by line, zeros beyond the picture's edges."""
        x_PhwW = x_NW.view(-1, self.height, self.width, x_NW.shape[1])
        edge = SIDE // 2
        wide = functional.pad(x_PhwW, (0, 0, edge, edge, edge, edge))
        shifts = [(down, right) for down in range(SIDE) for right in range(SIDE)]
        look = [wide[:, down : down + self.height, right : right + self.width] for down, right in shifts]
        return torch.cat(look, dim=-1).view(x_NW.shape[0], len(look) * x_NW.shape[1])

    def merged(self, x_NW: Tensor, side: int) -> Tensor:
        """(N / side², side² * W): squares of rows as the next stage's rows."""
        return squares(x_NW.view(-1, self.height, self.width, x_NW.shape[1]), side)


def squares(x_PhwW: Tensor, side: int) -> Tensor:
    """(P, h, w, W) -> (P * h/side * w/side, side * side * W)."""
    pictures, height, width, channels = x_PhwW.shape
    cut = x_PhwW.reshape(pictures, height // side, side, width // side, side, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side * channels)
