"""Arithmetic on ragged sequences that are stored back to back.

A batch of records with missing modalities has no rectangular shape. Everything in the model therefore works on
*packed* rows plus an integer that says which sequence a row belongs to; this file holds the few primitives for
that: rows sorted by sequence, for kernels that are told where sequences begin, and rectangles of sequences of about the
same length for those that are not. All of them are well defined for zero rows and zero sequences, because a rank may
hold no record, or a record no modality.

Shape legend: N packed rows, S sequences, R rows of a bucket, L length of its rectangle, C = S * L cells, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.moe.rows.permute import inverse_permutation, permute_rows

# Sequences that one kernel of attention takes: they are a dimension of its grid.
MOST_SEQUENCES = 65_535
# Of a launch over ragged sequences. Backward, torch's kernel adds up the gradient of queries in fp32 with 128 further
# rows for each sequence, however short: with this many that is 1 GiB for each 1,024 of width, and below 2^31 numbers.
MOST_RAGGED = 2_048


class _PutRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, slot_R: Tensor, cells: int) -> Tensor:
        ctx.save_for_backward(slot_R)
        return x_RD.new_zeros(cells, *x_RD.shape[1:]).index_copy_(0, slot_R, x_RD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (slot_R,) = ctx.saved_tensors
        return grads[0].index_select(0, slot_R), None, None


class _PickRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_CD: Tensor, slot_R: Tensor) -> Tensor:
        ctx.save_for_backward(slot_R)
        ctx.cells = len(x_CD)
        return x_CD.index_select(0, slot_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (slot_R,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.cells, *grads[0].shape[1:]).index_copy_(0, slot_R, grads[0]), None


def put_rows(x_RD: Tensor, slot_R: Tensor, cells: int) -> Tensor:
    """(R, ...) rows into `slot_R`, all different, of `cells` zero rows; the derivative is a gather."""
    return _PutRows.apply(x_RD, slot_R, cells)


def pick_rows(x_CD: Tensor, slot_R: Tensor) -> Tensor:
    """The rows at `slot_R`, all different; the derivative writes them back, so nothing is added by index."""
    return _PickRows.apply(x_CD, slot_R)


@dataclass(frozen=True)
class Bucket:
    """Sequences of about the same length: `sequences` of them, `rows` rows, a rectangle `length` wide.

    `slot_R` is the flat cell `sequence * length + position` of each row and `valid_SL` marks the cells that hold one;
    both are None where every sequence fills its row of the rectangle.
    """

    sequences: int
    length: int
    rows: int
    slot_R: Tensor | None
    valid_SL: Tensor | None

    def pad(self, x_RD: Tensor) -> Tensor:
        """(R, D) -> (S, L, D), zeros in empty cells."""
        if self.slot_R is not None:
            x_RD = put_rows(x_RD, self.slot_R, self.sequences * self.length)
        return x_RD.view(self.sequences, self.length, x_RD.shape[1])

    def unpad(self, x_SLD: Tensor) -> Tensor:
        """(S, L, D) -> the (R, D) rows that `pad` put there."""
        x_CD = x_SLD.flatten(0, 1)
        return x_CD if self.slot_R is None else pick_rows(x_CD, self.slot_R)


@dataclass(frozen=True)
class Piece:
    """Sequences that one kernel takes: `start_S1` int32, where each begins among the piece's `rows` rows and where the
    last one ends; `longest` rows at most each."""

    start_S1: Tensor
    rows: int
    longest: int


@dataclass(frozen=True)
class Ragged:
    """How N packed rows fall into sequences: rows in `order_N` are sorted by bucket, sequence and position.

    `buckets` and `pieces` are two ways to cut the same rows, for kernels that want rectangles and for those that do
    not.
    """

    order_N: Tensor
    inverse_N: Tensor
    buckets: tuple[Bucket, ...]
    pieces: tuple[Piece, ...]

    def arrange(self, x_ND: Tensor) -> Tensor:
        """The rows in order of bucket, sequence and position."""
        return permute_rows(x_ND, self.order_N, self.inverse_N)

    def restore(self, parts: list[Tensor]) -> Tensor:
        """Inverse of `arrange`."""
        return permute_rows(torch.cat(parts), self.inverse_N, self.order_N)


def _widths(longest: int = 1 << 24) -> list[int]:
    """Lengths of rectangles: every length up to 8, then four to an octave, so that padding stays below a fifth."""
    widths = list(range(9))
    while widths[-1] < longest:
        widths.append(widths[-1] + (1 << (widths[-1].bit_length() - 3)))
    return widths


WIDTHS = torch.tensor(_widths())


def ragged(sequence_N: Tensor, sequences: int) -> Ragged:
    """Buckets of the sequences whose ids are `sequence_N` (any order; rows keep their order within a sequence).

    Sequences without rows belong to no bucket: they cost nothing. Sizes of buckets are numbers of the host, so this is
    for tensors on the CPU, before they are copied to a device.
    """
    count_S = torch.bincount(sequence_N, minlength=sequences)
    # Sequences sorted by bucket: `turn_S` is each one's place, and what is called sorted, start and turn follows it.
    class_S = torch.bucketize(count_S, WIDTHS)
    turn_S = inverse_permutation(class_S.argsort(stable=True))
    order_N = turn_S[sequence_N].argsort(stable=True)
    sorted_S = torch.empty_like(count_S).index_copy_(0, turn_S, count_S)
    start_S = sorted_S.cumsum(0) - sorted_S
    turn_N = torch.repeat_interleave(torch.arange(sequences), sorted_S, output_size=len(order_N))
    # Rows of a sequence follow each other now, so a row's distance from its sequence's start is its position.
    position_N = torch.arange(len(order_N)) - start_S[turn_N]
    numbers = torch.bincount(class_S, minlength=len(WIDTHS))
    rows = torch.zeros_like(numbers).index_add_(0, class_S, count_S)
    # Sequences without rows come first, in class 0; they are passed over.
    buckets, sequence, row = [], int(numbers[0]), 0
    for width, number, own in zip(WIDTHS.tolist(), *torch.stack([numbers, rows]).tolist(), strict=True):
        if not own:
            continue
        cut = slice(row, row + own)
        slot_R = valid_SL = None
        if own < number * width:  # some sequence is shorter than the rectangle
            slot_R = (turn_N[cut] - sequence) * width + position_N[cut]
            lengths_S = sorted_S[sequence : sequence + number, None]
            valid_SL = torch.arange(width)[None, :] < lengths_S
        buckets.append(Bucket(number, width, own, slot_R, valid_SL))
        sequence, row = sequence + number, row + own
    pieces = _pieces(sorted_S[int(numbers[0]) :], MOST_RAGGED)
    return Ragged(order_N, inverse_permutation(order_N), tuple(buckets), pieces)


def _pieces(length_S: Tensor, most: int) -> tuple[Piece, ...]:
    """Sequences of these lengths, back to back, at most so many at a time."""
    found = []
    for own_S in length_S.split(most) if len(length_S) else ():
        start_S1 = torch.zeros(len(own_S) + 1, dtype=torch.int32)
        start_S1[1:] = own_S.cumsum(0)
        found.append(Piece(start_S1, int(start_S1[-1]), int(own_S.max())))
    return tuple(found)


def offsets_to_ids(offsets_S1: Tensor, rows: int) -> Tensor:
    """Offsets (S + 1) of back-to-back sequences -> the sequence id of each of the `rows` rows."""
    sequences = torch.arange(len(offsets_S1) - 1, device=offsets_S1.device)
    return torch.repeat_interleave(sequences, offsets_S1.diff(), output_size=rows)
