"""Arithmetic on ragged sequences that are stored back to back.

A batch of records with missing modalities has no rectangular shape. Everything in the model therefore works on
*packed* rows plus an integer that says which sequence a row belongs to; this file holds the few primitives for
that: padding to a rectangle and back where a kernel needs one, and reductions per segment. All of them are
well defined for zero rows and zero sequences, because a rank may hold no record, or a record no modality.

Shape legend: N packed rows, S sequences (or segments), L length of the longest sequence, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """How N packed rows map into an (S, L) rectangle and back.

    `slot_N` is the flat cell `sequence * L + position` of each row; `valid_SL` marks the cells that hold a row.
    Sequences without any row are kept (all their cells are invalid), so S does not depend on the data.
    """

    slot_N: Tensor
    valid_SL: Tensor

    @property
    def sequences(self) -> int:
        return self.valid_SL.shape[0]

    @property
    def length(self) -> int:
        return self.valid_SL.shape[1]

    def pad(self, x_ND: Tensor) -> Tensor:
        """(N, D) packed rows -> (S, L, D), zeros in empty cells."""
        flat = x_ND.new_zeros(self.sequences * self.length, x_ND.shape[-1])
        return flat.index_copy(0, self.slot_N, x_ND).view(self.sequences, self.length, x_ND.shape[-1])

    def unpad(self, x_SLD: Tensor) -> Tensor:
        """(S, L, D) -> the (N, D) rows that `pad` put there."""
        return x_SLD.flatten(0, 1).index_select(0, self.slot_N)


def padding(sequence_N: Tensor, sequences: int) -> Padding:
    """Padding of rows whose sequence ids are `sequence_N` (any order; rows keep their order within a sequence).

    One host synchronisation (the length of the longest sequence), so compute it once per batch, not per layer.
    """
    order_N = sequence_N.argsort(stable=True)
    count_S = torch.bincount(sequence_N, minlength=sequences)
    start_S = count_S.cumsum(0) - count_S
    position_N = torch.empty_like(sequence_N)
    position_N[order_N] = torch.arange(len(sequence_N), device=sequence_N.device) - start_S[sequence_N[order_N]]
    length = max(int(count_S.max()), 1) if sequences else 1
    valid_SL = torch.arange(length, device=sequence_N.device)[None, :] < count_S[:, None]
    return Padding(sequence_N * length + position_N, valid_SL)


def offsets_to_ids(offsets_S1: Tensor, rows: int) -> Tensor:
    """Offsets (S + 1) of back-to-back sequences -> the sequence id of each of the `rows` rows."""
    sequences = torch.arange(len(offsets_S1) - 1, device=offsets_S1.device)
    return torch.repeat_interleave(sequences, offsets_S1.diff(), output_size=rows)


def segment_sum(x_ND: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """Sum of rows per segment: (N, D) -> (S, D); empty segments give zeros."""
    return x_ND.new_zeros(segments, *x_ND.shape[1:]).index_add(0, segment_N, x_ND)


def segment_softmax(score_NH: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """Softmax over the rows of each segment, separately per column: (N, H) -> (N, H)."""
    with torch.no_grad():
        index_NH = segment_N[:, None].expand_as(score_NH)
        top_SH = score_NH.new_full((segments, score_NH.shape[1]), -torch.inf)
        top_SH = top_SH.scatter_reduce(0, index_NH, score_NH, "amax")
    weight_NH = (score_NH - top_SH.index_select(0, segment_N)).exp()
    total_SH = segment_sum(weight_NH, segment_N, segments)
    return weight_NH / total_SH.index_select(0, segment_N)
