"""What a step does to the rows of a table that is spread: who looked them up, what gradient came, the update.

The gradient of a row is the sum over the ranks and micro-batches that used it, added up in fp32 in that order, so it
has the same bits each time; nothing is added up by address. Which rows they are, and how many different ones, only the
device knows: there, sizes are those of what arrived, and the last row is written as often as others arrived twice, with
the same values.

Shapes: L rows here, D width, S rows that a pass asked for, N all of a step, X different ones, ascending.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.moe.grouped_matmul import on_gpu
from parallel.moe.rows.places import bounds
from parallel.moe.rows.sums import sum_segments
from parallel.tables.adamw import RowAdamW


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, row_S: Tensor, updates: RowUpdates) -> Tensor:
        ctx.row_S, ctx.updates = row_S, updates
        return updates.optimizer.read(row_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.updates.arrived.append((ctx.row_S, grads[0]))
        return None, None, None


class RowUpdates:
    """The trained rows of one table on this rank.

    Args:
        optimizer: holds them. world: ranks over which gradients are averaged.
    """

    def __init__(self, optimizer: RowAdamW, world: int) -> None:
        self.optimizer, self._scale = optimizer, 1.0 / world
        self.arrived: list[tuple[Tensor, Tensor]] = []
        """Rows of each pass, and their gradients."""
        self._step: tuple[Tensor, Tensor] | None = None
        # Rows are no leaf of a graph; something must say that they are to be learned.
        self._anchor = torch.empty(0, device=optimizer.weight_LD.device, requires_grad=True)

    def read(self, row_S: Tensor) -> Tensor:
        """(S, D) fp32: rows by their number on this rank; their gradient is remembered for the step."""
        found: Tensor = _Read.apply(self._anchor, row_S, self)
        return found

    def gather(self) -> Tensor:
        """Add up the gradient of the step; returns its norm, one number on the device. Other ranks hold other rows."""
        weight_LD, arrived = self.optimizer.weight_LD, [part for part in self.arrived if len(part[0])]
        self.arrived = []
        if not arrived:
            self._step = weight_LD.new_zeros(0, dtype=torch.int64), weight_LD[:0]
            return weight_LD.new_zeros(1)
        row_N, order_N = _joined([row_S for row_S, _ in arrived]).sort(stable=True)
        # As many segments as rows; those behind the last different row are empty.
        segment_N = torch.cat([row_N.new_zeros(1), (row_N[1:] != row_N[:-1]).cumsum(0)])
        start_N1 = bounds(segment_N, len(row_N))
        total_XD = sum_segments(_joined([grad_SD for _, grad_SD in arrived]), order_N, start_N1)
        norm = torch.linalg.vector_norm(total_XD).mul_(self._scale).view(1)
        if on_gpu(weight_LD):
            # Nobody asks how many there are: the last one is there as often as it takes.
            place_X = torch.minimum(torch.arange(len(row_N), device=row_N.device), segment_N[-1:])
            start_X, total_XD = start_N1.index_select(0, place_X), total_XD.index_select(0, place_X)
        else:
            rows = int(segment_N[-1]) + 1
            start_X, total_XD = start_N1[:rows], total_XD[:rows]
        self._step = row_N.index_select(0, start_X), total_XD
        return norm

    def update(self, lr: float, clip: float) -> None:
        """What `gather` found, times `clip`, is the gradient of a step of AdamW."""
        assert self._step is not None, "gather() comes first"
        (row_X, grad_XD), self._step = self._step, None
        self.optimizer.update(row_X, grad_XD, lr, self._scale * clip)

    def discard(self) -> None:
        """The step is refused."""
        self._step = None


def _joined(parts: list[Tensor]) -> Tensor:
    """One of them is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
