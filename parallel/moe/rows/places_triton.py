"""The operators of `places` for GPUs. Shapes as there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512


@triton.jit(do_not_specialize=["tokens"])
def _pairs_kernel(
    expert_ptr, goes_ptr, leaving_ptr, tokens, k, local, ranks, RANKS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    g = tl.arange(0, RANKS)
    count = tl.zeros((BLOCK, RANKS), tl.int32)
    for entry in range(k):
        expert = tl.load(expert_ptr + n * k + entry, mask=n < tokens, other=ranks * local)
        count += ((expert // local)[:, None] == g[None, :]).to(tl.int32)
    goes = (count > 0).to(tl.int8)
    there = (n < tokens)[:, None] & (g < ranks)[None, :]
    tl.store(goes_ptr + g[None, :] * tokens + n[:, None], goes, mask=there)
    # Whole numbers: their sum is the same in any order.
    tl.atomic_add(leaving_ptr + g * 2, tl.sum(goes.to(tl.int64), axis=0), mask=g < ranks)
    tl.atomic_add(leaving_ptr + g * 2 + 1, tl.sum(count.to(tl.int64), axis=0), mask=g < ranks)


@triton.jit(do_not_specialize=["tokens"])
def _list_kernel(
    goes_ptr, so_far_ptr, token_ptr, rank_ptr, pair_ptr, tokens, ranks, width,
    COMPACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    number = tl.zeros((BLOCK,), tl.int64)
    for step in range(ranks):
        # From the last rank on: the order in which the largest pairs come.
        g = ranks - 1 - step
        goes = tl.load(goes_ptr + g * tokens + n, mask=n < tokens, other=0) != 0
        pair = tl.load(so_far_ptr + g * tokens + n, mask=n < tokens, other=0) - 1
        tl.store(token_ptr + pair, n, mask=goes)
        tl.store(rank_ptr + pair, tl.zeros((BLOCK,), tl.int64) + g, mask=goes)
        if COMPACT:
            tl.store(pair_ptr + n * width + number, pair, mask=goes)
        else:
            tl.store(pair_ptr + n * width + g, tl.where(goes, pair, -1), mask=n < tokens)
        number += goes.to(tl.int64)
    if COMPACT:
        for column in range(width):
            tl.store(
                pair_ptr + n * width + column, tl.zeros((BLOCK,), tl.int64) - 1, mask=(n < tokens) & (number <= column)
            )


@triton.jit(do_not_specialize=["number", "rows", "steps"])
def _place_kernel(
    sorted_ptr, order_ptr, entry_ptr, token_ptr, group_ptr, ends_ptr, row_ptr, number, places, experts, rows, steps,
    EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    expert = tl.load(sorted_ptr + i, mask=i < number, other=experts)
    entry = tl.load(order_ptr + i, mask=i < number, other=0)
    some = expert < experts
    tl.store(row_ptr + entry, tl.where(some, i, -1), mask=i < number)
    tl.store(entry_ptr + i, tl.where(some, entry, -1), mask=i < rows)
    tl.store(token_ptr + i, tl.where(some, entry // places, -1), mask=i < rows)
    tl.store(group_ptr + i, expert.to(tl.int32), mask=i < rows)
    if tl.program_id(0) == 0:
        # How many numbers are at most e, by halving, for every expert at once.
        e = tl.arange(0, EXPERTS)
        low = tl.zeros((EXPERTS,), tl.int64)
        high = low + number
        for _ in range(steps):
            middle = (low + high) // 2
            value = tl.load(sorted_ptr + middle, mask=middle < number, other=experts)
            below = (value <= e) & (low < high)
            low, high = tl.where(below, middle + 1, low), tl.where(below, high, tl.minimum(high, middle))
        tl.store(ends_ptr + e, low.to(tl.int32), mask=e < experts)


@triton.jit(do_not_specialize=["pairs"])
def _label_kernel(
    expert_ptr, weight_ptr, token_ptr, rank_ptr, ids_ptr, out_ptr, pairs, places, width, local,
    BY_COLUMN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    p = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = tl.arange(0, COLS)
    token = tl.load(token_ptr + p, mask=p < pairs, other=0)
    rank = tl.load(rank_ptr + p, mask=p < pairs, other=0)
    there = (p < pairs)[:, None] & (col < width)[None, :]
    place = token[:, None] * places + col[None, :]
    if BY_COLUMN:
        place += rank[:, None] * local
    own = tl.load(expert_ptr + place, mask=there, other=0) - rank[:, None] * local
    own = tl.where((own >= 0) & (own < local), own, local)
    tl.store(ids_ptr + p[:, None] * width + col[None, :], own, mask=there)
    tl.store(out_ptr + p[:, None] * width + col[None, :], tl.load(weight_ptr + place, mask=there), mask=there)


@triton.jit(do_not_specialize=["number", "segments", "steps"])
def _bounds_kernel(sorted_ptr, start_ptr, number, segments, steps, BLOCK: tl.constexpr):
    s = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    low = tl.zeros((BLOCK,), tl.int64)
    high = low + number
    for _ in range(steps):
        middle = (low + high) // 2
        value = tl.load(sorted_ptr + middle, mask=middle < number, other=0)
        below = (value < s) & (low < high)
        low, high = tl.where(below, middle + 1, low), tl.where(below, high, tl.minimum(high, middle))
    tl.store(start_ptr + s, low, mask=s <= segments)


def pairs_by_rank(expert_NK: Tensor, ranks: int, local: int) -> tuple[Tensor, Tensor]:
    tokens, k = expert_NK.shape
    goes_GN = expert_NK.new_empty(ranks, tokens, dtype=torch.bool)
    sizes_2G2 = expert_NK.new_zeros(2, ranks, 2)
    wide = triton.next_power_of_2(ranks)
    block = max(16, 4096 // wide)
    if tokens:
        _pairs_kernel[(triton.cdiv(tokens, block),)](
            expert_NK.contiguous(), goes_GN.view(torch.int8), sizes_2G2, tokens, k, local, ranks, wide, block
        )
    return goes_GN, sizes_2G2


def label_pairs(
    expert_NK: Tensor, weight_NK: Tensor, token_P: Tensor, rank_P: Tensor, local: int, by_column: bool
) -> tuple[Tensor, Tensor]:
    pairs, places = len(token_P), expert_NK.shape[1]
    width = local if by_column else places
    ids_PX, weight_PX = expert_NK.new_empty(pairs, width), weight_NK.new_empty(pairs, width)
    if pairs:
        cols = triton.next_power_of_2(width)
        rows = max(1, 1024 // cols)
        _label_kernel[(triton.cdiv(pairs, rows),)](
            expert_NK.contiguous(), weight_NK.contiguous(), token_P, rank_P, ids_PX, weight_PX, pairs, places, width,
            local, by_column, rows, cols,
        )  # fmt: skip
    return ids_PX, weight_PX


def bounds(sorted_N: Tensor, segments: int) -> Tensor:
    start_S1 = sorted_N.new_empty(segments + 1)
    block = 256
    _bounds_kernel[(triton.cdiv(segments + 1, block),)](
        sorted_N, start_S1, len(sorted_N), segments, len(sorted_N).bit_length() + 1, block
    )
    return start_S1


def list_pairs(goes_GN: Tensor, so_far_X: Tensor, size: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    ranks, tokens = goes_GN.shape
    width = min(width, ranks)
    token_P, rank_P = so_far_X.new_empty(size), so_far_X.new_empty(size)
    pair_NW = so_far_X.new_empty(tokens, width)
    if tokens:
        _list_kernel[(triton.cdiv(tokens, BLOCK),)](
            goes_GN.view(torch.int8), so_far_X, token_P, rank_P, pair_NW, tokens, ranks, width, width < ranks, BLOCK
        )
    return token_P, rank_P, pair_NW


def place_rows(
    sorted_X: Tensor, order_X: Tensor, places: int, experts: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    number = len(sorted_X)
    entry_R, token_R, row_X = order_X.new_empty(rows), order_X.new_empty(rows), torch.empty_like(order_X)
    group_R, ends_L = order_X.new_empty(rows, dtype=torch.int32), order_X.new_zeros(experts, dtype=torch.int32)
    if number:
        _place_kernel[(triton.cdiv(number, BLOCK),)](
            sorted_X, order_X, entry_R, token_R, group_R, ends_L, row_X, number, places, experts, rows,
            number.bit_length() + 1, triton.next_power_of_2(experts), BLOCK,
        )  # fmt: skip
    return entry_R, token_R, group_R, ends_L, row_X
