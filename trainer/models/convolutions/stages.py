"""A stem and stages of residual blocks over rows, for all modalities of a group in one pass.

What the rows are neighbours of, a signal's samples or a picture's pixels, only a `Level` knows: how a row's neighbours
are put beside it, which rows are merged, and which are no part of any object. Rows are sorted by block (modality), so
every convolution is a grouped matrix product with the modality's own weights.

A residual block is norm, convolution, GELU, linear. Rows that belong to no object stay 0, so an object never sees
another one, nor how many there are.

Shape legend: N rows, F features of the input, W width of a stage, K rows that a block looks at.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from trainer.models.convolutions.sizes import EXPANSION, StageSizes
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear


@dataclass(frozen=True)
class Level:
    """Rows of one stage. `valid_N1`: 1 for rows of an object and 0 for others, None if there are none of these."""

    blocks: Blocks
    valid_N1: Tensor | None

    @abstractmethod
    def neighbours(self, x_NW: Tensor, taps: int) -> Tensor:
        """(N, K * W): each row's neighbours in a fixed order, zeros beyond the edges."""

    @abstractmethod
    def merged(self, x_NW: Tensor, number: int) -> Tensor:
        """(N / number, number * W): rows that lie together, as the next stage's rows."""

    def keep(self, x_NW: Tensor) -> Tensor:
        """Zeros where no object is."""
        return x_NW if self.valid_N1 is None else x_NW * self.valid_N1.to(x_NW.dtype)


class ResidualBlock(nn.Module):
    """x + linear(GELU(convolution(norm(x)))). Scale and shift of the norm are part of the convolution."""

    def __init__(self, blocks: int, width: int, taps: int) -> None:
        super().__init__()
        self.taps = taps
        self.convolution = GroupedLinear(blocks, taps * width, EXPANSION * width)
        self.output = GroupedLinear(blocks, EXPANSION * width, width)

    def forward(self, x_NW: Tensor, level: Level) -> Tensor:
        look_NX = level.neighbours(functional.layer_norm(x_NW, x_NW.shape[1:]), self.taps)
        hidden_NX = functional.gelu(self.convolution(look_NX, level.blocks))
        return x_NW + level.keep(self.output(hidden_NX, level.blocks))


class Stages(nn.Module):
    """(N, F) patches of the input -> (N', W) rows of the last stage, normed."""

    def __init__(self, blocks: int, sizes: StageSizes) -> None:
        super().__init__()
        self.merged = sizes.merged
        before = (sizes.inputs, *sizes.widths)
        self.embed = nn.ModuleList(
            GroupedLinear(blocks, number * inputs, width)
            for number, inputs, width in zip(sizes.merged, before, sizes.widths, strict=False)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(blocks, width, sizes.taps) for _ in range(sizes.layers))
            for width in sizes.widths
        )

    def forward(self, x_NF: Tensor, levels: Sequence[Level]) -> Tensor:
        x_NW, before = x_NF, None
        for number, embed, stage, level in zip(self.merged, self.embed, self.stages, levels, strict=True):
            if before is not None:
                x_NW = before.merged(x_NW, number)
            x_NW, before = level.keep(embed(x_NW, level.blocks)), level
            for block in stage:  # type: ignore[attr-defined]
                x_NW = block(x_NW, level)
        return functional.layer_norm(x_NW, x_NW.shape[1:])
