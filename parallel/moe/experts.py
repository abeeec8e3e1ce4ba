"""The experts of one layer that live on one rank: E_local two-layer MLPs in three stacked parameters.

    expert e:  y = GELU(x @ w1[e] + b1[e]) @ w2[e] + b2[e]

Rows come sorted by expert. `reference_experts` is the obvious loop and the oracle of the tests. On a CPU one hand-
written autograd function takes portions of one expert's rows through the whole MLP: their hidden rows stay in the cache
between the two products, only the pre-activations are kept for the backward pass, and no gradient of a stack is ever
built from zero-filled parts. On a GPU the grouped kernels do the products, and biases are added and GELU taken between
them, without a bias of every row being written out.

Every parameter takes part in every call, also with zero rows: an expert without a token gets a gradient of zeros, so no
rank ever lacks a gradient its peers have.

Shapes: R rows, L experts on this rank, D width, F hidden width, B = F + D biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.moe.grouped_matmul import fused_kernel_fits, on_gpu
from parallel.moe.initial import Drawn, draw_uniform
from parallel.moe.rows.bias import add_bias, bias_gelu, bias_gelu_backward, sum_groups
from parallel.moe.rows.places import RowGroups

BLOCK = 16  # rows
CACHE_BYTES = 2 << 20  # of a core

Rows = Sequence[Tensor | None]

gelu_out = torch.ops.aten.gelu.out
gelu_backward_out = torch.ops.aten.gelu_backward.grad_input


def reference_experts(x_RD: Tensor, groups: RowGroups, w1_LDF: Tensor, w2_LFD: Tensor, w3_L1B: Tensor | None) -> Tensor:
    """Oracle: one expert after the other."""
    hidden = w1_LDF.shape[2]
    outputs = []
    for e, rows in enumerate(x_RD.split(groups.counts())):
        bias1, bias2 = (0, 0) if w3_L1B is None else (w3_L1B[e, 0, :hidden], w3_L1B[e, 0, hidden:])
        outputs.append(F.gelu(rows @ w1_LDF[e] + bias1) @ w2_LFD[e] + bias2)
    return torch.cat(outputs)


class _Grouped(torch.autograd.Function):
    """All experts at once by the kernels of GPUs. Nothing here looks at a number of rows."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, w1_LDF: Tensor, w2_LFD: Tensor, w3_L1B: Tensor | None, groups: RowGroups
    ) -> Tensor:
        ends_L, group_R = groups
        b1_LF, b2_LD = _biases(w3_L1B, w1_LDF.shape[2])
        h_RF = F.grouped_mm(x_RD, w1_LDF, offs=ends_L)
        y_RD = F.grouped_mm(bias_gelu(h_RF, b1_LF, group_R), w2_LFD, offs=ends_L)
        if b2_LD is not None:
            add_bias(y_RD, b2_LD, group_R)
        # Not the activations: the backward pass makes them again on its way through h.
        ctx.save_for_backward(x_RD, h_RF, w1_LDF, w2_LFD, w3_L1B, ends_L, group_R)
        return y_RD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_RD, h_RF, w1_LDF, w2_LFD, w3_L1B, ends_L, group_R = ctx.saved_tensors
        b1_LF, _ = _biases(w3_L1B, w1_LDF.shape[2])
        g_RD = grads[0].contiguous()
        gh_RF = F.grouped_mm(g_RD, w2_LFD.transpose(1, 2), offs=ends_L)
        act_RF = bias_gelu_backward(gh_RF, h_RF, b1_LF, group_R)  # and gh is now the gradient of h
        gx_RD = F.grouped_mm(gh_RF, w1_LDF.transpose(1, 2), offs=ends_L)
        # Frozen experts (of a prompted host) owe their rows a gradient and nothing else.
        if not any(ctx.needs_input_grad[1:4]):
            return gx_RD, None, None, None, None
        gw1_LDF = F.grouped_mm(x_RD.t(), gh_RF, offs=ends_L)
        gw2_LFD = F.grouped_mm(act_RF.t(), g_RD, offs=ends_L)
        gw3_L1B = None
        if w3_L1B is not None:
            gw3_L1B = torch.cat([sum_groups(gh_RF, ends_L), sum_groups(g_RD, ends_L)], 1)[:, None]
        return gx_RD, gw1_LDF, gw2_LFD, gw3_L1B, None


def _biases(w3_L1B: Tensor | None, hidden: int) -> tuple[Tensor | None, Tensor | None]:
    """Biases (L, F) and (L, D) of the two layers."""
    return (None, None) if w3_L1B is None else (w3_L1B[:, 0, :hidden], w3_L1B[:, 0, hidden:])


class _ExpertByExpert(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, w1_LDF: Tensor, w2_LFD: Tensor, w3_L1B: Tensor | None, counts: list[int]
    ) -> Tensor:
        hidden = w1_LDF.shape[2]
        # A portion's hidden activations, F floats a row, stay in a core's cache between the two products. Gradients of
        # weights are summed over portions and rounded once for each, which bf16 cannot afford: there, one portion each.
        fits = max(1, CACHE_BYTES // (4 * hidden)) if x_RD.dtype != torch.bfloat16 else max(1, *counts)
        portions = cut_portions(counts, fits)
        y_RD = torch.empty_like(x_RD)
        # One buffer for the activations of every portion in turn.
        scratch = x_RD.new_empty(max((n for _, n in portions), default=0), hidden)
        sizes = [n for _, n in portions]
        weights = list(zip(w1_LDF.unbind(0), w2_LFD.unbind(0), *_unpack(w3_L1B, len(w1_LDF), hidden), strict=True))
        kept = []
        for (e, n), x, y in zip(portions, x_RD.split(sizes), y_RD.split(sizes), strict=True):
            w1, w2, b1, b2 = weights[e]
            u = torch.mm(x, w1) if b1 is None else torch.addmm(b1, x, w1)
            act = gelu_out(u, out=scratch[:n])
            torch.mm(act, w2, out=y) if b2 is None else torch.addmm(b2, act, w2, out=y)
            # Before the activation: its gradient needs u, and gelu(u) is cheaper to make again than to keep.
            kept.append(u)
        ctx.save_for_backward(x_RD, w1_LDF, w2_LFD, *kept)
        ctx.counts, ctx.portions, ctx.biased = counts, portions, w3_L1B is not None
        return y_RD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_RD, w1_LDF, w2_LFD, *kept = ctx.saved_tensors
        counts, portions, hidden = ctx.counts, ctx.portions, w1_LDF.shape[2]
        sizes = [n for _, n in portions]
        g_RD = grads[0].contiguous()
        # Frozen experts (of a prompted host) owe their rows a gradient and nothing else.
        if not any(ctx.needs_input_grad[1:4]):
            return _gradient_of_rows(x_RD, g_RD, w1_LDF, w2_LFD, kept, portions), None, None, None, None
        gx_RD, gw1_LDF, gw2_LFD = torch.empty_like(x_RD), torch.empty_like(w1_LDF), torch.empty_like(w2_LFD)
        # Biases are added up over portions and begin at zero; weights begin with the first portion's product.
        gw3_L1B = w1_LDF.new_zeros(len(counts), 1, hidden + x_RD.shape[1]) if ctx.biased else None
        # A portion's activations once more, and their gradient.
        scratch = x_RD.new_empty(2, max(sizes, default=0), hidden)
        weights = list(zip(w1_LDF.transpose(1, 2).unbind(0), w2_LFD.transpose(1, 2).unbind(0), strict=True))
        gradients = list(zip(gw1_LDF.unbind(0), gw2_LFD.unbind(0), *_unpack(gw3_L1B, len(counts), hidden), strict=True))
        for e, n in enumerate(counts):
            if n == 0:
                # No portion will write here, and `empty_like` left what was in memory.
                gradients[e][0].zero_()
                gradients[e][1].zero_()
        begun = -1
        blocks = (x_RD.t().split(sizes, 1), g_RD.split(sizes), gx_RD.split(sizes))
        for (e, n), u, xt, g, gx in zip(portions, kept, *blocks, strict=True):
            (w1t, w2t), (gw1, gw2, gb1, gb2), gu = weights[e], gradients[e], scratch[1, :n]
            first, begun = e != begun, e  # portions of one expert follow each other
            _product(gelu_out(u, out=scratch[0, :n]).t(), g, gw2, first)
            torch.mm(g, w2t, out=gu)
            # In place: nothing reads the gradient of the activations after this.
            gelu_backward_out(gu, u, grad_input=gu)
            _product(xt, gu, gw1, first)
            torch.mm(gu, w1t, out=gx)
            if gw3_L1B is not None:
                gb1 += gu.sum(0, keepdim=True)
                gb2 += g.sum(0, keepdim=True)
        return gx_RD, gw1_LDF, gw2_LFD, gw3_L1B, None


def _gradient_of_rows(
    x_RD: Tensor,
    g_RD: Tensor,
    w1_LDF: Tensor,
    w2_LFD: Tensor,
    kept: list[Tensor],
    portions: list[tuple[int, int]],
) -> Tensor:
    """What frozen experts pass back: half of the backward pass."""
    gx_RD, sizes = torch.empty_like(x_RD), [n for _, n in portions]
    for (e, _), u, g, gx in zip(portions, kept, g_RD.split(sizes), gx_RD.split(sizes), strict=True):
        gu = g @ w2_LFD[e].t()
        gelu_backward_out(gu, u, grad_input=gu)
        torch.mm(gu, w1_LDF[e].t(), out=gx)
    return gx_RD


def _product(a: Tensor, b: Tensor, out: Tensor, first: bool) -> None:
    """out = a @ b, or out += a @ b if it is not the first."""
    if first:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)


def cut_portions(counts: list[int], most: int) -> list[tuple[int, int]]:
    """(expert, rows) in order: the rows of each expert in nearly equal portions of at most `most`."""
    portions = []
    for expert, n in enumerate(counts):
        number = max(1, math.ceil(n / most))
        sizes = [n // number + (i < n % number) for i in range(number)]
        portions += [(expert, size) for size in sizes if size]
    return portions


def _unpack(w3_L1B: Tensor | None, experts: int, hidden: int) -> tuple[Rows, Rows]:
    """Biases (1, F) and (1, D) of every expert, as views; None for experts without."""
    if w3_L1B is None:
        return [None] * experts, [None] * experts
    return w3_L1B[:, :, :hidden].unbind(0), w3_L1B[:, :, hidden:].unbind(0)


class Experts(Drawn):
    """Stacked experts.

    Args:
        dim: width D.
        hidden: hidden width F.
        ids: global ids of the experts held here; each expert's initial weights depend on its id only.
        seed_key: what else they depend on, e.g. (seed, layer).
        bias: whether the two layers of an expert add a bias.
    """

    def __init__(self, dim: int, hidden: int, ids: range, seed_key: tuple[object, ...] = (), bias: bool = True) -> None:
        super().__init__()
        self.dim, self.hidden, self.ids, self.seed_key = dim, hidden, ids, seed_key
        self.w1 = nn.Parameter(torch.empty(len(ids), dim, hidden))
        self.w2 = nn.Parameter(torch.empty(len(ids), hidden, dim))
        # Biases of the hidden and the output layer, packed.
        self.w3 = nn.Parameter(torch.empty(len(ids), 1, hidden + dim)) if bias else None
        self.start()

    def draw(self) -> None:
        keys = [(*self.seed_key, "expert", expert) for expert in self.ids]
        draw_uniform([(self.w1, self.dim), (self.w2, self.hidden)], keys)
        if self.w3 is not None:
            nn.init.zeros_(self.w3)

    def forward(self, x_RD: Tensor, groups: RowGroups | None = None) -> Tensor:
        """Apply each expert to its rows of `x_RD`; of rows that are nobody's, nothing is to be expected.

        Without `groups`, all rows are of the one expert there is: nothing to count, and plain products.
        """
        if groups is None:
            assert len(self.ids) == 1, "several experts need to know whose the rows are"
            return self._plain(x_RD) if on_gpu(x_RD) else self._one_by_one(x_RD, [len(x_RD)])
        if fused_kernel_fits(x_RD, self.w1):
            return _Grouped.apply(x_RD.contiguous(), self.w1, self.w2, self.w3, groups)
        # The loop needs the counts on the host, which waits for them if they are on a device.
        return self._one_by_one(x_RD, groups.counts() if len(x_RD) else [0] * len(self.ids))

    def _plain(self, x_RD: Tensor) -> Tensor:
        bias1, bias2 = _biases(self.w3, self.hidden)
        act_RF = F.gelu(F.linear(x_RD, self.w1[0].t(), None if bias1 is None else bias1[0]))
        return F.linear(act_RF, self.w2[0].t(), None if bias2 is None else bias2[0])

    def _one_by_one(self, x_RD: Tensor, counts: list[int]) -> Tensor:
        weights, rows = (self.w1, self.w2, self.w3), sum(counts)
        if rows < len(x_RD):
            return F.pad(self._one_by_one(x_RD[:rows], counts), (0, 0, 0, len(x_RD) - rows))
        if x_RD.dtype != torch.bfloat16:
            return _ExpertByExpert.apply(x_RD.contiguous(), *weights, counts)
        # Zero rows in between go through the experts like others; the last step leaves them out.
        padded_L, place_R = pad_blocks(torch.tensor(counts, device=x_RD.device))
        rows = int(padded_L.sum())
        padded_RD = x_RD.new_zeros(rows, self.dim).index_copy(0, place_R, x_RD)
        return _ExpertByExpert.apply(padded_RD, *weights, padded_L.tolist()).index_select(0, place_R)


def pad_blocks(counts_L: Tensor) -> tuple[Tensor, Tensor]:
    """(counts rounded up to multiples of BLOCK, place of every row among the padded ones).

    The CPU's bf16 products compile a kernel for every new number of rows. Counts change in every step; a few round
    sizes keep meeting the same kernels. Padding rows are zero and their results dropped, so they leave no gradient.
    """
    padded_L = (counts_L + BLOCK - 1) // BLOCK * BLOCK
    shift_L = (padded_L - counts_L).cumsum(0) - (padded_L - counts_L)
    rows = torch.arange(int(counts_L.sum()), device=counts_L.device)
    return padded_L, rows + shift_L.repeat_interleave(counts_L)
