"""Moving rows of a matrix with gathers and sums over known neighbours, forward and backward.

The derivative of a gather is a scatter-add, which is slow on a CPU and not deterministic on a GPU. Here an index is a
permutation of rows, or repeats tokens in the order of a `Choice`; its derivative is then the gather by the inverse
permutation, summed over the entries of each token.

Shapes: N tokens, K experts a token where that is fixed, R rows (entries of a choice), D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.moe.choice import Choice


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
    def forward(
        ctx: Any, x_ND: Tensor, token_R: Tensor, order_R: Tensor, inverse_R: Tensor, fixed: int | None
    ) -> Tensor:
        ctx.save_for_backward(token_R, inverse_R)
        ctx.tokens, ctx.fixed = len(x_ND), fixed
        return x_ND.index_select(0, token_R.index_select(0, order_R))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        token_R, inverse_R = ctx.saved_tensors
        return sum_rows(grads[0], inverse_R, token_R, ctx.tokens, ctx.fixed), None, None, None, None


class _CombineRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y_RD: Tensor,
        weight_R: Tensor | None,
        token_R: Tensor,
        order_R: Tensor,
        inverse_R: Tensor,
        tokens: int,
        fixed: int | None,
    ) -> Tensor:
        # The rows are needed for the gradient of the weights only.
        ctx.save_for_backward(y_RD if weight_R is not None else None, weight_R, token_R, order_R, inverse_R)
        return sum_rows(y_RD, inverse_R, token_R, tokens, fixed, weight_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y_RD, weight_R, token_R, order_R, inverse_R = ctx.saved_tensors
        g_RD = grads[0].index_select(0, token_R.index_select(0, order_R))
        if weight_R is None:
            return g_RD, *(None,) * 6
        g_RD = g_RD.to(weight_R.dtype)
        g_weight_R = torch.einsum("rd,rd->r", g_RD, y_RD.to(weight_R.dtype)).index_select(0, inverse_R)
        # In place, so only after the line above, which needs the gradient as it came.
        g_RD.mul_(weight_R.index_select(0, order_R)[:, None])
        return g_RD.to(y_RD.dtype), g_weight_R, *(None,) * 5


def sum_rows(
    y_RD: Tensor,
    index_R: Tensor,
    token_R: Tensor,
    tokens: int,
    fixed: int | None = None,
    weight_R: Tensor | None = None,
) -> Tensor:
    """Row n = Σ weight[i] · y[index[i]] over the entries i of token n, or without weights; summed in fp32 at least.

    Args:
        index_R: int64 row of y of each entry. token_R: int64 ascending, token of each entry.
        fixed: entries a token if all have equally many.

    Returns:
        (N, D) in the dtype of y.
    """
    if not len(index_R):
        return y_RD.new_zeros(tokens, y_RD.shape[1])
    if y_RD.device.type == "cpu" and y_RD.dtype == torch.float32:
        # Adds rows where they lie, without writing R of them out first.
        if fixed is not None:
            weight_NK = weight_R.view(tokens, fixed) if weight_R is not None else None
            return F.embedding_bag(index_R.view(tokens, fixed), y_RD, mode="sum", per_sample_weights=weight_NK)
        # Entries lie in the order of their tokens, so a token's are a bag that ends where the next one begins.
        count_N = torch.bincount(token_R, minlength=tokens)
        first_N = count_N.cumsum(0) - count_N
        return F.embedding_bag(index_R, y_RD, first_N, mode="sum", per_sample_weights=weight_R)
    # Elsewhere the rows are written out: a bag of bf16 rows would want the weights rounded to bf16.
    picked_RD = y_RD.index_select(0, index_R)
    if fixed is None:
        exact_RD = picked_RD.to(torch.promote_types(picked_RD.dtype, torch.float32))
        if weight_R is not None:
            exact_RD = exact_RD * weight_R[:, None].to(exact_RD.dtype)
        return exact_RD.new_zeros(tokens, y_RD.shape[1]).index_add(0, token_R, exact_RD).to(y_RD.dtype)
    picked_NKD = picked_RD.view(tokens, fixed, y_RD.shape[1])
    if weight_R is None:
        return picked_NKD.sum(1)
    weight_NK = weight_R.view(tokens, fixed)
    return torch.einsum("nk,nkd->nd", weight_NK, picked_NKD.to(weight_NK.dtype)).to(y_RD.dtype)


def permute_rows(x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """x[order] for a permutation `order` with its inverse."""
    return _PermuteRows.apply(x_RD, order_R, inverse_R)


def expand_rows(x_ND: Tensor, choice: Choice, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """Row i is the token of entry order[i] of the choice."""
    return _ExpandRows.apply(x_ND, choice.token_R, order_R, inverse_R, choice.fixed)


def combine_rows(y_RD: Tensor, choice: Choice, order_R: Tensor, inverse_R: Tensor, weighted: bool = True) -> Tensor:
    """Token n is the sum over its entries i of weight[i] · y[inverse[i]] (without the weights if not `weighted`)."""
    weight_R = choice.weight_R if weighted else None
    return _CombineRows.apply(y_RD, weight_R, choice.token_R, order_R, inverse_R, choice.tokens, choice.fixed)
