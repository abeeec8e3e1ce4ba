"""Sums over rows that belong together (tokens of a sample, uses of a table's row), and their transpose, a look-up.

An indexed sum adds rows in any order and rounds the total to the rows' precision at each of them: of 1,536 rows in
bf16 that loses up to half. Here rows are sorted by segment, stably, and each segment is added up in that order in fp32
at least: nothing depends on who is first, and nothing is rounded in between. The derivative of such a sum is a gather
and that of a look-up such a sum. The host waits for nothing. `reference_segment_sum` and `reference_segment_max` are
the obvious loops.

Shapes: N rows, S segments, D width (any number of dimensions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.moe.rows.places import bounds
from parallel.moe.rows.sums import STRETCH, sum_segments


@dataclass(frozen=True)
class Segments:
    """Which rows belong together: made once, used for as many sums and look-ups as there are.

    Attributes:
        segment_N: int64, segment of each row, in [0, S).
        order_N: int64, rows sorted by segment, those of a segment in their order; None: they lie like that already.
        start_S1: int64, where each segment begins in that order, and the number of rows behind the last one.
    """

    segment_N: Tensor
    order_N: Tensor | None
    start_S1: Tensor

    @staticmethod
    def of(segment_N: Tensor, segments: int, ascending: bool = False) -> Segments:
        """From the segment of each row; `ascending` if no row's segment is smaller than that of the row before."""
        order_N, sorted_N = None, segment_N
        if not ascending:
            sorted_N, order_N = segment_N.sort(stable=True)
        # Where segment s begins is how many rows are of smaller ones; unlike `bincount` this waits for nothing.
        start_S1 = bounds(sorted_N, segments)
        return Segments(segment_N, order_N, start_S1)

    def __len__(self) -> int:
        """S."""
        return len(self.start_S1) - 1

    @property
    def counts(self) -> Tensor:
        """int64, rows of each segment."""
        return self.start_S1.diff()

    def sum(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (S, ...) in fp32 at least; zeros for a segment without rows."""
        return _Sum.apply(x_ND, self, False)  # type: ignore[no-any-return]

    def mean(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (S, ...): mean rows in fp32 at least; zeros for a segment without rows."""
        return _Sum.apply(x_ND, self, True)  # type: ignore[no-any-return]

    def max(self, x_ND: Tensor, empty: float = 0.0) -> Tensor:
        """(N, ...) -> (S, ...) in the rows' own precision, which a maximum keeps; `empty` for a segment without rows.

        It is looked up and not learned from: it has no gradient.
        """
        return _largest(x_ND, self, empty)

    def min(self, x_ND: Tensor, empty: float = 0.0) -> Tensor:
        """As `max`, of the smallest."""
        return -_largest(-x_ND, self, -empty)

    def spread(self, x_SD: Tensor) -> Tensor:
        """(S, ...) -> (N, ...): each row gets what its segment has. Its derivative is `sum`, rounded once."""
        return _Spread.apply(x_SD, self)  # type: ignore[no-any-return]

    def softmax(self, score_NH: Tensor) -> Tensor:
        """Softmax over the rows of each segment, separately per column: (N, H) -> (N, H) in fp32 at least."""
        score_NH = score_NH.to(torch.promote_types(score_NH.dtype, torch.float32))
        # Only to keep exp in range: it cancels out, so it needs no gradient. A maximum is the same in any order.
        with torch.no_grad():
            index_NH = self.segment_N[:, None].expand_as(score_NH)
            top_SH = score_NH.new_full((len(self), score_NH.shape[1]), -torch.inf)
            top_SH = top_SH.scatter_reduce(0, index_NH, score_NH, "amax")
        weight_NH = (score_NH - top_SH.index_select(0, self.segment_N)).exp()
        return weight_NH / self.spread(self.sum(weight_NH))


def look_up(table_SD: Tensor, index_N: Tensor, fixed: int | None = None) -> Tensor:
    """table[index] of (S, ...) for any indices, repeated ones too: its derivative is a sum in fp32, rounded once.

    Row `fixed` of the table gets no gradient.
    """
    return _LookUp.apply(table_SD, index_N, fixed)  # type: ignore[no-any-return]


def reference_segment_sum(x_ND: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """Oracle: row after row, in the precision of the rows."""
    total_SD = x_ND.new_zeros(segments, *x_ND.shape[1:])
    for row, segment in zip(x_ND, segment_N.tolist(), strict=True):
        total_SD[segment] += row
    return total_SD


def reference_segment_max(x_ND: Tensor, segment_N: Tensor, segments: int, empty: float = 0.0) -> Tensor:
    """Oracle: row after row."""
    found: list[Tensor | None] = [None] * segments
    for row, segment in zip(x_ND, segment_N.tolist(), strict=True):
        so_far = found[segment]
        found[segment] = row if so_far is None else torch.where(row > so_far, row, so_far)
    none = torch.full(x_ND.shape[1:], empty, dtype=x_ND.dtype)
    return torch.stack([none if one is None else one for one in found])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, segments: Segments, mean: bool) -> Tensor:
        ctx.save_for_backward(segments.segment_N, segments.start_S1)
        ctx.dtype, ctx.mean = x_ND.dtype, mean
        return _add_up(x_ND, segments, mean)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        segment_N, start_S1 = ctx.saved_tensors
        g_SD = grads[0]
        if ctx.mean:
            g_SD = g_SD / start_S1.diff().clamp_min(1).view(-1, *[1] * (g_SD.dim() - 1))
        return g_SD.to(ctx.dtype).index_select(0, segment_N), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, segments: Segments) -> Tensor:
        ctx.segments, ctx.dtype = segments, x_SD.dtype
        return x_SD.index_select(0, segments.segment_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _add_up(grads[0], ctx.segments).to(ctx.dtype), None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_SD: Tensor, index_N: Tensor, fixed: int | None) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.rows, ctx.dtype, ctx.fixed = table_SD.shape[0], table_SD.dtype, fixed  # len() would fix the size in a graph
        return table_SD.index_select(0, index_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (index_N,) = ctx.saved_tensors
        grad_SD = _add_up(grads[0], Segments.of(index_N, ctx.rows)).to(ctx.dtype)
        if ctx.fixed is not None:
            grad_SD[ctx.fixed].zero_()
        return grad_SD, None, None


def _add_up(x_ND: Tensor, segments: Segments, mean: bool = False) -> Tensor:
    """(N, ...) -> (S, ...): sums or means in fp32 at least, in the order of the rows."""
    order_N = segments.order_N
    if order_N is None:
        order_N = torch.arange(len(x_ND), device=x_ND.device)
    total_SX = sum_segments(x_ND.reshape(len(x_ND), math.prod(x_ND.shape[1:])), order_N, segments.start_S1, mean)
    return total_SX.view(len(segments), *x_ND.shape[1:])


@torch.no_grad()
def _largest(x_ND: Tensor, segments: Segments, empty: float) -> Tensor:
    """(N, ...) -> (S, ...): in two stages, as one thread would walk along a whole segment, however long."""
    if not len(x_ND):
        return x_ND.new_full((len(segments), *x_ND.shape[1:]), empty)
    if segments.order_N is not None:
        x_ND = x_ND.index_select(0, segments.order_N)
    start_S1 = segments.start_S1
    # Cut where a segment begins and at every so many rows: how many cuts there are is known without asking.
    every_Y = torch.arange(0, len(x_ND), STRETCH, device=x_ND.device)
    cut_Z = torch.cat([every_Y, start_S1]).sort().values
    part_ZX = _reduce(x_ND.reshape(len(x_ND), -1), cut_Z)
    # Of equal cuts all but the last have no rows, so the parts of a segment begin at any of them.
    first_S1 = torch.searchsorted(cut_Z, start_S1)
    most_SX = _reduce(part_ZX, first_S1).masked_fill(segments.counts[:, None] == 0, empty)
    return most_SX.view(len(segments), *x_ND.shape[1:])


def _reduce(x_NX: Tensor, offsets: Tensor) -> Tensor:
    # Unsafe: without looking at the offsets, which would make the host wait.
    return torch.segment_reduce(x_NX, "max", offsets=offsets, axis=0, unsafe=True, initial=-torch.inf)
