"""Timed objects in a form that a graph may hold: every pair of a sample and a modality has its place, present or not.

Shapes: O objects of a group, U tokens of an object, Q = M B pairs (modality of the group, sample), T bins, H time
heads, X = T H, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.inference.portable.graph.encoders import latest
from trainer.inference.portable.graph.segments import GraphBlocks, GraphSegments, running_max
from trainer.models.encoders.grid_over_time import GridOverTime
from trainer.models.encoders.series import time_scores
from trainer.models.encoders.tokens_over_time import TokensOverTime
from trainer.models.layers.token_layout import bin_of_time


@dataclass(frozen=True)
class Placed:
    """What each token is. Those of pairs that are not there, or that nobody is to read, are of one more sample."""

    sample_N: Tensor
    block_N: Tensor
    bin_N: Tensor
    final_N: Tensor


@dataclass(frozen=True)
class GraphPlaces:
    """Where objects stand; what layouts of `over_time` are to training.

    Attributes:
        objects: block of each. sample_O, pair_O, bin_O: int64. block_Q, sample_Q: int64, by block, then sample.
        present_Q: bool.
        rows: block of each bin of each pair. last_QT: int64, the last object at or before each bin's end; O: none.
        age_QT: float32, its age in horizons; 1: none.
    """

    objects: GraphBlocks
    sample_O: Tensor
    pair_O: Tensor
    bin_O: Tensor
    block_Q: Tensor
    sample_Q: Tensor
    present_Q: Tensor
    rows: GraphBlocks
    last_QT: Tensor
    age_QT: Tensor
    samples: int
    bins: int

    @property
    def pairs(self) -> int:
        """Q."""
        return self.block_Q.shape[0]

    def read_by(self, read_Q: Tensor) -> Tensor:
        """int64 [Q]: sample of each pair; of those that are not to be read that of nobody."""
        return torch.where(read_Q, self.sample_Q, self.samples)


def places_of(
    objects: GraphBlocks, sample_O: Tensor, time_O: Tensor, present_BM: Tensor, indices: Sequence[int], bins: int
) -> GraphPlaces:
    """Of objects at times in horizons, sorted by block, sample and time.

    Args:
        indices: numbers of the group's modalities.
    """
    samples, pairs, number = present_BM.shape[0], present_BM.shape[0] * len(indices), time_O.shape[0]
    pair_O, bin_O = objects.block_N * samples + sample_O, bin_of_time(time_O, bins)
    sample_B = torch.arange(samples)
    block_Q = torch.cat([torch.full_like(sample_B, block) for block in range(len(indices))])
    last_QT = running_max(latest(pair_O * bins + bin_O, pairs * bins).view(pairs, bins), -1)
    # Behind the last object stands none.
    last_QT = torch.where(last_QT < 0, number, last_QT)
    now_T = torch.arange(1, bins + 1, dtype=torch.float32) / bins
    age_QT = now_T - torch.cat([time_O, time_O.new_zeros(1)])[last_QT]
    return GraphPlaces(
        objects, sample_O, pair_O, bin_O, block_Q, sample_B.repeat(len(indices)),
        torch.cat([present_BM[:, index] for index in indices]), GraphBlocks(block_Q, len(indices)).times(bins), last_QT,
        torch.where(last_QT < number, age_QT, 1.0), samples, bins,
    )  # fmt: skip


class GraphTokensOverTime(TokensOverTime):
    """Tokens of objects, then one for each pair, which is read where the pair is there without any object."""

    def forward(self, token_OUD: Tensor, time_O: Tensor, layout: Any) -> Tensor:
        place_OD = self.place(self.time(time_O), layout.objects)
        token_ND = (token_OUD + place_OD[:, None]).flatten(0, 1)
        return torch.cat([token_ND, self.empty(layout.block_Q)])

    def placed(self, layout: GraphPlaces) -> Placed:
        """See there."""
        empty_Q = layout.present_Q & (GraphSegments(layout.pair_O, layout.pairs).counts == 0)
        last_Q = torch.zeros_like(layout.block_Q).scatter_reduce(0, layout.pair_O, layout.bin_O, "amax")
        each = [layout.sample_O, layout.objects.block_N, layout.bin_O, layout.bin_O == last_Q[layout.pair_O]]
        sample_O, block_O, bin_O, final_O = (own_O.repeat_interleave(self.tokens) for own_O in each)
        end_Q = torch.full_like(layout.block_Q, layout.bins - 1)
        return Placed(
            torch.cat([sample_O, layout.read_by(empty_Q)]),
            torch.cat([block_O, layout.block_Q]),
            torch.cat([bin_O, end_Q]),
            torch.cat([final_O, torch.ones_like(empty_Q)]),
        )


class GraphGrid(GridOverTime):
    """All pairs have their bins; time attention is a softmax over the objects of a pair."""

    def _attend(self, object_OD: Tensor, time_O: Tensor, layout: Any) -> Tensor:
        by_pair = GraphSegments(layout.pair_O, layout.pairs)
        weight_OX = by_pair.softmax(time_scores(self.time, self.query, time_O, self.bins))
        attended_QXD = by_pair.sum(weight_OX[:, :, None] * object_OD[:, None])
        attended_QTX = attended_QXD.view(layout.pairs, self.bins, self.config.heads * object_OD.shape[1])
        some_Q = (by_pair.counts > 0).to(object_OD.dtype)
        return torch.cat([attended_QTX, some_Q[:, None, None].expand(-1, self.bins, 1)], -1)

    def placed(self, layout: GraphPlaces) -> Placed:
        """See there."""
        sample_N = layout.read_by(layout.present_Q).repeat_interleave(self.bins)
        bin_N = torch.arange(self.bins).repeat(layout.pairs)
        return Placed(sample_N, layout.rows.block_N, bin_N, bin_N == self.bins - 1)


OVER_TIME: dict[type[nn.Module], type[nn.Module]] = {TokensOverTime: GraphTokensOverTime, GridOverTime: GraphGrid}
