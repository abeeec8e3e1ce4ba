"""A stem and stages of residual blocks over rows of pictures, for all modalities of a group in one pass.

Rows are sorted by block (modality), so every convolution is a grouped matrix product with the modality's own weights:
a row's neighbours are put beside it first. A residual block is norm, convolution, GELU, linear.

Shape legend: N rows, F features of the input, W width of a stage, K rows that a block looks at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from trainer.models.convolutions.pictures import PictureLevel
from trainer.models.convolutions.sizes import EXPANSION, StageSizes
from trainer.models.layers.grouped_linear import GroupedLinear


class ResidualBlock(nn.Module):
    """x + linear(GELU(convolution(norm(x)))). Scale and shift of the norm are part of the convolution."""

    def __init__(self, blocks: int, width: int, taps: int) -> None:
        super().__init__()
        self.convolution = GroupedLinear(blocks, taps * width, EXPANSION * width)
        self.output = GroupedLinear(blocks, EXPANSION * width, width)

    def forward(self, x_NW: Tensor, level: PictureLevel) -> Tensor:
        look_NX = level.neighbours(functional.layer_norm(x_NW, x_NW.shape[1:]))
        hidden_NX = functional.gelu(self.convolution(look_NX, level.blocks))
        return x_NW + self.output(hidden_NX, level.blocks)


class Stages(nn.Module):
    """(N, F) patches of the input -> (N', W) rows of the last stage, normed."""

    def __init__(self, blocks: int, sizes: StageSizes) -> None:
        super().__init__()
        self.sides = tuple(math.isqrt(number) for number in sizes.merged)
        before = (sizes.inputs, *sizes.widths)
        self.embed = nn.ModuleList(
            GroupedLinear(blocks, number * inputs, width)
            for number, inputs, width in zip(sizes.merged, before, sizes.widths, strict=False)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(blocks, width, sizes.taps) for _ in range(sizes.layers))
            for width in sizes.widths
        )

    def forward(self, x_NF: Tensor, levels: Sequence[PictureLevel]) -> Tensor:
        x_NW, before = x_NF, None
        for side, embed, stage, level in zip(self.sides, self.embed, self.stages, levels, strict=True):
            if before is not None:
                x_NW = before.merged(x_NW, side)
            x_NW, before = embed(x_NW, level.blocks), level
            for block in stage:  # type: ignore[attr-defined]
                x_NW = block(x_NW, level)
        return functional.layer_norm(x_NW, x_NW.shape[1:])
