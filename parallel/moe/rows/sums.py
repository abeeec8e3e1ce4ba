"""Rows gathered, and rows summed by weight: what brings tokens to experts and results back, forward and backward.

Each place of an (N, K) index names a row, or none (-1). So the sum over a token's K entries runs along the index, in
one order, in fp32, with one rounding: nothing is added up by address, which on a GPU would take atomics.

Shapes: N tokens, K entries a token, R rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.moe.rows.operators import operator

STRETCH = 128  # rows that one thread adds up where segments are added in two stages


def gather_plain(x_ND: Tensor, token_R: Tensor) -> Tensor:
    if not len(x_ND):
        return x_ND.new_zeros(len(token_R), x_ND.shape[1])
    picked_RD = x_ND.index_select(0, token_R.clamp_min(0))
    return picked_RD.masked_fill_((token_R < 0)[:, None], 0)


def gather_cpu(x_ND: Tensor, token_R: Tensor) -> Tensor:
    if len(token_R) and int(token_R.min()) < 0:
        return gather_plain(x_ND, token_R)
    return x_ND.index_select(0, token_R)


def sum_plain(y_RD: Tensor, index_NK: Tensor, weight_NK: Tensor | None) -> Tensor:
    exact = torch.promote_types(y_RD.dtype, torch.float32)
    total_ND = y_RD.new_zeros(len(index_NK), y_RD.shape[1], dtype=exact)
    if not len(y_RD):
        return total_ND.to(y_RD.dtype)
    for k, index_N in enumerate(index_NK.unbind(1)):
        # What lies at no row may be anything, also not a number: it is replaced, not multiplied by zero.
        picked_ND = gather_plain(y_RD, index_N).to(exact)
        if weight_NK is None:
            total_ND += picked_ND
        else:
            total_ND.addcmul_(picked_ND, weight_NK[:, k : k + 1].to(exact))
    return total_ND.to(y_RD.dtype)


def sum_cpu(y_RD: Tensor, index_NK: Tensor, weight_NK: Tensor | None) -> Tensor:
    tokens, k = index_NK.shape
    if not len(y_RD) or not index_NK.numel():
        return y_RD.new_zeros(tokens, y_RD.shape[1])
    some_NK = index_NK >= 0
    full = bool(some_NK.all())
    if full and y_RD.dtype == torch.bfloat16 and weight_NK is not None:
        picked_NKD = y_RD.index_select(0, index_NK.view(-1)).view(tokens, k, y_RD.shape[1])
        return torch.einsum("nk,nkd->nd", weight_NK, picked_NKD.to(weight_NK.dtype)).to(y_RD.dtype)
    # A bag adds rows where they lie, without writing R of them out first.
    exact_RD = y_RD.to(torch.promote_types(y_RD.dtype, torch.float32))
    if full:
        weights = weight_NK.to(exact_RD.dtype) if weight_NK is not None else None
        return F.embedding_bag(index_NK, exact_RD, mode="sum", per_sample_weights=weights).to(y_RD.dtype)
    # A token's rows are a bag that ends where the next one begins.
    count_N = some_NK.sum(1)
    weights = weight_NK[some_NK].to(exact_RD.dtype) if weight_NK is not None else None
    first_N = count_N.cumsum(0) - count_N
    total_ND = F.embedding_bag(index_NK[some_NK], exact_RD, first_N, mode="sum", per_sample_weights=weights)
    return total_ND.to(y_RD.dtype)


def spread_plain(g_ND: Tensor, y_RD: Tensor, weight_NK: Tensor, entry_R: Tensor) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(y_RD.dtype, torch.float32)
    k = weight_NK.shape[1]
    g_RD = gather_plain(g_ND, entry_R.div(k, rounding_mode="floor")).to(exact)
    some_R = entry_R >= 0
    product_R = torch.where(some_R, torch.linalg.vecdot(g_RD, y_RD.to(exact)), 0.0)
    # Rows of no entry go to a place of their own, behind the others; it is cut off.
    g_weight = weight_NK.new_zeros(weight_NK.numel() + 1)
    g_weight.scatter_(0, torch.where(some_R, entry_R, weight_NK.numel()), product_R.to(weight_NK.dtype))
    weight_R = gather_plain(weight_NK.reshape(-1, 1), entry_R).to(exact)
    return g_RD.mul_(weight_R).to(y_RD.dtype), g_weight[:-1].view_as(weight_NK)


def segments_plain(x_NX: Tensor, order_N: Tensor, start_S1: Tensor, mean: bool) -> Tensor:
    exact_NX = x_NX.to(torch.promote_types(x_NX.dtype, torch.float32))
    if not len(x_NX):
        return exact_NX.new_zeros(len(start_S1) - 1, x_NX.shape[1])
    # A thread that adds up thousands of rows would keep all others waiting, so long segments are cut: at every
    # segment's start and at every so many rows, as the number of cuts is then known without asking.
    every_Y = torch.arange(0, len(x_NX), STRETCH, device=x_NX.device)
    cut_Z = torch.cat([every_Y, start_S1[:-1]]).sort().values
    part_ZX = F.embedding_bag(order_N, exact_NX, cut_Z, mode="sum")
    # Of equal cuts all but the last are empty, so a segment's parts begin at any of them.
    first_S = torch.searchsorted(cut_Z, start_S1[:-1])
    total_SX = F.embedding_bag(torch.arange(len(cut_Z), device=x_NX.device), part_ZX, first_S, mode="sum")
    return _mean(total_SX, start_S1) if mean else total_SX


def segments_cpu(x_NX: Tensor, order_N: Tensor, start_S1: Tensor, mean: bool) -> Tensor:
    exact_NX = x_NX.to(torch.promote_types(x_NX.dtype, torch.float32))
    if not len(x_NX):
        return exact_NX.new_zeros(len(start_S1) - 1, x_NX.shape[1])
    total_SX = F.embedding_bag(order_N, exact_NX, start_S1[:-1], mode="sum")
    return _mean(total_SX, start_S1) if mean else total_SX


def _mean(total_SX: Tensor, start_S1: Tensor) -> Tensor:
    return total_SX / start_S1.diff().clamp_min(1)[:, None]


gather = operator("gather_rows(Tensor x, Tensor token) -> Tensor", gather_plain, gather_cpu, "sums_triton")
add_up = operator("sum_rows(Tensor y, Tensor index, Tensor? weight) -> Tensor", sum_plain, sum_cpu, "sums_triton")
spread = operator(
    "spread_rows(Tensor g, Tensor y, Tensor weight, Tensor entry) -> (Tensor, Tensor)",
    spread_plain,
    triton="sums_triton",
)

add_segments = operator(
    "sum_segments(Tensor x, Tensor order, Tensor start, bool mean) -> Tensor",
    segments_plain,
    segments_cpu,
    "sums_triton",
)


def gather_rows(x_ND: Tensor, token_R: Tensor) -> Tensor:
    """(R, D): row i is x[token[i]], zeros where token[i] is -1."""
    picked_RD: Tensor = gather(x_ND, token_R)
    return picked_RD


def sum_rows(y_RD: Tensor, index_NK: Tensor, weight_NK: Tensor | None = None) -> Tensor:
    """(N, D) in the dtype of y: row n is Σ_k weight[n, k] · y[index[n, k]] over places that are not -1, or without
    weights."""
    total_ND: Tensor = add_up(y_RD, index_NK, weight_NK)
    return total_ND


def spread_rows(g_ND: Tensor, y_RD: Tensor, weight_NK: Tensor, entry_R: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of the weighted sum: gradients of y and of the weights.

    Args:
        g_ND: gradient of the sums. y_RD, weight_NK: what was summed.
        entry_R: int64 place n * K + k of each row in the index, -1 for a row that no place names.
    """
    g_RD, g_weight_NK = spread(g_ND, y_RD, weight_NK, entry_R)
    return g_RD, g_weight_NK


def sum_segments(x_NX: Tensor, order_N: Tensor, start_S1: Tensor, mean: bool = False) -> Tensor:
    """(S, X) in fp32 at least: sums, or means, of the rows of each segment, added in their order; 0 without rows.

    Args:
        order_N: int64, rows sorted by segment. start_S1: int64, where each segment begins among them, and N.
    """
    total_SX: Tensor = add_segments(x_NX, order_N, start_S1, mean)
    return total_SX
