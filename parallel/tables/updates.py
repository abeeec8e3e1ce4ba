"""What a step does to the rows of a table that is spread: who looked them up, what gradient came, the update.

The gradient of a row is the sum over the ranks and micro-batches that used it, added up in fp32 in that order, so it
has the same bits each time; nothing is added up by address. Which rows they are, and how many different ones, only the
device knows: sizes here are those of what arrived, and where a row arrived several times it is written several times,
with the same values.

Shapes: L rows here, D width, S rows that were asked for, X those of a whole step, in the order of their ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
        self._step: tuple[Tensor, Tensor] | None = None
        # Rows are no leaf of a graph; something must say that they are to be learned.
        self._anchor = torch.empty(0, device=optimizer.weight_LD.device, requires_grad=True)

    def read(self, row_S: Tensor) -> Tensor:
        """(S, D) fp32: rows by their number on this rank; their gradient is remembered for the step."""
        found: Tensor = _Read.apply(self._anchor, row_S, self)
        return found

    def gather(self) -> Tensor:
        """The mean gradient of the step, fp32, each row once, and zeros: what the norm is taken of."""
        dim = self.optimizer.weight_LD.shape[1]
        device = self.optimizer.weight_LD.device
        ids = [row_S for row_S, _ in self.arrived] or [torch.zeros(0, dtype=torch.int64, device=device)]
        rows = [grad_SD.float() for _, grad_SD in self.arrived] or [torch.zeros(0, dim, device=device)]
        self.arrived = []
        id_X, order_X = torch.cat(ids).sort(stable=True)
        if not len(id_X):
            self._step = (id_X, rows[0][:0])
            return rows[0][:0]
        # As many segments as rows; those behind the last different id are empty.
        segment_X = torch.cat([id_X.new_zeros(1), (id_X[1:] != id_X[:-1]).cumsum(0)])
        start_X1 = bounds(segment_X, len(id_X))
        total_XD = sum_segments(torch.cat(rows), order_X, start_X1).mul_(self._scale)
        place_X = torch.minimum(torch.arange(len(id_X), device=device), segment_X[-1:])
        self._step = id_X.index_select(0, start_X1.index_select(0, place_X)), total_XD.index_select(0, place_X)
        return total_XD

    def update(self, lr: float, clip: float) -> None:
        """What `gather` found, times `clip`, is the gradient of a step of AdamW."""
        assert self._step is not None, "gather() comes first"
        (id_X, grad_XD), self._step = self._step, None
        self.optimizer.update(id_X, grad_XD if clip == 1.0 else grad_XD * clip, lr)

    def discard(self) -> None:
        """The step is refused."""
        self._step = None
