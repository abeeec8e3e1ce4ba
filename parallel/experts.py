"""The experts of one layer that live on one rank: E_local two-layer MLPs in three stacked parameters.

    expert e:  y = GELU(x @ w1[e] + b1[e]) @ w2[e] + b2[e]

`forward` takes rows already sorted by expert and never loops in Python over autograd nodes; `reference_experts` is the
obvious loop and the oracle of its tests. Every parameter takes part in every call, also with zero rows: an expert
without a token gets a gradient of zeros, so no rank ever lacks a gradient its peers have.

Shapes: R rows, L experts on this rank, D width, F hidden width.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.grouped import grouped_matmul


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator seeded by a key, so that weights depend on names and not on who is initialised first or where."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def reference_experts(x_RD: Tensor, counts_L: Tensor, w1_LDF: Tensor, w2_LFD: Tensor, w3_L1B: Tensor) -> Tensor:
    """Oracle: one expert after the other."""
    hidden = w1_LDF.shape[2]
    outputs = []
    for e, rows in enumerate(x_RD.split(counts_L.tolist())):
        bias1, bias2 = w3_L1B[e, 0, :hidden], w3_L1B[e, 0, hidden:]
        outputs.append(F.gelu(rows @ w1_LDF[e] + bias1) @ w2_LFD[e] + bias2)
    return torch.cat(outputs)


class Experts(nn.Module):
    """Stacked experts.

    Args:
        dim: width D.
        hidden: hidden width F.
        ids: global ids of the experts held here; each expert's initial weights depend on its id only.
        seed_key: what else they depend on, e.g. (seed, layer).
    """

    def __init__(self, dim: int, hidden: int, ids: range, seed_key: tuple[object, ...] = ()) -> None:
        super().__init__()
        self.dim, self.hidden, self.ids = dim, hidden, ids
        self.w1 = nn.Parameter(torch.empty(len(ids), dim, hidden))
        self.w2 = nn.Parameter(torch.empty(len(ids), hidden, dim))
        self.w3 = nn.Parameter(
            torch.zeros(len(ids), 1, hidden + dim)
        )  # biases, first of the hidden then of the output layer
        if self.w1.is_meta:
            return
        with torch.no_grad():
            for local, expert in enumerate(ids):
                generator = generator_for(*seed_key, "expert", expert)
                for weight, fan_in in ((self.w1, dim), (self.w2, hidden)):
                    block = torch.empty(weight.shape[1:]).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
                    weight[local].copy_(block)

    def forward(self, x_RD: Tensor, counts_L: Tensor) -> Tensor:
        """Apply expert e to its `counts_L[e]` rows of `x_RD`, which is sorted by expert."""
        bias_RB = _repeat_bias(self.w3, counts_L, x_RD.shape[0])
        hidden_RF = F.gelu(grouped_matmul(x_RD, self.w1, counts_L) + bias_RB[:, : self.hidden])
        return grouped_matmul(hidden_RF, self.w2, counts_L) + bias_RB[:, self.hidden :]


def _repeat_bias(w3_L1B: Tensor, counts_L: Tensor, rows: int) -> Tensor:
    return w3_L1B[:, 0].repeat_interleave(counts_L, 0, output_size=rows)
