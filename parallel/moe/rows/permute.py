"""Moving rows of a matrix with gathers and sums over known neighbours, forward and backward.

The derivative of a gather is a scatter-add, which is slow on a CPU and rounded and not deterministic on a GPU. Here
every index has its inverse beside it: either a permutation, or an (N, K) table that names each token's rows. The
derivative is then a gather, or a sum along that table.

Shapes: N tokens, K places a token, R rows, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.moe.rows.places import label_pairs
from parallel.moe.rows.sums import gather_rows, spread_rows, sum_rows


def inverse_permutation(order_R: Tensor) -> Tensor:
    """inverse[order[i]] = i."""
    places_R = torch.arange(order_R.numel(), device=order_R.device)
    return torch.empty_like(order_R).scatter_(0, order_R, places_R)


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
    def forward(ctx: Any, x_ND: Tensor, token_R: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(row_NK)
        return gather_rows(x_ND, token_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (row_NK,) = ctx.saved_tensors
        return sum_rows(grads[0], row_NK), None, None


class _CombineRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, weight_NK: Tensor | None, row_NK: Tensor, entry_R: Tensor) -> Tensor:
        # The rows are needed for the gradient of the weights only.
        ctx.save_for_backward(y_RD if weight_NK is not None else None, weight_NK, entry_R)
        return sum_rows(y_RD, row_NK, weight_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y_RD, weight_NK, entry_R = ctx.saved_tensors
        if weight_NK is None:
            return gather_rows(grads[0], entry_R), None, None, None
        return *spread_rows(grads[0], y_RD, weight_NK, entry_R), None, None


class _LabelPairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        expert_NK: Tensor,
        weight_NK: Tensor,
        token_P: Tensor,
        rank_P: Tensor,
        pair_NW: Tensor,
        local: int,
        by_column: bool,
    ) -> tuple[Tensor, Tensor]:
        ids_PX, weight_PX = label_pairs(expert_NK, weight_NK, token_P, rank_P, local, by_column)
        ctx.save_for_backward(pair_NW)
        ctx.by_column, ctx.shape = by_column, weight_NK.shape
        ctx.mark_non_differentiable(ids_PX)
        return ids_PX, weight_PX

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (pair_NW,) = ctx.saved_tensors
        # Of a token's pairs each weight serves in one; elsewhere its gradient is zero.
        g_NK = sum_rows(grads[1], pair_NW.view(-1, 1) if ctx.by_column else pair_NW).view(ctx.shape)
        return None, g_NK, *(None,) * 5


def label_rows(
    expert_NK: Tensor,
    weight_NK: Tensor,
    pairs: tuple[Tensor, Tensor, Tensor],
    local: int,
    by_column: bool,
) -> tuple[Tensor, Tensor]:
    """`places.label_pairs` for pairs = (token_P, rank_P, pair_NW), with the gradient of the weights."""
    return _LabelPairs.apply(expert_NK, weight_NK, *pairs, local, by_column)


def permute_rows(x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """x[order] for a permutation `order` with its inverse."""
    return _PermuteRows.apply(x_RD, order_R, inverse_R)


def expand_rows(x_ND: Tensor, token_R: Tensor, row_NK: Tensor) -> Tensor:
    """(R, D): row i is token token[i], zeros for -1.

    Args:
        row_NK: int64, the rows of each token, -1 for none: token[row[n, k]] = n.
    """
    return _ExpandRows.apply(x_ND, token_R, row_NK)


def combine_rows(y_RD: Tensor, row_NK: Tensor, weight_NK: Tensor, entry_R: Tensor) -> Tensor:
    """(N, D): token n is Σ_k weight[n, k] · y[row[n, k]], summed in fp32, over places that are not -1.

    Args:
        entry_R: int64 place n * K + k of each row, -1 for a row of no token: row.view(-1)[entry[i]] = i.
    """
    return _CombineRows.apply(y_RD, weight_NK, row_NK, entry_R)


def collect_rows(y_RD: Tensor, row_NK: Tensor, token_R: Tensor) -> Tensor:
    """As `combine_rows` with weights of 1; `token_R` is the token of each row."""
    return _CombineRows.apply(y_RD, None, row_NK, token_R)
