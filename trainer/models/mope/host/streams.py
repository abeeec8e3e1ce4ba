"""The present (sample, modality) pairs of a batch: what a FuseMoE host is prompted by and at.

Shapes: B samples, M modalities, Q present pairs, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from data_shards import Batch
from trainer.models.layers.ragged import segment_sum
from trainer.models.layers.token_layout import TokenLayout


@dataclass(frozen=True)
class Pairs:
    """The present (sample, modality) pairs of a batch, sorted as their tokens are, and the pair of each token."""

    sample_Q: Tensor
    modality_Q: Tensor
    pair_N: Tensor
    counts_M: Tensor
    """pairs of each block of grouped layers"""
    present_BM: Tensor

    def pooled(self, x_ND: Tensor) -> Tensor:
        """(Q, D) mean over a pair's tokens."""
        total_QD = segment_sum(x_ND[: len(self.pair_N)], self.pair_N, len(self.sample_Q))
        number_Q = torch.bincount(self.pair_N, minlength=len(self.sample_Q))
        return total_QD / number_Q[:, None].clamp_min(1)


def pairs_of(layout: TokenLayout, batch: Batch) -> Pairs:
    """Pairs of a batch, from the layout of its tokens."""
    firsts, repeats, start = [], [], 0
    for span in layout.spans:
        firsts.append(span.start + span.tokens * torch.arange(span.pairs, device=batch.device))
        number = torch.arange(start, start + span.pairs, device=batch.device)
        repeats.append(number.repeat_interleave(span.tokens))
        start += span.pairs
    first_Q = torch.cat(firsts)
    tokens = [span.tokens for span in layout.spans]
    present = [int(span.pairs) for span in layout.spans]
    counts_M = _pairs_per_block(layout.counts_M, present, tokens)
    return Pairs(layout.sample_N[first_Q], layout.modality_N[first_Q], torch.cat(repeats), counts_M, batch.present_BM)


def _pairs_per_block(tokens_M: Tensor, pairs: list[int], tokens: list[int]) -> Tensor:
    """Pairs of each block, from the tokens of each block and the tokens that one pair of its group has."""
    result, place = tokens_M.clone(), 0
    left = list(pairs)
    for group, each in enumerate(tokens):
        while left[group] > 0:
            result[place] = tokens_M[place] // each
            left[group] -= int(result[place])
            place += 1
        while place < len(tokens_M) and int(tokens_M[place]) == 0:
            place += 1
    return result


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
        state_BMD = state_QD.new_zeros(*pairs.present_BM.shape, x_ND.shape[1])
        self._found.append(state_BMD.index_put((pairs.sample_Q, pairs.modality_Q), state_QD).flatten(1))

    def beside(self, pooled_BX: Tensor) -> Tensor:
        """(B, X + `states_width`): the pooled vector, each query's part at unit variance, then all that was seen."""
        dim = self._found[0].shape[1] // self.pairs.present_BM.shape[1]
        parts_BLD = pooled_BX.unflatten(1, (-1, dim))
        return torch.cat([functional.layer_norm(parts_BLD, (dim,)).flatten(1), *self._found], 1)
