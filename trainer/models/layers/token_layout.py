"""What every packed token of a batch is: its sample, its modality, its time bin, and who may attend to whom.

Encoders give (pairs, tokens, width) per group; the fusion blocks see one packed list of N tokens. Tokens of present
modalities come first, sorted by block (encoder group, then modality), so that layers with per-modality weights are
grouped matrix products; one indicator token per absent modality follows where the model has learned ones.
Everything that needs the host (lengths of sequences) is computed here, once per batch, on the CPU.

Shape legend: N tokens, P pairs (sample, modality) of one encoder group, T tokens of a pair, B samples, M blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.ragged import Ragged, ragged


@dataclass(frozen=True)
class Span:
    """The tokens of one encoder group: `pairs` sequences of `tokens` tokens each, from row `start` on."""

    start: int
    pairs: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.pairs * self.tokens


@dataclass(frozen=True)
class TokenLayout:
    """`spans` cover the first `encoded` rows; rows behind them are missing-modality indicators (modality still set).

    `pairs` and `blocks` divide the pairs and the encoded rows by block. Of tensors on the CPU it is made, before they
    are copied to a device.
    """

    sample_N: Tensor
    modality_N: Tensor
    bin_N: Tensor
    pairs: Blocks
    blocks: Blocks
    spans: tuple[Span, ...]
    samples: int
    bins: int
    within_sample: Ragged | None
    within_bin: Ragged | None

    @property
    def encoded(self) -> int:
        return sum(span.rows for span in self.spans)


@dataclass(frozen=True)
class EncodedGroup:
    """One encoder's share: schema modality and sample of each pair, pairs per block, tokens per pair."""

    modality_P: Tensor
    sample_P: Tensor
    pairs: Blocks
    tokens: int


def token_layout(
    groups: list[EncodedGroup], absent: tuple[Tensor, Tensor] | None, samples: int, bins: int, attention: str
) -> TokenLayout:
    """Layout of the groups' tokens, then of `absent` = (sample, modality) of each indicator token.

    A modality without time spreads its tokens evenly over the bins; a single token, and an indicator, belongs to the
    last bin, where what was seen so far is most complete.
    """
    sample, modality, bin_, spans, start = [], [], [], [], 0
    for group in groups:
        # A token belongs to the bin in which its stretch of time ends.
        steps_T = torch.arange(1, group.tokens + 1) * bins // group.tokens - 1
        sample.append(group.sample_P.repeat_interleave(group.tokens))
        modality.append(group.modality_P.repeat_interleave(group.tokens))
        bin_.append(steps_T.repeat(len(group.sample_P)).clamp_min(0))
        spans.append(Span(start, len(group.sample_P), group.tokens))
        start += spans[-1].rows
    if absent is not None:
        sample.append(absent[0])
        modality.append(absent[1])
        bin_.append(torch.full_like(absent[0], bins - 1))
    sample_N, bin_N = torch.cat(sample), torch.cat(bin_)
    pairs_M = torch.cat([group.pairs.counts_M for group in groups])
    tokens_M = torch.cat([group.pairs.counts_M * group.tokens for group in groups])
    return TokenLayout(
        sample_N,
        torch.cat(modality),
        bin_N,
        Blocks.of(pairs_M),
        Blocks.of(tokens_M),
        tuple(spans),
        samples,
        bins,
        ragged(sample_N, samples) if attention == "joint" else None,
        ragged(sample_N * bins + bin_N, samples * bins) if attention == "factorized" else None,
    )
