"""What every packed token of a batch is: its sample, its modality, its time bin, and who may attend to whom.

Encoders give the tokens of (sample, modality) pairs, group by group; the fusion blocks see one packed list of N tokens.
Tokens of present modalities come first, sorted by block (encoder group, then modality), so that layers with
per-modality weights are grouped matrix products; one indicator token per absent modality follows where the model has
learned ones. Everything that needs the host (lengths of sequences) is computed here, once per batch, on the CPU.

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

    def pair_of_row(self, device: torch.device) -> Tensor:
        """int64 [rows], ascending."""
        return torch.arange(self.pairs, device=device).repeat_interleave(self.tokens)

    def first_rows(self, device: torch.device) -> Tensor:
        """int64 [pairs]: the first token of each pair, among all tokens."""
        return self.start + self.tokens * torch.arange(self.pairs, device=device)


@dataclass(frozen=True)
class UnevenSpan:
    """The tokens of one encoder group whose pairs have tokens in different numbers, at least one each.

    pair_N: int64, pair of each row, ascending; first_P: the first row of each pair, from `start` on. within: the pairs
    as sequences that attend, where the model attends within pairs.
    """

    start: int
    pairs: int
    rows: int
    pair_N: Tensor
    first_P: Tensor
    within: Ragged | None

    def pair_of_row(self, device: torch.device) -> Tensor:
        """int64 [rows], ascending."""
        return self.pair_N

    def first_rows(self, device: torch.device) -> Tensor:
        """int64 [pairs]: the first token of each pair, among all tokens."""
        return self.start + self.first_P


@dataclass(frozen=True)
class TokenLayout:
    """`spans` cover the first `encoded` rows; rows behind them are missing-modality indicators (modality still set).

    `final_N` are the tokens that show a modality at its last: those of the last bin, or, of tokens that stand at times
    of their own, those of the last bin in which their pair has any. `pairs` and `blocks` divide the pairs and the
    encoded rows by block. Of tensors on the CPU it is made, before they are copied to a device.
    """

    sample_N: Tensor
    modality_N: Tensor
    bin_N: Tensor
    final_N: Tensor
    pairs: Blocks
    blocks: Blocks
    spans: tuple[Span | UnevenSpan, ...]
    samples: int
    bins: int
    within_sample: Ragged | None
    within_bin: Ragged | None

    @property
    def encoded(self) -> int:
        return sum(span.rows for span in self.spans)


@dataclass(frozen=True)
class EncodedGroup:
    """One encoder's share: schema modality and sample of each pair, pairs per block, and the tokens of each pair.

    tokens: as many for every pair, or int64 [P], at least 1. bin_N: their bins; None: spread evenly over them.
    """

    modality_P: Tensor
    sample_P: Tensor
    pairs: Blocks
    tokens: int | Tensor
    bin_N: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """int64 [P], tokens of each pair."""
        return self.tokens if isinstance(self.tokens, Tensor) else torch.full_like(self.sample_P, self.tokens)

    @property
    def blocks(self) -> Blocks:
        """Tokens of each block."""
        if not isinstance(self.tokens, Tensor):
            return self.pairs.times(self.tokens)
        ends_M = torch.cat([self.tokens.new_zeros(1), self.tokens.cumsum(0)])[self.pairs.counts_M.cumsum(0)]
        return Blocks.of(ends_M.diff(prepend=ends_M.new_zeros(1)))


def even_bins(tokens: int, bins: int) -> Tensor:
    """int64 [T]: tokens without times of their own are spread evenly: each is of the bin in which its stretch ends.

    A single one belongs to the last bin, where what was seen so far is most complete.
    """
    return (torch.arange(1, tokens + 1) * bins // tokens - 1).clamp_min(0)


def grid_bins(bins: int, tokens: int) -> Tensor:
    """int64 [T]: one token for each bin, and what there is beyond them in the last."""
    return torch.arange(tokens).clamp_max(bins - 1)


def bin_of_time(time: Tensor, bins: int) -> Tensor:
    """int64: the bin in which a time in horizons lies; what stands at the horizon is of the last one."""
    return (time * bins).long().clamp(0, bins - 1)


def token_layout(
    groups: list[EncodedGroup], absent: tuple[Tensor, Tensor] | None, samples: int, bins: int, attention: str
) -> TokenLayout:
    """Layout of the groups' tokens, then of `absent` = (sample, modality) of each indicator token, in the last bin."""
    sample, modality, bin_, final, spans, start = [], [], [], [], [], 0
    for group in groups:
        count_P = group.counts
        sample.append(group.sample_P.repeat_interleave(count_P))
        modality.append(group.modality_P.repeat_interleave(count_P))
        span = _span(group, count_P, start, attention != "joint")
        if group.bin_N is None:
            assert isinstance(span, Span)
            bin_.append(even_bins(span.tokens, bins).repeat(span.pairs))
            final.append(bin_[-1] == bins - 1)
        else:
            pair_N = span.pair_of_row(count_P.device)
            last_P = torch.zeros_like(count_P).scatter_reduce(0, pair_N, group.bin_N, "amax")
            bin_.append(group.bin_N)
            final.append(group.bin_N == last_P[pair_N])
        spans.append(span)
        start += span.rows
    if absent is not None:
        sample.append(absent[0])
        modality.append(absent[1])
        bin_.append(torch.full_like(absent[0], bins - 1))
        final.append(torch.ones_like(absent[0], dtype=torch.bool))
    sample_N, bin_N = torch.cat(sample), torch.cat(bin_)
    return TokenLayout(
        sample_N,
        torch.cat(modality),
        bin_N,
        torch.cat(final),
        Blocks.of(torch.cat([group.pairs.counts_M for group in groups])),
        Blocks.of(torch.cat([group.blocks.counts_M for group in groups])),
        tuple(spans),
        samples,
        bins,
        ragged(sample_N, samples) if attention == "joint" else None,
        ragged(sample_N * bins + bin_N, samples * bins) if attention == "factorized" else None,
    )


def _span(group: EncodedGroup, count_P: Tensor, start: int, attends: bool) -> Span | UnevenSpan:
    """Rectangular where every pair has as many tokens, however they came about."""
    pairs = len(count_P)
    if not isinstance(group.tokens, Tensor):
        return Span(start, pairs, group.tokens)
    if not pairs or int(count_P.min()) == int(count_P.max()):
        return Span(start, pairs, int(count_P[0]) if pairs else 1)
    pair_N = torch.repeat_interleave(count_P)
    within = ragged(pair_N, pairs) if attends else None
    return UnevenSpan(start, pairs, len(pair_N), pair_N, count_P.cumsum(0) - count_P, within)
