"""Sums over rows that belong together, by operators that a graph may hold; as `parallel.moe.segments` for training.

Shapes: N rows, S segments, D width, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class GraphSegments:
    """What `Segments` is to a model's forward pass. `segments` may be a number that only the graph knows."""

    segment_N: Tensor
    segments: int

    @staticmethod
    def of(segment_N: Tensor, segments: int, ascending: bool = False) -> GraphSegments:
        """As `Segments.of`; the order of rows makes no difference here."""
        return GraphSegments(segment_N, segments)

    @property
    def counts(self) -> Tensor:
        """int64, rows of each segment."""
        return self.segment_N.new_zeros(self.segments).scatter_add(0, self.segment_N, torch.ones_like(self.segment_N))

    @property
    def start_S1(self) -> Tensor:  # noqa: N802 (an attribute of Segments)
        """int64, where each segment begins, and the number of rows behind the last one; of rows in order."""
        return torch.cat([self.segment_N.new_zeros(1), self.counts.cumsum(0)])

    def sum(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (S, ...) in fp32."""
        return x_ND.new_zeros(self.segments, *x_ND.shape[1:]).scatter_add(0, self._index(x_ND), x_ND)

    def mean(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (S, ...)."""
        return self.sum(x_ND) / self.counts.clamp_min(1).view(-1, *[1] * (x_ND.dim() - 1))

    def min(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (S, ...); 0 for a segment without rows."""
        least = x_ND.new_full((self.segments, *x_ND.shape[1:]), torch.inf)
        least = least.scatter_reduce(0, self._index(x_ND), x_ND, "amin")
        return torch.where(least == torch.inf, 0.0, least)

    def spread(self, x_SD: Tensor) -> Tensor:
        """(S, ...) -> (N, ...)."""
        return x_SD.index_select(0, self.segment_N)

    def softmax(self, score_NH: Tensor) -> Tensor:
        """Over the rows of each segment, by column."""
        top_SH = score_NH.new_full((self.segments, score_NH.shape[1]), -torch.inf)
        top_SH = top_SH.scatter_reduce(0, self._index(score_NH), score_NH, "amax")
        weight_NH = (score_NH - self.spread(top_SH)).exp()
        return weight_NH / self.spread(self.sum(weight_NH))

    def _index(self, x_ND: Tensor) -> Tensor:
        return self.segment_N.view(-1, *[1] * (x_ND.dim() - 1)).expand_as(x_ND)


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

    @property
    def codes(self) -> GraphBlocks:
        """Of rows that are codes: these."""
        return self


def ids_by_offsets(offsets_S1: Tensor, rows: int) -> Tensor:
    """As `layers.ragged.offsets_to_ids`, by counting; rows behind the last offset are of a segment S."""
    ends_S = offsets_S1[1:]
    return ends_S.new_zeros(rows + 1).scatter_add(0, ends_S, torch.ones_like(ends_S)).cumsum(0)[:rows]


def running_max(x_ST: Tensor, least: int) -> Tensor:
    """The largest so far along T, a number known beforehand; all are at least `least`. By doubling: no graph outside
    of torch has `cummax`."""
    steps, reach = x_ST.shape[1], 1
    while reach < steps:
        x_ST = torch.maximum(x_ST, functional.pad(x_ST, (reach, 0), value=least)[:, :steps])
        reach *= 2
    return x_ST
