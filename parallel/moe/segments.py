"""Sums over rows that belong together (tokens of a sample, uses of a table's row), and their transpose, a look-up.

An indexed sum adds rows in any order and rounds the total to the rows' precision at each of them: of 1,536 rows in
bf16 that loses up to half. Here rows are sorted by segment, stably, and each segment is added up in that order in fp32
at least: nothing depends on who is first, and nothing is rounded in between. The derivative of such a sum is a gather
and that of a look-up such a sum. The host waits for nothing. `reference_segment_sum` is the obvious loop.

Shapes: N rows, S segments, D width (any number of dimensions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.moe.grouped_matmul import on_gpu

STRETCH = 128  # rows that one thread adds up where segments are added in two stages


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
        start_S1 = torch.searchsorted(sorted_N, torch.arange(segments + 1, device=segment_N.device))
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
        return _Sum.apply(x_ND, self)  # type: ignore[no-any-return]

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


def segment_sum(x_ND: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """Sum of rows per segment: (N, ...) -> (S, ...), in fp32 at least."""
    return Segments.of(segment_N, segments).sum(x_ND)


def look_up(table_SD: Tensor, index_N: Tensor) -> Tensor:
    """table[index] of (S, ...) for any indices, repeated ones too: its derivative is a sum in fp32, rounded once."""
    return _LookUp.apply(table_SD, index_N)  # type: ignore[no-any-return]


def reference_segment_sum(x_ND: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """Oracle: row after row, in the precision of the rows."""
    total_SD = x_ND.new_zeros(segments, *x_ND.shape[1:])
    for row, segment in zip(x_ND, segment_N.tolist(), strict=True):
        total_SD[segment] += row
    return total_SD


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, segments: Segments) -> Tensor:
        ctx.save_for_backward(segments.segment_N)
        ctx.dtype = x_ND.dtype
        return _add_up(x_ND, segments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (segment_N,) = ctx.saved_tensors
        return grads[0].to(ctx.dtype).index_select(0, segment_N), None


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
    def forward(ctx: Any, table_SD: Tensor, index_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.rows, ctx.dtype = len(table_SD), table_SD.dtype
        return table_SD.index_select(0, index_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (index_N,) = ctx.saved_tensors
        return _add_up(grads[0], Segments.of(index_N, ctx.rows)).to(ctx.dtype), None


def _add_up(x_ND: Tensor, segments: Segments) -> Tensor:
    """(N, ...) -> (S, ...): sums in fp32 at least, in the order of the rows."""
    if x_ND.dtype not in (torch.float32, torch.float64):
        x_ND = x_ND.float()
    if not x_ND.numel():
        return x_ND.new_zeros(len(segments), *x_ND.shape[1:])
    x_NX = x_ND.reshape(len(x_ND), -1).contiguous()
    order_N, start_S1 = segments.order_N, segments.start_S1
    if order_N is None:
        order_N = torch.arange(len(x_NX), device=x_NX.device)
    if not on_gpu(x_NX):
        total_SX = F.embedding_bag(order_N, x_NX, start_S1[:-1], mode="sum")
    else:
        # A thread that adds up thousands of rows would keep all others waiting, so long segments are cut:
        # at every segment's start and at every so many rows, as the number of cuts is then known without asking.
        every_Y = torch.arange(0, len(x_NX), STRETCH, device=x_NX.device)
        cut_Z = torch.cat([every_Y, start_S1[:-1]]).sort().values
        part_ZX = F.embedding_bag(order_N, x_NX, cut_Z, mode="sum")
        # Of equal cuts all but the last are empty, so a segment's parts begin at any of them.
        first_S = torch.searchsorted(cut_Z, start_S1[:-1])
        total_SX = F.embedding_bag(torch.arange(len(cut_Z), device=x_NX.device), part_ZX, first_S, mode="sum")
    return total_SX.view(len(segments), *x_ND.shape[1:])
