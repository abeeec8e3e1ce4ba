"""Gates: how well does a token fit an expert? Each expert has a prototype vector; a gate turns the comparison into a
logit.

With z = LayerNorm(x), so |z| = √D, and prototypes w of unit length on average:

    softmax    τ · z·w                        (Shazeer et al. 2017)
    laplace   −τ · |z − √D w|                 (FuseMoE, Han et al. 2024)
    gaussian  −τ · |z − √D w|² / √D

At the start the logits of a token spread over the experts by about 1 (softmax), 0.9 (laplace) and 2.4 (gaussian)
whatever the width D is, so no gate begins saturated or blind. τ is learned. The formulas are computed in fp32, for a
bf16 distance is noise; what the product takes is decided in `router_product`. The distance is
√(|z|² + D|w|² − 2√D z·w) by one matrix product; the ε under the root keeps the gradient finite at z = √D w. LayerNorm
gives |z|² as well: with r = 1/√(variance + ε), it is D (1 − ε r²).

`_Logits` is the whole way from x to the logits with its derivative written out. It keeps x and the logits, which exist
anyway, and two numbers a token, where autograd would keep x, z and the distances in fp32. `reference_logits` is the
obvious version.

Shapes: N tokens, D width, E experts, G prototype rows and T temperatures (1 = shared by all modalities, M = one each).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.config import GateKind
from parallel.moe.router_product import Groups, group_rows, matrix_gradient, product, rows_gradient, splits
from parallel.moe.segments import look_up

DISTANCE_EPS = 1e-6
NORM_EPS = 1e-5


def reference_logits(
    x_ND: Tensor, w_GDE: Tensor, log_temperature_T: Tensor, row_N: Tensor | None, kind: GateKind
) -> Tensor:
    """Oracle: the formulas above, every token with the prototypes and the temperature of its row."""
    z_ND = F.layer_norm(x_ND, x_ND.shape[1:], eps=NORM_EPS)
    row_N = torch.zeros(len(x_ND), dtype=torch.int64) if row_N is None else row_N
    w_NDE = w_GDE[row_N] if len(w_GDE) > 1 else w_GDE
    tau_N1 = log_temperature_T.exp()[row_N if len(log_temperature_T) > 1 else row_N * 0, None]
    scale = x_ND.shape[1] ** 0.5
    if kind == "softmax":
        return tau_N1 * (z_ND[:, :, None] * w_NDE).sum(1)
    squared_NE = (z_ND[:, :, None] - scale * w_NDE).square().sum(1) + DISTANCE_EPS
    return -tau_N1 * (squared_NE.sqrt() if kind == "laplace" else squared_NE / scale)


class _Logits(torch.autograd.Function):
    """x (N, D), prototypes (G, D, E), log τ (T) -> logits (N, E). `groups` sort the rows where G > 1."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        w_GDE: Tensor,
        log_tau_T: Tensor,
        row_N: Tensor | None,
        groups: Groups | None,
        kind: GateKind,
    ) -> Tensor:
        exact = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
        if groups is not None:
            x_ND, row_N = groups.sort(x_ND), groups.row_N
        width = x_ND.shape[1]
        z_ND, mean_N1, rstd_N1 = torch.native_layer_norm(x_ND.to(exact), (width,), None, None, NORM_EPS)
        tau_N1 = _temperature(log_tau_T, row_N, exact)
        if kind == "softmax":
            logits_NE = product(z_ND, w_GDE, groups).mul_(tau_N1)
        else:
            # |z - √D w|², where LayerNorm gives |z|²
            norm_GE = torch.linalg.vector_norm(w_GDE, dim=1, dtype=exact)
            size_GE = torch.addcmul(norm_GE.new_full((), width + DISTANCE_EPS), norm_GE, norm_GE, value=width)
            size_NE = size_GE if groups is None else size_GE.index_select(0, groups.row_N)
            logits_NE = product(z_ND, w_GDE, groups, size_NE, -2 * width**0.5)
            logits_NE.addcmul_(rstd_N1, rstd_N1, value=-width * NORM_EPS)
            logits_NE.clamp_min_(DISTANCE_EPS)  # rounding may leave a distance of 0 slightly negative
            if kind == "laplace":
                logits_NE.sqrt_().mul_(-tau_N1)
            else:
                logits_NE.mul_(tau_N1 * -(width**-0.5))
        if groups is not None:
            logits_NE = groups.back(logits_NE)
        ctx.save_for_backward(x_ND, w_GDE, log_tau_T, row_N, mean_N1, rstd_N1, logits_NE)
        ctx.groups, ctx.kind = groups, kind
        return logits_NE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_ND, w_GDE, log_tau_T, row_N, mean_N1, rstd_N1, logits_NE = ctx.saved_tensors
        groups, kind, g_NE = ctx.groups, ctx.kind, grads[0]
        exact, split, width = logits_NE.dtype, splits(w_GDE), x_ND.shape[1]
        if groups is not None:
            g_NE, logits_NE = groups.sort(g_NE), groups.sort(logits_NE)
        # Logits are proportional to τ, so the derivative by log τ is g · logit.
        g_tau_N = torch.linalg.vecdot(g_NE, logits_NE)
        rows = max(len(w_GDE), len(log_tau_T))
        of_row_MN = _per_row(row_N, rows, exact) if rows > 1 else None
        g_tau_T = g_tau_N.sum(0, keepdim=True) if len(log_tau_T) == 1 else of_row_MN @ g_tau_N
        # `d` is the derivative by the squared distance (softmax: by the product) up to the factor `half` of the kind.
        tau_N1 = _temperature(log_tau_T, row_N, exact)
        if kind == "laplace":
            d_NE, half = (g_NE / logits_NE).mul_(tau_N1.square()), 0.5
        else:
            d_NE, half = g_NE * tau_N1, -(width**-0.5)
        # All that follows is made of the same rounded numbers: sums of rows and columns belong to the products.
        d_NE = d_NE.bfloat16() if split else d_NE
        # Both gradients come without the factor `outer`, which goes in where they are cast.
        outer = 1.0 if kind == "softmax" else -2 * width**0.5 * half
        exact_ND = x_ND.to(exact)
        z_ND = torch.native_layer_norm(exact_ND, (width,), None, None, NORM_EPS)[0]
        g_x_ND = g_w_GDE = None
        if ctx.needs_input_grad[1]:
            g_w_GDE = matrix_gradient(z_ND.bfloat16() if split else z_ND, d_NE, groups, split)
            if kind != "softmax":
                sums_GE = d_NE.sum(0, keepdim=True, dtype=exact) if groups is None else of_row_MN @ d_NE.to(exact)
                g_w_GDE = torch.addcmul(g_w_GDE.to(exact), w_GDE, sums_GE[:, None], value=-(width**0.5))
            g_w_GDE = _scaled(g_w_GDE, outer, w_GDE.dtype)
        if ctx.needs_input_grad[0]:
            g_z_ND = rows_gradient(d_NE, w_GDE, groups)
            if kind != "softmax":
                g_z_ND.addcmul_(z_ND, d_NE.sum(1, keepdim=True, dtype=exact), value=-(width**-0.5))
            g_exact_ND = torch.ops.aten.native_layer_norm_backward(
                g_z_ND, exact_ND, (width,), mean_N1, rstd_N1, None, None, [True, False, False]
            )[0]
            g_x_ND = _scaled(g_exact_ND, outer, x_ND.dtype)
            if groups is not None:
                g_x_ND = groups.back(g_x_ND)
        return g_x_ND, g_w_GDE, g_tau_T.to(log_tau_T.dtype), None, None, None


def _scaled(x: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """x · factor, multiplied in its own precision and rounded on the way out."""
    return torch.mul(x, factor, out=torch.empty(x.shape, dtype=dtype, device=x.device))


def _temperature(log_tau_T: Tensor, row_N: Tensor | None, exact: torch.dtype) -> Tensor:
    """τ as (1,), or (N, 1) where every modality has its own."""
    tau_T = log_tau_T.to(exact).exp()
    if len(tau_T) == 1:
        return tau_T
    assert row_N is not None, "a gate with one temperature per modality needs the modality of every token"
    return tau_T.index_select(0, row_N)[:, None]


def _per_row(row_N: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """(rows, N): 1 where a token belongs to the row. A product with it adds up in one fixed order."""
    return (row_N == torch.arange(rows, device=row_N.device)[:, None]).to(dtype)


class Gate(nn.Module):
    """Logits of every expert for every token.

    Args:
        kind: softmax, laplace or gaussian.
        dim: width D of the tokens.
        experts: number of experts E.
        prototype_rows: 1, or the number of modalities if each has its own prototypes.
        temperature_rows: 1, or the number of modalities if each has its own temperature.
        bias: whether each expert has a learned number that is added to its logits (FuseMoE, section 4).
        generator: source of the initial prototypes, so that the global random state is left alone.
    """

    def __init__(
        self,
        kind: GateKind,
        dim: int,
        experts: int,
        prototype_rows: int = 1,
        temperature_rows: int = 1,
        generator: torch.Generator | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.dim = kind, dim
        self.prototypes = nn.Parameter(torch.empty(prototype_rows, dim, experts))
        self.bias = nn.Parameter(torch.zeros(prototype_rows, experts)) if bias else None
        self.log_temperature = nn.Parameter(torch.zeros(temperature_rows))
        if not self.prototypes.is_meta:
            nn.init.normal_(self.prototypes, std=dim**-0.5, generator=generator)

    def forward(self, x_ND: Tensor, row_N: Tensor | None = None, groups: Groups | None = None) -> Tensor:
        """Logits (N, E) in fp32. `row_N` picks each token's prototypes and temperature where there are several.

        `groups` are the rows sorted by `row_N`, if the caller has them.
        """
        number = len(self.prototypes)
        if number > 1 and groups is None:
            assert row_N is not None, "a gate with one set of prototypes per modality needs the modality of every token"
            groups = group_rows(row_N, number)
        made: Tensor = _Logits.apply(
            x_ND, self.prototypes, self.log_temperature, row_N, groups if number > 1 else None, self.kind
        )
        return self.biased(made, row_N)

    def biased(self, logits_NE: Tensor, row_N: Tensor | None) -> Tensor:
        """Logits with what each expert has of its own; the same tensor where experts have nothing."""
        if self.bias is None:
            return logits_NE
        # Added after the temperature, which would else learn at its pace. In the logits' precision.
        if len(self.bias) == 1 or row_N is None:
            return logits_NE + self.bias[0]
        return logits_NE + look_up(self.bias.to(logits_NE.dtype), row_N)
