"""Gates: how well does a token fit an expert? Each expert has a prototype vector; a gate turns the comparison into a
logit.

With z = LayerNorm(x), so |z| = √D, and prototypes w of unit length on average:

    softmax    τ · z·w                        (Shazeer et al. 2017)
    laplace   −τ · |z − √D w|                 (FuseMoE, Han et al. 2024)
    gaussian  −τ · |z − √D w|² / √D

At the start the logits of a token spread over the experts by about 1 (softmax), 0.9 (laplace) and 2.4 (gaussian)
whatever the width D is, so no gate begins saturated or blind. τ is learned. Everything is computed in fp32, for a bf16
distance is noise. The distance is √(|z|² + D|w|² − 2√D z·w) by one matrix product; the ε under the root keeps the
gradient finite at z = √D w.

Shapes: N tokens, D width, E experts, G prototype rows (1 = shared by all modalities, M = one set each).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.config import GateKind
from parallel.moe.grouped_matmul import grouped_matmul
from parallel.moe.permute import inverse_permutation, permute_rows

DISTANCE_EPS = 1e-6


class Gate(nn.Module):
    """Logits of every expert for every token.

    Args:
        kind: softmax, laplace or gaussian.
        dim: width D of the tokens.
        experts: number of experts E.
        prototype_rows: 1, or the number of modalities if each has its own prototypes.
        temperature_rows: 1, or the number of modalities if each has its own temperature.
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
    ) -> None:
        super().__init__()
        self.kind, self.dim = kind, dim
        self.prototypes = nn.Parameter(torch.empty(prototype_rows, dim, experts))
        self.log_temperature = nn.Parameter(torch.zeros(temperature_rows))
        if not self.prototypes.is_meta:
            nn.init.normal_(self.prototypes, std=dim**-0.5, generator=generator)

    def forward(self, x_ND: Tensor, row_N: Tensor | None = None) -> Tensor:
        """Logits (N, E) in fp32. `row_N` picks each token's prototypes and temperature where there are several."""
        z_ND = F.layer_norm(x_ND.float(), (self.dim,))
        w_GDE = self.prototypes.float()
        temperature = self._temperature(row_N)
        if self.kind == "softmax":
            return products(z_ND, w_GDE, row_N) * temperature
        scale = self.dim**0.5
        bias_GE = self.dim * w_GDE.square().sum(1) + DISTANCE_EPS
        squared_NE = products(z_ND, w_GDE, row_N, bias_GE, -2 * scale) + z_ND.square().sum(1, keepdim=True)
        squared_NE = squared_NE.clamp_min(DISTANCE_EPS)  # rounding may leave a distance of 0 slightly negative
        if self.kind == "laplace":
            return squared_NE.sqrt() * -temperature
        return squared_NE * (-temperature / scale)

    def _temperature(self, row_N: Tensor | None) -> Tensor:
        """τ as (1,), or (N, 1) where every modality has its own."""
        temperature_G = self.log_temperature.float().exp()
        if len(temperature_G) == 1:
            return temperature_G
        assert row_N is not None, "a gate with one temperature per modality needs the modality of every token"
        return (F.one_hot(row_N, len(temperature_G)).to(temperature_G) @ temperature_G)[:, None]


def products(
    z_ND: Tensor, w_GDE: Tensor, row_N: Tensor | None, bias_GE: Tensor | None = None, alpha: float = 1.0
) -> Tensor:
    """alpha · z·w + bias (N, E) with each token's own set of prototypes.

    With several sets the tokens are sorted by set and multiplied in one grouped product; the work does not grow with G.
    """
    if len(w_GDE) == 1:
        return z_ND @ w_GDE[0] if bias_GE is None else torch.addmm(bias_GE, z_ND, w_GDE[0], alpha=alpha)
    assert row_N is not None, "a gate with one set of prototypes per modality needs the modality of every token"
    order_N = row_N.argsort(stable=True)
    inverse_N = inverse_permutation(order_N)
    counts_G = torch.bincount(row_N, minlength=len(w_GDE))
    product_NE = grouped_matmul(permute_rows(z_ND, order_N, inverse_N), w_GDE, counts_G)
    product_NE = permute_rows(product_NE, inverse_N, order_N)
    if bias_GE is None:
        return product_NE
    # A one-hot product is a small dense one; indexing bias_GE[row_N] would scatter-add in its backward pass.
    return torch.addmm(alpha * product_NE, F.one_hot(row_N, len(w_GDE)).to(z_ND.dtype), bias_GE)
