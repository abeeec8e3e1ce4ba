"""Sums over rows that belong together, by operators that a graph may hold; as `parallel.moe.segments` for training.

Shapes: N rows, S segments, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GraphSegments:
    """What `Segments` is to a model's forward pass. `segments` may be a number that only the graph knows."""

    segment_N: Tensor
    segments: int

    @staticmethod
    def of(segment_N: Tensor, segments: int, ascending: bool = False) -> GraphSegments:
        """As `Segments.of`; the order of rows makes no difference here."""
        return GraphSegments(segment_N, segments)

    def __len__(self) -> int:
        return self.segments

    @property
    def counts(self) -> Tensor:
        """int64, rows of each segment."""
        return self.segment_N.new_zeros(self.segments).index_add(0, self.segment_N, torch.ones_like(self.segment_N))

    def sum(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (S, ...) in fp32."""
        return x_ND.new_zeros(self.segments, *x_ND.shape[1:]).index_add(0, self.segment_N, x_ND)

    def mean(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (S, ...)."""
        return self.sum(x_ND) / self.counts.clamp_min(1).view(-1, *[1] * (x_ND.dim() - 1))

    def spread(self, x_SD: Tensor) -> Tensor:
        """(S, ...) -> (N, ...)."""
        return x_SD.index_select(0, self.segment_N)

    def softmax(self, score_NH: Tensor) -> Tensor:
        """Over the rows of each segment, by column."""
        index_NH = self.segment_N[:, None].expand_as(score_NH)
        top_SH = score_NH.new_full((self.segments, score_NH.shape[1]), -torch.inf)
        top_SH = top_SH.scatter_reduce(0, index_NH, score_NH, "amax")
        weight_NH = (score_NH - self.spread(top_SH)).exp()
        return weight_NH / self.spread(self.sum(weight_NH))


@dataclass(frozen=True)
class GraphBlocks:
    """What `Blocks` is to layers with a weight for each modality: the block of each row, in any order."""

    block_N: Tensor
    blocks: int

    def times(self, each: int) -> GraphBlocks:
        """Of so many rows for each of these."""
        return GraphBlocks(self.block_N.repeat_interleave(each), self.blocks)

    @property
    def segments(self) -> GraphSegments:
        """The block of each row."""
        return GraphSegments(self.block_N, self.blocks)
