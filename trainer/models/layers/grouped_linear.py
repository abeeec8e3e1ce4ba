"""Linear layers with one weight per modality, in one launch for all modalities.

Rows arrive sorted by block (the modalities of one encoder group, in order), so a layer with per-modality
parameters is a grouped matrix product, exactly like the experts: its cost depends on the rows present and not
on how many modalities are declared. `GroupedLinear.reference` is the slow loop that its test compares with.

Shape legend: N rows, K input features, F output features, M blocks (modalities of the group).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel.moe.grouped_matmul import fused_kernel_fits, grouped_matmul, on_gpu
from parallel.moe.segments import Segments

# Grouped GEMM kernels want row strides that are multiples of 16 bytes; 8 elements do for bf16 and fp32.
ALIGNMENT = 8


def aligned(features: int) -> int:
    """The next multiple of the kernel's alignment."""
    return math.ceil(features / ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Blocks:
    """How rows that are sorted by block divide: rows of each of M blocks, for the device and for the host."""

    counts_M: Tensor
    counts: tuple[int, ...]

    @staticmethod
    def of(counts_M: Tensor) -> Blocks:
        """From int64 counts on the CPU."""
        return Blocks(counts_M, tuple(counts_M.tolist()))

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def times(self, each: int) -> Blocks:
        """Of so many rows for each of these."""
        return Blocks(self.counts_M * each, tuple(count * each for count in self.counts))

    @cached_property
    def segments(self) -> Segments:
        """The block of each row."""
        block_M = torch.arange(len(self.counts), device=self.counts_M.device)
        block_N = torch.repeat_interleave(block_M, self.counts_M, output_size=self.rows)
        return Segments.of(block_N, len(self.counts), ascending=True)


class _BlockByBlock(torch.autograd.Function):
    """x W_m + b_m, each block of rows written straight into its place, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x_NK: Tensor, weight_MKF: Tensor, bias_MF: Tensor, counts: tuple[int, ...]) -> Tensor:
        y_NF = x_NK.new_empty(len(x_NK), weight_MKF.shape[2])
        blocks = (weight_MKF.unbind(0), bias_MF.unbind(0), x_NK.split(counts), y_NF.split(counts))
        for n, weight, bias, x, y in zip(counts, *blocks, strict=True):
            if n:
                torch.addmm(bias, x, weight[: x.shape[1]], out=y)
        ctx.save_for_backward(x_NK, weight_MKF)
        ctx.counts = counts
        return y_NF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_NK, weight_MKF = ctx.saved_tensors
        inputs, g_NF = x_NK.shape[1], grads[0].contiguous()
        gx_NK = torch.empty_like(x_NK) if ctx.needs_input_grad[0] else None
        # Blocks without rows, and the rows of alignment, get zeros. Frozen weights get nothing.
        gw_MKF = gb_MF = None
        if ctx.needs_input_grad[1]:
            gw_MKF, gb_MF = torch.zeros_like(weight_MKF), weight_MKF.new_zeros(len(ctx.counts), weight_MKF.shape[2])
        start = 0
        for m, n in enumerate(ctx.counts):
            if n:
                rows = slice(start, start + n)
                if gw_MKF is not None and gb_MF is not None:
                    torch.mm(x_NK[rows].t(), g_NF[rows], out=gw_MKF[m, :inputs])
                    torch.sum(g_NF[rows], 0, out=gb_MF[m])
                if gx_NK is not None:
                    torch.mm(g_NF[rows], weight_MKF[m, :inputs].t(), out=gx_NK[rows])
                start += n
        return gx_NK, gw_MKF, gb_MF, None


class GroupedLinear(nn.Module):
    """y = x W_m + b_m for rows of block m; rows sorted by block, as many each as `blocks` says (may be 0).

    Args:
        blocks: M, number of separate weights.
        inputs: K; the weight is stored with K rounded up to the kernel's alignment (the extra rows meet zeros).
        outputs: F, must be a multiple of 8.
    Raises:
        ValueError: if `outputs` is not a multiple of 8.
    """

    def __init__(self, blocks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        if outputs % ALIGNMENT:
            raise ValueError(f"a grouped layer needs an output width that is a multiple of {ALIGNMENT}, got {outputs}")
        self.inputs = inputs
        bound = inputs**-0.5
        weight_MKF = torch.zeros(blocks, aligned(inputs), outputs)
        weight_MKF[:, :inputs].uniform_(-bound, bound)
        self.weight = nn.Parameter(weight_MKF)
        self.bias = nn.Parameter(torch.zeros(blocks, outputs))

    def forward(self, x_NK: Tensor, blocks: Blocks) -> Tensor:
        x_NK = x_NK.to(self.weight.dtype)
        if self.weight.shape[0] == 1:
            return torch.addmm(self.bias[0], x_NK, self.weight[0, : self.inputs])
        if on_gpu(x_NK):
            padded_NK = functional.pad(x_NK, (0, self.weight.shape[1] - self.inputs))
            if fused_kernel_fits(padded_NK, self.weight):
                bias_NF = blocks.segments.spread(self.bias)
                return grouped_matmul(padded_NK, self.weight, blocks.counts_M) + bias_NF
        return _BlockByBlock.apply(x_NK.contiguous(), self.weight, self.bias, blocks.counts)

    def reference(self, x_NK: Tensor, blocks: Blocks) -> Tensor:
        """The obvious loop over blocks."""
        parts = x_NK.split(blocks.counts)
        return torch.cat(
            [
                x @ w[: self.inputs] + b
                for x, w, b in zip(parts, self.weight.unbind(0), self.bias.unbind(0), strict=True)
            ]
        )


class GroupedMLP(nn.Module):
    """Two grouped layers with GELU between them: K -> hidden -> F."""

    def __init__(self, blocks: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = GroupedLinear(blocks, inputs, hidden)
        self.second = GroupedLinear(blocks, hidden, outputs)

    def forward(self, x_NK: Tensor, blocks: Blocks) -> Tensor:
        return self.second(functional.gelu(self.first(x_NK, blocks)), blocks)
