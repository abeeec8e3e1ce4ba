"""Dispatch: bring rows to the ranks that hold their experts, and the results back.

A layer hands over rows sorted by global expert id and how many rows each expert gets. `LocalDispatcher` holds all
experts here. `AllToAllDispatcher` spreads them over an expert-parallel group: one small all-to-all tells the counts,
one sends the rows (as many as there are, no capacity, nothing dropped or padded), one brings the results back. Both
have the same interface and give the same result. Every rank of the group takes part in every call, also with zero rows.

Shapes: R rows of this rank, S rows received, D width, E experts of the layer, L = E / ranks experts on this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.rows import inverse_permutation, permute_rows

ExpertsFn = Callable[[Tensor, Tensor], Tensor]  # (rows sorted by local expert, counts_L) -> rows


class Dispatcher(Protocol):
    """What a layer knows of the other ranks."""

    @property
    def size(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def __call__(self, x_RD: Tensor, counts_E: Tensor, experts: ExpertsFn) -> Tensor:
        """Apply `experts` to rows sorted by global expert id; the result is in the order of the input."""


class LocalDispatcher:
    """All experts are here."""

    size, rank = 1, 0

    def __call__(self, x_RD: Tensor, counts_E: Tensor, experts: ExpertsFn) -> Tensor:
        return experts(x_RD, counts_E)


class _Exchange(torch.autograd.Function):
    """Uneven all-to-all of rows; its derivative is the all-to-all the other way round."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
        ctx.group, ctx.send, ctx.receive = group, send, receive
        return exchange_rows(x_RD, group, send, receive)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return exchange_rows(grads[0], ctx.group, ctx.receive, ctx.send), None, None, None


def exchange_rows(x_RD: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
    """Send the first send[0] rows to rank 0 of the group, the next send[1] to rank 1, ...; receive likewise, in rank
    order."""
    y_SD = x_RD.new_empty((sum(receive), *x_RD.shape[1:]))
    dist.all_to_all_single(y_SD, x_RD.contiguous(), receive, send, group=group)
    return y_SD


class AllToAllDispatcher:
    """Experts spread evenly over the ranks of `group`: rank r holds experts [r * L, (r + 1) * L)."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def __call__(self, x_RD: Tensor, counts_E: Tensor, experts: ExpertsFn) -> Tensor:
        if torch.is_grad_enabled() and not x_RD.requires_grad:
            # The backward exchange needs every rank, also one whose rows (none, perhaps) depend on no parameter.
            x_RD = x_RD.detach().requires_grad_()
        local = len(counts_E) // self.size
        arriving_E = torch.empty_like(counts_E)
        dist.all_to_all_single(arriving_E, counts_E, group=self.group)
        # The one wait of the host for the device: the sizes of the exchange must be known to it.
        splits = torch.stack([counts_E.view(self.size, local).sum(1), arriving_E.view(self.size, local).sum(1)])
        send, receive = splits.tolist()
        received_SD = _Exchange.apply(x_RD, self.group, send, receive)
        # Rows arrive ordered by (sender, expert); the experts want them by expert.
        expert_S = torch.arange(local, device=x_RD.device).repeat(self.size)
        expert_S = expert_S.repeat_interleave(arriving_E, output_size=sum(receive))
        order_S = expert_S.argsort(stable=True)
        inverse_S = inverse_permutation(order_S)
        sorted_SD = permute_rows(received_SD, order_S, inverse_S)
        result_SD = experts(sorted_SD, arriving_E.view(self.size, local).sum(0))
        return _Exchange.apply(permute_rows(result_SD, inverse_S, order_S), self.group, receive, send)


class _KeepInStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.outputs = len(outputs)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], *(None,) * ctx.outputs


def keep_in_step(loss: Tensor, outputs: list[Tensor]) -> Tensor:
    """`loss`, with the layers' outputs as further ancestors that receive no gradient through this edge.

    The backward pass of every layer, and the exchanges in it, then run on every rank, also where the loss does not
    depend on a layer (a rank without tokens). Where it does, this changes nothing and costs nothing.
    """
    return _KeepInStep.apply(loss, *outputs)
