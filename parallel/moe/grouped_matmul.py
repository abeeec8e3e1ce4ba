"""Grouped matrix product: row block g of x times matrix g of a stack, for blocks of any size, empty ones included.

    y[start_g : end_g] = x[start_g : end_g] @ w[g]

On a CPU each block is one plain product written straight into its place; the gradient of the stack is written block by
block into one buffer, because indexing `w[g]` under autograd would make a stack-sized zero tensor for every block. On a
GPU the fused kernel does it where its alignment rule (rows of 16 bytes) allows. `reference_grouped_matmul` is the
obvious version.

Shapes: R rows, D inputs, F outputs, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def reference_grouped_matmul(x_RD: Tensor, w_GDF: Tensor, counts_G: Tensor) -> Tensor:
    """Oracle: one product a group, nothing clever."""
    return torch.cat([rows @ w_GDF[g] for g, rows in enumerate(x_RD.split(counts_G.tolist()))])


class _BlockwiseMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, w_GDF: Tensor, counts: list[int]) -> Tensor:
        y_RF = x_RD.new_empty(x_RD.shape[0], w_GDF.shape[2])
        start = 0
        for w_DF, n in zip(w_GDF.unbind(0), counts, strict=True):
            if n:
                torch.mm(x_RD[start : start + n], w_DF, out=y_RF[start : start + n])
            start += n
        ctx.save_for_backward(x_RD, w_GDF)
        ctx.counts = counts
        return y_RF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_RD, w_GDF = ctx.saved_tensors
        g_RF = grads[0].contiguous()
        g_x_RD = torch.empty_like(x_RD) if ctx.needs_input_grad[0] else None
        g_w_GDF = torch.empty_like(w_GDF)  # every block of it is written below, also where a group has no rows
        start = 0
        for g, n in enumerate(ctx.counts):
            block = slice(start, start + n)
            start += n
            if n == 0:
                g_w_GDF[g].zero_()
                continue
            torch.mm(x_RD[block].t(), g_RF[block], out=g_w_GDF[g])
            if g_x_RD is not None:
                torch.mm(g_RF[block], w_GDF[g].t(), out=g_x_RD[block])
        return g_x_RD, g_w_GDF, None


def on_gpu(x: Tensor) -> bool:
    """Whether kernels for GPUs serve this tensor. Every choice of a branch asks here, so that a test can force them."""
    return x.is_cuda


def fused_kernel_fits(x_RD: Tensor, w_GDF: Tensor) -> bool:
    """Whether the GPU kernel takes these operands: bf16, rows a multiple of 16 bytes, at least one row."""
    aligned = all(n * x_RD.element_size() % 16 == 0 for n in w_GDF.shape[1:])
    return on_gpu(x_RD) and x_RD.dtype == torch.bfloat16 and aligned and x_RD.shape[0] > 0


def grouped_matmul(x_RD: Tensor, w_GDF: Tensor, counts_G: Tensor) -> Tensor:
    """Rows of x, sorted by group, times their group's matrix.

    Args:
        x_RD: rows, the first counts[0] of group 0, then counts[1] of group 1, ...
        w_GDF: one matrix a group.
        counts_G: int64, rows of each group; zeros allowed; their sum is R.
    """
    if fused_kernel_fits(x_RD, w_GDF):
        # The kernel reads where each group ends from the device: no wait of the host.
        return F.grouped_mm(x_RD, w_GDF, offs=counts_G.cumsum(0).to(torch.int32))
    # The loop needs the counts on the host, which waits for them if they are on a device.
    return _BlockwiseMatmul.apply(x_RD.contiguous(), w_GDF, counts_G.tolist())
