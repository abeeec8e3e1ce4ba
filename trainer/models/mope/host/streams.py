"""The present (sample, modality) pairs of a batch: what a FuseMoE host is prompted by and at.

Shapes: B samples, M modalities, Q present pairs, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from data_shards import Batch
from parallel.moe.segments import Segments
from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.ragged import pick_rows, put_rows
from trainer.models.layers.token_layout import TokenLayout


@dataclass(frozen=True)
class Pairs:
    """The present (sample, modality) pairs of a batch, sorted as their tokens are, and the pair of each token."""

    sample_Q: Tensor
    modality_Q: Tensor
    tokens: Segments
    """the pair of each encoded token"""
    blocks: Blocks
    """pairs of each block of grouped layers"""
    present_BM: Tensor

    def pooled(self, x_ND: Tensor) -> Tensor:
        """(Q, D) mean over a pair's tokens."""
        total_QD = self.tokens.sum(x_ND[: len(self.tokens.segment_N)]).to(x_ND.dtype)
        return total_QD / self.tokens.counts[:, None].clamp_min(1)

    def table(self, x_QX: Tensor) -> Tensor:
        """(B, M, X): what each pair has, zeros for those that are absent."""
        samples, modalities = self.present_BM.shape
        return put_rows(x_QX, self._cells(), samples * modalities).unflatten(0, (samples, modalities))

    def of_table(self, x_BMX: Tensor) -> Tensor:
        """(Q, X): inverse of `table`."""
        return pick_rows(x_BMX.flatten(0, 1), self._cells())

    def _cells(self) -> Tensor:
        return self.sample_Q * self.present_BM.shape[1] + self.modality_Q


def pairs_of(layout: TokenLayout, batch: Batch) -> Pairs:
    """Pairs of a batch, from the layout of its tokens."""
    firsts, repeats, start = [], [], 0
    for span in layout.spans:
        firsts.append(span.first_rows(batch.device))
        repeats.append(start + span.pair_of_row(batch.device))
        start += span.pairs
    first_Q = torch.cat(firsts)
    tokens = Segments.of(torch.cat(repeats), start, ascending=True)
    return Pairs(layout.sample_N[first_Q], layout.modality_N[first_Q], tokens, layout.pairs, batch.present_BM)


def states_width(layers: int, modalities: int, dim: int) -> int:
    """Number of values that `StreamStates` adds to the pooled vector."""
    return (layers + 1) * modalities * dim


class StreamStates:
    """Collects the streams of one batch: call it with the tokens before the first and after every block."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._found: list[Tensor] = []

    def __call__(self, x_ND: Tensor) -> None:
        """Mean token of every present pair, at unit variance: depths differ in scale. What is absent is zero."""
        pairs = self.pairs
        state_QD = functional.layer_norm(pairs.pooled(x_ND), x_ND.shape[1:])
        self._found.append(pairs.table(state_QD).flatten(1))

    def beside(self, pooled_BX: Tensor) -> Tensor:
        """(B, X + `states_width`): the pooled vector, each query's part at unit variance, then all that was seen."""
        dim = self._found[0].shape[1] // self.pairs.present_BM.shape[1]
        parts_BLD = pooled_BX.unflatten(1, (-1, dim))
        return torch.cat([functional.layer_norm(parts_BLD, (dim,)).flatten(1), *self._found], 1)
