"""The operators of `bias` for GPUs. Shapes as there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers a program holds at a time
PARTS = 16  # pieces in which the rows of a group are summed side by side


@triton.jit
def _biased(
    h_ptr, bias_ptr, group_ptr, rows, width, groups, stride, BIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """(place of each number, which of them exist, h + bias in fp32)"""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    there = (row < rows)[:, None] & (col < width)[None, :]
    place = row[:, None] * width + col[None, :]
    u = tl.load(h_ptr + place, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        group = tl.load(group_ptr + row, mask=row < rows, other=groups).to(tl.int64)
        known = there & (group < groups)[:, None]
        u += tl.load(bias_ptr + group[:, None] * stride + col[None, :], mask=known, other=0.0).to(tl.float32)
    return place, there, u


@triton.jit(do_not_specialize=["rows"])
def _gelu_kernel(
    h_ptr, bias_ptr, group_ptr, out_ptr, rows, width, groups, stride,
    BIAS: tl.constexpr, GELU: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    place, there, u = _biased(h_ptr, bias_ptr, group_ptr, rows, width, groups, stride, BIAS, ROWS, COLS)
    if GELU:
        u = u * 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
    tl.store(out_ptr + place, u.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows"])
def _gelu_backward_kernel(
    g_ptr, h_ptr, bias_ptr, group_ptr, out_ptr, rows, width, groups, stride,
    BIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    place, there, u = _biased(h_ptr, bias_ptr, group_ptr, rows, width, groups, stride, BIAS, ROWS, COLS)
    below = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
    slope = below + u * tl.exp(-0.5 * u * u) * 0.3989422804014327
    g = tl.load(g_ptr + place, mask=there, other=0.0).to(tl.float32)
    tl.store(g_ptr + place, (g * slope).to(g_ptr.dtype.element_ty), mask=there)
    tl.store(out_ptr + place, (u * below).to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _sum_kernel(x_ptr, ends_ptr, out_ptr, groups, width, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    group, part = tl.program_id(0), tl.program_id(2)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    end = tl.load(ends_ptr + group).to(tl.int64)
    start = tl.load(ends_ptr + group - 1, mask=group > 0, other=0).to(tl.int64)
    share = tl.cdiv(end - start, PARTS)
    first = start + part * share
    last = tl.minimum(first + share, end)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for step in range(0, tl.cdiv(share, ROWS)):
        row = first + step * ROWS + tl.arange(0, ROWS)
        there = (row < last)[:, None] & (col < width)[None, :]
        total += tl.load(x_ptr + row[:, None] * width + col[None, :], mask=there, other=0.0).to(tl.float32)
    place = (part * groups + group).to(tl.int64) * width + col
    tl.store(out_ptr + place, tl.sum(total, axis=0), mask=col < width)


def _grid(rows: int, width: int) -> tuple[tuple[int, int], int, int]:
    """(grid, rows, columns) of programs over a matrix."""
    cols = min(1024, triton.next_power_of_2(width))
    per = TILE // cols
    return (triton.cdiv(rows, per), triton.cdiv(width, cols)), per, cols


def _launch(
    kernel: object, tensors: list[Tensor], bias_GF: Tensor | None, group_R: Tensor, out: Tensor, *flags: bool
) -> None:
    rows, width = out.shape
    if not out.numel():
        return
    grid, per, cols = _grid(rows, width)
    has_bias = bias_GF is not None
    # A part of the packed biases: its rows lie further apart than they are long.
    bias = bias_GF if bias_GF is not None else out
    groups, stride = (len(bias), bias.stride(0)) if has_bias else (0, 0)
    kernel[grid](*tensors, bias, group_R, out, rows, width, groups, stride, has_bias, *flags, per, cols)  # type: ignore[index]


def bias_gelu(h_RF: Tensor, bias_GF: Tensor | None, group_R: Tensor) -> Tensor:
    out_RF = torch.empty_like(h_RF)
    _launch(_gelu_kernel, [h_RF], bias_GF, group_R, out_RF, True)
    return out_RF


def add_bias(y_RF: Tensor, bias_GF: Tensor, group_R: Tensor) -> None:
    _launch(_gelu_kernel, [y_RF], bias_GF, group_R, y_RF, False)


def bias_gelu_backward(g_RF: Tensor, h_RF: Tensor, bias_GF: Tensor | None, group_R: Tensor) -> Tensor:
    out_RF = torch.empty_like(h_RF)
    _launch(_gelu_backward_kernel, [g_RF, h_RF], bias_GF, group_R, out_RF)
    return out_RF


def sum_groups(x_RF: Tensor, ends_G: Tensor) -> Tensor:
    groups, width = len(ends_G), x_RF.shape[1]
    # Parts are added up in their order: the same bits whoever is done first.
    partial = x_RF.new_zeros(PARTS, groups, width, dtype=torch.float32)
    if x_RF.numel():
        cols = min(128, triton.next_power_of_2(width))
        grid = (groups, triton.cdiv(width, cols), PARTS)
        _sum_kernel[grid](x_RF.contiguous(), ends_G, partial, groups, width, PARTS, TILE // cols, cols)
    return partial.sum(0).to(x_RF.dtype)
