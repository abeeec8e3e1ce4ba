"""Linear layers with one weight per modality, in one launch for all modalities.

Rows arrive sorted by block (the modalities of one encoder group, in order), so a layer with per-modality
parameters is a grouped matrix product, exactly like the experts: its cost depends on the rows present and not
on how many modalities are declared. `GroupedLinear.reference` is the slow loop that its test compares with.

Shape legend: N rows, K input features, F output features, M blocks (modalities of the group).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel.grouped import grouped_matmul

# Grouped GEMM kernels want row strides that are multiples of 16 bytes; 8 elements do for bf16 and fp32.
ALIGNMENT = 8


def aligned(features: int) -> int:
    """The next multiple of the kernel's alignment."""
    return math.ceil(features / ALIGNMENT) * ALIGNMENT


class GroupedLinear(nn.Module):
    """y = x W_m + b_m for rows of block m; rows sorted by block, `counts_M` rows each (may be 0).

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

    def forward(self, x_NK: Tensor, counts_M: Tensor) -> Tensor:
        x_NK = x_NK.to(self.weight.dtype)
        if self.weight.shape[0] == 1:
            return torch.addmm(self.bias[0], x_NK, self.weight[0, : self.inputs])
        padded_NK = functional.pad(x_NK, (0, self.weight.shape[1] - self.inputs))
        bias_NF = torch.repeat_interleave(self.bias, counts_M, dim=0, output_size=len(x_NK))
        return grouped_matmul(padded_NK, self.weight, counts_M) + bias_NF

    def reference(self, x_NK: Tensor, counts_M: Tensor) -> Tensor:
        """The obvious loop over blocks."""
        parts = x_NK.split(counts_M.tolist())
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

    def forward(self, x_NK: Tensor, counts_M: Tensor) -> Tensor:
        return self.second(functional.gelu(self.first(x_NK, counts_M)), counts_M)
