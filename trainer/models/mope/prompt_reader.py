"""How the tokens of a FuseMoE host read the prompts of their own (sample, modality) pair, through a gate.

Shapes: N tokens, D width, Q present pairs (sample, modality), P prompt rows, H heads, E width of a head, R rows of all
prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.grouped import GroupedLinear
from trainer.models.mope.pairs import Pairs


class PromptReader:
    """`trainer.models.attention.Prompts` of one block: prompts through the block's norm and projection, then read."""

    def __init__(self, prompts_QPD: Tensor, counts_QP: Tensor, gate_QH: Tensor, norm: nn.Module, pairs: Pairs) -> None:
        self.prompts_QPD, self.counts_QP, self.gate_QH = prompts_QPD, counts_QP, gate_QH
        self.norm, self.pairs = norm, pairs

    def __call__(self, q_ND: Tensor, project: nn.Module, heads: int) -> Tensor:
        pairs, rows, dim = *self.prompts_QPD.shape[:2], q_ND.shape[1]
        flat_RD = self.norm(self.prompts_QPD.to(q_ND.dtype)).flatten(0, 1)
        grouped = isinstance(project, GroupedLinear)
        qkv_RD = project(flat_RD, self.pairs.counts_M * rows) if grouped else project(flat_RD)
        key, value = (
            part.view(pairs, rows, heads, -1)[self.pairs.pair_N] for part in (qkv_RD[:, dim:].chunk(2, dim=1))
        )
        query_NHE = q_ND.unflatten(1, (heads, -1))
        score_NPH = torch.einsum("nhe,nphe->nph", query_NHE, key) * query_NHE.shape[-1] ** -0.5
        score_NPH = score_NPH.masked_fill(~self.counts_QP[self.pairs.pair_N][..., None], -torch.inf)
        weight_NPH = score_NPH.float().softmax(1).to(value.dtype)
        read_NHE = torch.einsum("nph,nphe->nhe", weight_NPH, value)
        return (read_NHE * self.gate_QH.tanh()[self.pairs.pair_N][..., None].to(value.dtype)).flatten(1)
