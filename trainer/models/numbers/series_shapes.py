"""Which shapes whole series are made of, by fixed kernels on their even grids: what a grid of a few bins averages away.

A series of one channel beside wider ones stands in all of their columns, so that every kernel answers it.

Shapes: P pairs (sample, modality), O events, F features of the widest modality, R moments of all grids, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.moe.segments import Segments
from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.ragged import offsets_to_ids
from trainer.models.layers.standardise import Constant
from trainer.models.numbers.even_grid import moments_of_pairs, on_even_grid
from trainer.models.numbers.kernels import DETAILS
from trainer.models.numbers.whole_signal import WholeSignal

DETAIL = DETAILS["fine_kernels"]


@dataclass(frozen=True)
class EvenLayout:
    """Numbers of the host: moments of all grids, and at how many of one grid kernels look, at most."""

    rows: int
    looked_at: int

    @staticmethod
    def of(offsets_P1: Tensor, channels_O: Tensor, widest: int) -> EvenLayout:
        """From where the events of each pair begin and their channels, on the CPU."""
        pair_O = offsets_to_ids(offsets_P1, channels_O.shape[0])
        segments = (offsets_P1.shape[0] - 1) * widest
        count_P = moments_of_pairs(torch.bincount(pair_O * widest + channels_O, minlength=segments), widest)
        return EvenLayout(int(count_P.sum()), min(DETAIL.moments, int(count_P.max())) if len(count_P) else 0)


class SeriesShapes(nn.Module):
    """Events of all series modalities -> (P, D).

    Args:
        widths: channels of each modality.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.widest = max(widths)
        self.column_MF = Constant(torch.arange(self.widest) % torch.tensor(widths)[:, None])
        self.whole = WholeSignal(self.widest, DETAIL, True, dim, len(widths))

    def forward(
        self, score_O: Tensor, time_O: Tensor, by_feature: Any, block_P: Tensor, pairs: Blocks, own: EvenLayout
    ) -> Tensor:
        """Scores by the model's scale, times in horizons, both sorted by `by_feature`: pair * F + channel."""
        start_P1 = starts_of(by_feature.counts, self.widest)
        pair_R = offsets_to_ids(start_P1, own.rows)
        value_RF = self.values(score_O, time_O, by_feature, start_P1, pair_R, block_P)
        by_pair = Segments.of(pair_R, block_P.shape[0], ascending=True)
        return self.whole(value_RF, by_pair, start_P1, own.looked_at, pairs)  # type: ignore[no-any-return]

    @torch.no_grad()
    def values(
        self, score_O: Tensor, time_O: Tensor, by_feature: Any, start_P1: Tensor, pair_R: Tensor, block_P: Tensor
    ) -> Tensor:
        """(R, F): each pair's grid, in as many columns as the widest has."""
        value_RF = on_even_grid(score_O, time_O, by_feature, self.widest, start_P1, pair_R)
        return value_RF.gather(1, self.column_MF().long()[block_P[pair_R]])


def starts_of(count_S: Tensor, widest: int) -> Tensor:
    """(P + 1,): where each pair's moments begin, and how many there are."""
    count_P = moments_of_pairs(count_S, widest)
    return torch.cat([count_P.new_zeros(1), count_P.cumsum(0)])
