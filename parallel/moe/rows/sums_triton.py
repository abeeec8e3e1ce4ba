"""The operators of `rows` for GPUs: a program takes a block of rows times a block of columns.

Shapes as there. Numbers that change from step to step are no constants of a kernel (nor is whether 16 divides them), so
no new number compiles one anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers a program holds at a time


@triton.jit(do_not_specialize=["tokens"])
def _sum_kernel(
    y_ptr,
    index_ptr,
    weight_ptr,
    out_ptr,
    tokens,
    k,
    width,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    here = row < tokens
    total = tl.zeros((ROWS, COLS), tl.float32)
    for entry in range(k):
        index = tl.load(index_ptr + row * k + entry, mask=here, other=-1).to(tl.int64)
        there = (index >= 0)[:, None] & (col < width)[None, :]
        y = tl.load(y_ptr + index[:, None] * width + col[None, :], mask=there, other=0.0).to(tl.float32)
        if WEIGHTED:
            y = y * tl.load(weight_ptr + row * k + entry, mask=here, other=0.0)[:, None]
        total += y
    out = out_ptr + row[:, None] * width + col[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=here[:, None] & (col < width)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _spread_kernel(
    g_ptr, y_ptr, weight_ptr, entry_ptr, gy_ptr, gw_ptr, rows, k, width, ROWS: tl.constexpr, COLS: tl.constexpr
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    entry = tl.load(entry_ptr + row, mask=row < rows, other=-1).to(tl.int64)
    some = entry >= 0
    weight = tl.load(weight_ptr + entry, mask=some, other=0.0)
    token = entry // k
    product = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, COLS):
        col = start + tl.arange(0, COLS)
        there = some[:, None] & (col < width)[None, :]
        g = tl.load(g_ptr + token[:, None] * width + col[None, :], mask=there, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + row[:, None] * width + col[None, :], mask=there, other=0.0).to(tl.float32)
        product += tl.sum(g * y, axis=1)
        gy = (g * weight[:, None]).to(gy_ptr.dtype.element_ty)
        tl.store(gy_ptr + row[:, None] * width + col[None, :], gy, mask=(row < rows)[:, None] & (col < width)[None, :])
    tl.store(gw_ptr + entry, product, mask=some)  # each entry has one row


@triton.jit
def _segments_kernel(
    x_ptr, order_ptr, start_ptr, out_ptr, width, MEAN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    segment = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    start, end = tl.load(start_ptr + segment), tl.load(start_ptr + segment + 1)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for step in range(0, tl.cdiv(end - start, ROWS)):
        place = start + step * ROWS + tl.arange(0, ROWS)
        row = tl.load(order_ptr + place, mask=place < end, other=0)
        there = (place < end)[:, None] & (col < width)[None, :]
        total += tl.load(x_ptr + row[:, None] * width + col[None, :], mask=there, other=0.0).to(tl.float32)
    sums = tl.sum(total, axis=0)
    if MEAN:
        sums = sums / tl.maximum(end - start, 1).to(tl.float32)
    tl.store(out_ptr + segment * width + col, sums, mask=col < width)


def _tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a program."""
    cols = min(1024, triton.next_power_of_2(width))
    return TILE // cols, cols


def sum_rows(y_RD: Tensor, index_NK: Tensor, weight_NK: Tensor | None) -> Tensor:
    tokens, k = index_NK.shape
    width = y_RD.shape[1]
    out_ND = y_RD.new_empty(tokens, width)
    rows, cols = _tile(width)
    if out_ND.numel():
        weighted = weight_NK is not None
        weights = weight_NK.contiguous() if weight_NK is not None else y_RD
        grid = (triton.cdiv(tokens, rows), triton.cdiv(width, cols))
        _sum_kernel[grid](
            y_RD.contiguous(), index_NK.contiguous(), weights, out_ND, tokens, k, width, weighted, rows, cols
        )
    return out_ND


def gather_rows(x_ND: Tensor, token_R: Tensor) -> Tensor:
    return sum_rows(x_ND, token_R[:, None], None)


def spread_rows(g_ND: Tensor, y_RD: Tensor, weight_NK: Tensor, entry_R: Tensor) -> tuple[Tensor, Tensor]:
    number, width = y_RD.shape
    g_RD, g_weight_NK = torch.empty_like(y_RD), torch.zeros_like(weight_NK, memory_format=torch.contiguous_format)
    rows, cols = _tile(width)
    if y_RD.numel():
        _spread_kernel[(triton.cdiv(number, rows),)](
            g_ND.contiguous(),
            y_RD.contiguous(),
            weight_NK.contiguous(),
            entry_R.contiguous(),
            g_RD,
            g_weight_NK,
            number,
            weight_NK.shape[1],
            width,
            rows,
            cols,
        )
    return g_RD, g_weight_NK


def sum_segments(x_NX: Tensor, order_N: Tensor, start_S1: Tensor, mean: bool) -> Tensor:
    segments, width = len(start_S1) - 1, x_NX.shape[1]
    total_SX = x_NX.new_empty(segments, width, dtype=torch.float32)
    if total_SX.numel():
        cols = min(128, triton.next_power_of_2(width))
        grid = (segments, triton.cdiv(width, cols))
        _segments_kernel[grid](x_NX.contiguous(), order_N, start_S1, total_SX, width, mean, 16, cols)
    return total_SX
