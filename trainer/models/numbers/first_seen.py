"""A scale that a new model takes from the training records it is shown first.

For numbers that only the model itself makes, so that the manifest has no statistics of them. They are parameters and
not constants: a checkpoint holds them, they move with the rest, and a model that goes on looks at nothing again
(data-dependent initialisation, arXiv 1511.06856).

Shapes: P rows, sorted by block, M blocks (modalities of the group), X features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.layers.grouped_linear import Blocks

LEAST_SPREAD = 0.01  # of a feature: one that hardly differs is not blown up
ENOUGH = 2  # rows of a block, below which it is left as it is


class FirstSeen(nn.Module):
    """(x - shift) * scale by (block, feature); 0 and 1 until `begin` ... `finish`, with records between, set them.

    Args:
        deviation: that features are brought to. A step of Adam moves each weight alike, so all of X features together
            move what is made of them by X times as much: the more there are, the smaller they should be.
    """

    def __init__(self, blocks: int, features: int, deviation: float = 1.0) -> None:
        super().__init__()
        self.deviation = deviation
        self.shift, self.scale = nn.Parameter(torch.zeros(blocks, features)), nn.Parameter(torch.ones(blocks, features))
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x_PX: Tensor, pairs: Blocks) -> Tensor:
        """float32, as `x_PX` is."""
        by_block = pairs.segments
        if self._sums is not None:
            self._add(x_PX.double(), by_block.segment_N)
        shift_PX, scale_PX = by_block.spread(self.shift), by_block.spread(self.scale)
        return (x_PX - shift_PX.float()) * scale_PX.float()

    def begin(self) -> None:
        """From here on, what goes through is looked at."""
        zeros_MX = self.shift.detach().double() * 0
        self._sums = (zeros_MX[:, 0].clone(), zeros_MX, zeros_MX.clone())

    def rows(self) -> int:
        """Looked at so far. The host waits."""
        return 0 if self._sums is None else int(self._sums[0].sum())

    @torch.no_grad()
    def finish(self) -> list[int]:
        """Shift and scale are what brings the rows of each block to mean 0 and the deviation, of the population.

        Returns the blocks of which too few were seen: their shift is 0, as if their deviation were 1. The host waits.
        """
        assert self._sums is not None
        count_M, sum_MX, squares_MX = self._sums
        known_M1, count_M1 = (count_M >= ENOUGH)[:, None], count_M.clamp_min(1)[:, None]
        mean_MX = sum_MX / count_M1
        spread_MX = (squares_MX / count_M1 - mean_MX.square()).clamp_min(0).sqrt().clamp_min(LEAST_SPREAD)
        self.shift.copy_(torch.where(known_M1, mean_MX, 0.0))
        self.scale.copy_(torch.where(known_M1, self.deviation / spread_MX, self.deviation))
        self._sums = None
        return (count_M < ENOUGH).nonzero()[:, 0].tolist()

    def _add(self, x_PX: Tensor, block_P: Tensor) -> None:
        assert self._sums is not None
        for total, own in zip(self._sums, (torch.ones_like(x_PX[:, 0]), x_PX, x_PX.square()), strict=True):
            total.index_add_(0, block_P, own)
