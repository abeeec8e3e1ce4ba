"""What keeps the ranks of an exchange in step: every rank walks backward through every layer, in the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _LooseEnd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, zeros: bool) -> Tensor:
        ctx.zeros = (output.shape, output.dtype, output.device) if zeros else None
        return output.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if ctx.zeros is None:
            return None, None
        shape, dtype, device = ctx.zeros
        return torch.zeros(shape, dtype=dtype, device=device), None


def loose_end(output: Tensor, zeros: bool) -> Tensor:
    """An empty tensor whose ancestor `output` is, for `keep_in_step`: holding it holds the graph, not its values.

    Args:
        zeros: give `output` a gradient of zeros. The backward pass then takes the very way of a rank whose loss depends
            on it; with none, autograd passes over what has nothing to add, and what is computed again, or sent, may
            come in another order. Cheap where the output is small; where it is not, none will do.
    """
    end: Tensor = _LooseEnd.apply(output, zeros)
    return end
