"""What is trained at one fusion block of a FuseMoE host: prompts of every modality's stream, their router, their gate.

Shapes: B samples, M modalities, Q present pairs (sample, modality), D width, X width of the context, Y width of a
query, K prompt experts, S static rows, L rows of an expert, P rows of all parts, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel.moe.initial import generator_for
from parallel.moe.segments import look_up
from trainer.config.mope import MopeConfig
from trainer.models.layers.grouped_linear import GroupedLinear
from trainer.models.layers.ragged import pick_rows
from trainer.models.mope.host.streams import Pairs
from trainer.models.mope.prompts.router import orthonormal_keys, route
from trainer.models.mope.prompts.site_prompts import prompt_tensor


class BlockPrompts(nn.Module):
    """What is trained at one fusion block, for all modalities.

    Args:
        name: of the block; with `seed` it determines the frozen keys.
    """

    def __init__(self, config: MopeConfig, modalities: int, dim: int, heads: int, seed: int, name: str) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        context = config.context_dim
        self.gate_MH = nn.Parameter(torch.zeros(modalities, heads))
        self.static_MSD = self.absent_MD = self.experts_MKLD = None
        if config.static:
            self.static_MSD = prompt_tensor(modalities, max(1, config.static_length), dim)
            self.absent_MD = nn.Parameter(torch.zeros(modalities, dim))
        if config.dynamic:
            self.experts_MKLD = prompt_tensor(modalities, config.k, config.dynamic_length, dim)
            bound = dim**-0.5
            intra = config.intra_dim * (config.router != "cross")
            cross = config.cross_dim * (config.router != "intra")
            self.intra_MDQ = nn.Parameter(torch.empty(modalities, dim, intra).uniform_(-bound, bound))
            self.cross_MXQ = nn.Parameter(torch.empty(modalities, context, cross).uniform_(-1, 1) * context**-0.5)
            keys = [
                orthonormal_keys(intra + cross, config.k, generator_for(seed, "routing keys", name, m))
                for m in range(modalities)
            ]
            self.register_buffer("keys_MQK", torch.stack(keys))
            self.keys_MQK: Tensor
            if config.router == "random":
                self.intra_MDQ.requires_grad_(False)
                self.cross_MXQ.requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Keys stay in float32: rounded ones would not be orthogonal."""
        keys_MQK = self.keys_MQK if self.experts_MKLD is not None else None
        super()._apply(fn, recurse)
        if keys_MQK is not None:
            self.keys_MQK = keys_MQK.to(self.keys_MQK.device)
        return self

    def forward(
        self, pairs: Pairs, pooled_QD: Tensor, context_QX: Tensor, mapped_QD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(Q, P, D) prompts, (Q, P) which of them count, (Q, K) weights of the experts."""
        parts, counts, weights_QK = [], [], None
        others_Q = pairs.present_BM.sum(1)[pairs.sample_Q] > 1
        if self.static_MSD is not None and self.absent_MD is not None:
            absent_BD = (~pairs.present_BM).to(self.absent_MD.dtype) @ self.absent_MD
            parts.append(look_up(self.static_MSD, pairs.modality_Q) + look_up(absent_BD, pairs.sample_Q)[:, None])
        if self.experts_MKLD is not None:
            noisy_QK, weights_QK = self._route(pairs, pooled_QD, context_QX)
            noisy_QK = noisy_QK.to(self.experts_MKLD.dtype)
            # By modality, not by pair: gathering the experts of every pair would copy them.
            mixture_QLD = torch.einsum(
                "qmk,mkld->qld", _by_modality(noisy_QK, pairs.modality_Q, len(self.experts_MKLD)), self.experts_MKLD
            )
            parts.append(mixture_QLD)
        for part in parts:
            counts.append(torch.ones(part.shape[:2], dtype=torch.bool, device=part.device))
        if mapped_QD is not None:
            parts.append(mapped_QD[:, None])
            # Nothing is made up for a modality that is alone, unless there would be no prompt at all.
            counts.append((others_Q if len(parts) > 1 else torch.ones_like(others_Q))[:, None])
        return torch.cat(parts, 1), torch.cat(counts, 1), weights_QK

    def _route(self, pairs: Pairs, pooled_QD: Tensor, context_QX: Tensor) -> tuple[Tensor, Tensor]:
        modality_Q, config = pairs.modality_Q, self.config
        intra_QY = _per_modality(pooled_QD, self.intra_MDQ, modality_Q)
        cross_QY = _per_modality(context_QX, self.cross_MXQ, modality_Q)
        query_QY = torch.cat([intra_QY, cross_QY], 1)
        noise = config.noise * self.training
        return route(query_QY, self.keys_MQK[modality_Q], config.tau, noise, config.normalise_query)


def _per_modality(x_QD: Tensor, weight_MDY: Tensor, modality_Q: Tensor) -> Tensor:
    """Each row times its modality's matrix (matrices are a few columns wide)."""
    every_QMY = torch.einsum("qd,mdy->qmy", x_QD, weight_MDY)
    own_Q = torch.arange(len(x_QD), device=x_QD.device) * len(weight_MDY) + modality_Q
    return pick_rows(every_QMY.flatten(0, 1), own_Q)


def _by_modality(weights_QK: Tensor, modality_Q: Tensor, modalities: int) -> Tensor:
    """(Q, M, K): a row's weights at its modality, zeros elsewhere."""
    return functional.one_hot(modality_Q, modalities).to(weights_QK.dtype)[:, :, None] * weights_QK[:, None]


class PromptReader:
    """`attention.Prompts` of one block: prompts through the block's norm and projection, then read."""

    def __init__(self, prompts_QPD: Tensor, counts_QP: Tensor, gate_QH: Tensor, norm: nn.Module, pairs: Pairs) -> None:
        self.prompts_QPD, self.counts_QP, self.gate_QH = prompts_QPD, counts_QP, gate_QH
        self.norm, self.pairs = norm, pairs

    def __call__(self, q_ND: Tensor, project: nn.Module, heads: int) -> Tensor:
        pairs, rows, dim, tokens = *self.prompts_QPD.shape[:2], q_ND.shape[1], self.pairs.tokens
        flat_RD = self.norm(self.prompts_QPD.to(q_ND.dtype)).flatten(0, 1)
        grouped = isinstance(project, GroupedLinear)
        qkv_RD = project(flat_RD, self.pairs.blocks.times(rows)) if grouped else project(flat_RD)
        key, value = (tokens.spread(part.reshape(pairs, rows, heads, -1)) for part in (qkv_RD[:, dim:].chunk(2, dim=1)))
        query_NHE = q_ND.unflatten(1, (heads, -1))
        score_NPH = torch.einsum("nhe,nphe->nph", query_NHE, key) * query_NHE.shape[-1] ** -0.5
        score_NPH = score_NPH.masked_fill(~self.counts_QP[tokens.segment_N][..., None], -torch.inf)
        weight_NPH = score_NPH.float().softmax(1).to(value.dtype)
        read_NHE = torch.einsum("nph,nphe->nhe", weight_NPH, value)
        return (read_NHE * tokens.spread(self.gate_QH.tanh())[..., None].to(value.dtype)).flatten(1)
