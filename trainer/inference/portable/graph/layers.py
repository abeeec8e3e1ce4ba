"""Layers of a model in a form that a graph may hold: no size depends on numbers in tensors, nothing asks the host.

What sorts or packs rows for training is dense here: each row meets every weight of its layer, and what it is not meant
for is left out of the sum. Exact up to rounding, and for batches of a few records.

Shapes: N rows, D width, E experts, G sets of weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel import MoELayer
from parallel.moe.experts import Experts
from parallel.moe.gates import DISTANCE_EPS, NORM_EPS, Gate
from trainer.models.layers.attention import FactorizedAttention, JointAttention, ModalityAttention
from trainer.models.layers.embedding import Embedding
from trainer.models.layers.grouped_linear import GroupedLinear


class GraphLinear(GroupedLinear):
    """y = x W_m + b_m by all W_m."""

    def forward(self, x_NK: Tensor, blocks: Any) -> Tensor:
        y_NF = x_NK.new_zeros(x_NK.shape[0], self.weight.shape[2])
        for m, (weight_KF, bias_F) in enumerate(zip(self.weight.unbind(0), self.bias.unbind(0), strict=True)):
            own_N1 = (blocks.block_N == m)[:, None]
            y_NF = y_NF + torch.where(own_N1, torch.addmm(bias_F, x_NK, weight_KF[: self.inputs]), 0.0)
        return y_NF


class GraphEmbedding(Embedding):
    """A table that is looked up."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.embedding(input, self.weight)


class GraphExperts(Experts):
    """Every expert on every row: (N, D) -> (E, N, D)."""

    def each(self, x_ND: Tensor) -> Tensor:
        """What each expert makes of each row."""
        hidden = self.w1.shape[2]
        h_ENF = torch.matmul(x_ND[None], self.w1)
        if self.w3 is not None:
            h_ENF = h_ENF + self.w3[:, :, :hidden]
        y_END = torch.matmul(functional.gelu(h_ENF), self.w2)
        return y_END if self.w3 is None else y_END + self.w3[:, :, hidden:]


class GraphMoE(MoELayer):
    """Top-k of all experts' results."""

    def forward(
        self, x_ND: Tensor, modality_N: Tensor, unit_N: Tensor | None = None, units: int = 0, kept: Any = None
    ) -> Any:
        routing = self.router(x_ND, modality_N)
        gate_NE = torch.zeros_like(routing.logits_UE).scatter(1, routing.experts_UK, routing.weights_UK)
        y_ND = torch.einsum("ne,end->nd", gate_NE.to(x_ND.dtype), self.experts.each(x_ND))  # type: ignore[operator]
        if self.shared is not None:
            y_ND = y_ND + self.shared.each(x_ND)[0]  # type: ignore[operator]
        return y_ND, None


class GraphGate(Gate):
    """Logits by the formulas of `reference_logits`."""

    def forward(self, x_ND: Tensor, row_N: Tensor | None = None, groups: Any = None) -> Tensor:
        z_ND = functional.layer_norm(x_ND.float(), x_ND.shape[1:], eps=NORM_EPS)
        product_NE, size_NE = z_ND @ self.prototypes[0], self.prototypes[0].square().sum(0)[None]
        for g in range(1, len(self.prototypes)):
            assert row_N is not None
            own_N1, w_DE = (row_N == g)[:, None], self.prototypes[g]
            product_NE = torch.where(own_N1, z_ND @ w_DE, product_NE)
            size_NE = torch.where(own_N1, w_DE.square().sum(0)[None], size_NE)
        tau_T = self.log_temperature.exp()
        tau_N1 = tau_T if len(tau_T) == 1 or row_N is None else tau_T.index_select(0, row_N)[:, None]
        if self.kind == "softmax":
            return self._with_bias(product_NE * tau_N1, row_N)
        width = x_ND.shape[1]
        squared_NE = z_ND.square().sum(1, keepdim=True) + width * size_NE - 2 * width**0.5 * product_NE + DISTANCE_EPS
        squared_NE = squared_NE.clamp_min(DISTANCE_EPS)
        distance_NE = squared_NE.sqrt() if self.kind == "laplace" else squared_NE / width**0.5
        return self._with_bias(-tau_N1 * distance_NE, row_N)

    def _with_bias(self, logits_NE: Tensor, row_N: Tensor | None) -> Tensor:
        if self.bias is None:
            return logits_NE
        return logits_NE + (self.bias if len(self.bias) == 1 or row_N is None else self.bias.index_select(0, row_N))


def attend(qkv_ND: Tensor, sequence_N: Tensor, heads: int) -> Tensor:
    """Each row over the rows of its sequence, (N, 3 D) -> (N, D).

    Written out: in ONNX torch's own attention becomes reshapes that fail where there is no row, and a reshape in torch
    is another one where there is one row.
    """
    q_HNE, k_HNE, v_HNE = (torch.stack(part.chunk(heads, 1)) for part in qkv_ND.chunk(3, dim=1))
    score_HNN = torch.bmm(q_HNE * q_HNE.shape[2] ** -0.5, k_HNE.transpose(1, 2))
    other_NN = sequence_N[:, None] != sequence_N[None, :]
    weight_HNN = torch.where(other_NN[None], -torch.inf, score_HNN).softmax(-1)
    return torch.cat(torch.bmm(weight_HNN, v_HNE).unbind(0), 1)


def _pairs(layout: Any) -> Tensor:
    """int64 [encoded]: the pair of each encoded token."""
    cut = slice(0, layout.encoded)
    return layout.sample_N[cut] * layout.modalities + layout.modality_N[cut]  # type: ignore[no-any-return]


class GraphJoint(JointAttention):
    """All tokens of a sample."""

    def forward(self, x_ND: Tensor, layout: Any, prompts: Any = None) -> Tensor:
        return self.output(attend(self.project(x_ND), layout.sample_N, self.heads))  # type: ignore[no-any-return]


class GraphModality(ModalityAttention):
    """The tokens of a pair."""

    def forward(self, x_ND: Tensor, layout: Any, prompts: Any = None) -> Tensor:
        y_ND = attend(self.project(x_ND[: layout.encoded], layout.blocks), _pairs(layout), self.heads)
        y_ND = self.output(y_ND, layout.blocks)
        return torch.cat([y_ND, torch.zeros_like(x_ND[layout.encoded :])])


class GraphFactorized(FactorizedAttention):
    """The tokens of a pair, then those of a time bin."""

    def forward(self, x_ND: Tensor, layout: Any, prompts: Any = None) -> Tensor:
        y_ND = attend(self.over_time(x_ND[: layout.encoded]), _pairs(layout), self.heads)
        y_ND = torch.cat([self.over_time_output(y_ND), torch.zeros_like(x_ND[layout.encoded :])])
        cell_N = layout.sample_N * layout.bins + layout.bin_N
        across_ND = attend(self.over_modalities(self.norm(x_ND + y_ND)), cell_N, self.heads)
        return y_ND + self.over_modalities_output(across_ND)  # type: ignore[no-any-return]


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    GroupedLinear: GraphLinear,
    Embedding: GraphEmbedding,
    Experts: GraphExperts,
    MoELayer: GraphMoE,
    Gate: GraphGate,
    JointAttention: GraphJoint,
    ModalityAttention: GraphModality,
    FactorizedAttention: GraphFactorized,
}
