"""Moving rows of a matrix with gathers only, forward and backward.

The derivative of a gather is a scatter-add, which is slow on a CPU and not deterministic on a GPU. Here every index is
a permutation (of N*K rows), so the derivative is the gather by the inverse permutation; nothing is ever added by index.

Shapes: N tokens, K experts a token, R = N*K dispatched rows, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def inverse_permutation(order_R: Tensor) -> Tensor:
    """inverse[order[i]] = i."""
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
    return inverse_R


class _PermuteRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_R)
        return x_RD.index_select(0, order_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (inverse_R,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse_R), None, None


class _ExpandRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_R: Tensor, inverse_R: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.k = k
        return x_ND.index_select(0, torch.div(order_R, k, rounding_mode="floor"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (inverse_R,) = ctx.saved_tensors
        return sum_rows(grads[0], inverse_R.view(len(inverse_R) // ctx.k, ctx.k)), None, None, None


class _CombineRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, weight_NK: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(y_RD, weight_NK, order_R, inverse_R)
        return sum_rows(y_RD, inverse_R.view(weight_NK.shape), weight_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y_RD, weight_NK, order_R, inverse_R = ctx.saved_tensors
        token_R = torch.div(order_R, weight_NK.shape[1], rounding_mode="floor")
        g_RD = grads[0].index_select(0, token_R).to(weight_NK.dtype)
        g_weight_R = torch.einsum("rd,rd->r", g_RD, y_RD.to(weight_NK.dtype))
        g_RD.mul_(weight_NK.view(-1).index_select(0, order_R)[:, None])
        return g_RD.to(y_RD.dtype), g_weight_R.index_select(0, inverse_R).view(weight_NK.shape), None, None


def sum_rows(y_RD: Tensor, index_NK: Tensor, weight_NK: Tensor | None = None) -> Tensor:
    """Σ_k weight[n, k] · y[index[n, k]], or without weights, summed in fp32 at least; (N, D) in the dtype of y."""
    if y_RD.device.type == "cpu" and y_RD.dtype == torch.float32 and len(index_NK):
        # Adds rows where they lie, without writing N*K of them out first.
        return F.embedding_bag(index_NK, y_RD, mode="sum", per_sample_weights=weight_NK)
    y_NKD = y_RD.index_select(0, index_NK.reshape(-1)).view(*index_NK.shape, y_RD.shape[1])
    if weight_NK is None:
        return y_NKD.sum(1)
    return torch.einsum("nk,nkd->nd", weight_NK, y_NKD.to(weight_NK.dtype)).to(y_RD.dtype)


def permute_rows(x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """x[order] for a permutation `order` with its inverse."""
    return _PermuteRows.apply(x_RD, order_R, inverse_R)


def expand_rows(x_ND: Tensor, order_R: Tensor, inverse_R: Tensor, k: int) -> Tensor:
    """Row i is token order[i] // k: every token k times, in dispatch order."""
    return _ExpandRows.apply(x_ND, order_R, inverse_R, k)


def combine_rows(y_RD: Tensor, weight_NK: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """Σ_k weight[n, k] · y[inverse[n * K + k]]: the weighted sum of each token's rows, summed in the weights'
    precision."""
    return _CombineRows.apply(y_RD, weight_NK, order_R, inverse_R)
