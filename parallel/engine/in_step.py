"""What keeps the ranks of an exchange in step: every rank walks backward through every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _LooseEnd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None


def loose_end(output: Tensor) -> Tensor:
    """An empty tensor whose ancestor `output` is, for `keep_in_step`: holding it holds the graph, not its values."""
    end: Tensor = _LooseEnd.apply(output)
    return end
