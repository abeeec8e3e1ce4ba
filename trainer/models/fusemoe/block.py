"""The fusion block: attention and sparse experts, pre-norm, on packed tokens (FuseMoE section 3, figure 2).

Shape legend: N tokens, D width, B samples, L latent queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel import Dispatcher, MoELayer, RoutingStats, decision_units
from parallel.moe.kept import Kept
from parallel.moe.segments import Segments
from trainer.config.sections import ModelConfig
from trainer.models.layers.attention import Prompts, build_attention
from trainer.models.layers.token_layout import TokenLayout


class FusionBlock(nn.Module):
    """x + attention(norm x), then x + experts(norm x), then, where asked for, x + dense(norm x)."""

    def __init__(
        self,
        config: ModelConfig,
        attention: str,
        blocks: int,
        modalities: int,
        layer: int,
        seed: int,
        dispatcher: Dispatcher,
    ) -> None:
        super().__init__()
        dim = config.dim
        self.config = config.moe
        self.attention_norm, self.moe_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = build_attention(attention, dim, config.heads, blocks)
        self.moe = MoELayer(dim, config.moe, modalities, layer, seed, dispatcher)
        self.dropout = nn.Dropout(config.dropout)
        self.dense = _dense(dim, config.ffn_hidden) if config.ffn_hidden else None

    def forward(
        self, x_ND: Tensor, layout: TokenLayout, prompts: Prompts | None = None, kept: Kept | None = None
    ) -> tuple[Tensor, RoutingStats]:
        x_ND = x_ND + self.dropout(self.attention(self.attention_norm(x_ND), layout, prompts))
        unit_N, units = decision_units(self.config, layout.sample_N, layout.bin_N, layout.samples, layout.bins)
        y_ND, stats = self.moe(self.moe_norm(x_ND), layout.modality_N, unit_N, units, kept)
        x_ND = x_ND + self.dropout(y_ND)
        if self.dense is not None:
            # The norm is the first of its layers.
            x_ND = x_ND + self.dropout(self.dense(x_ND))
        return x_ND, stats


def _dense(dim: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Pooling(nn.Module):
    """Tokens of a sample -> one vector whose width does not depend on how many modalities exist.

    `attention`: L learned queries, each a softmax over the sample's tokens; `mean`: mean token; `last`: mean over
    each modality's token in the last time bin (the paper reads out the last step). A sample without tokens gives 0.
    """

    def __init__(self, kind: str, dim: int, latents: int) -> None:
        super().__init__()
        self.kind = kind
        self.latents = latents if kind == "attention" else 1
        self.width = self.latents * dim
        self.norm = nn.LayerNorm(dim)
        self.query_DL = nn.Parameter(torch.randn(dim, self.latents) * dim**-0.5) if kind == "attention" else None
        self.value = nn.Linear(dim, dim)

    def forward(self, x_ND: Tensor, layout: TokenLayout) -> Tensor:
        x_ND = self.norm(x_ND)
        score_NL = x_ND.new_zeros(x_ND.shape[0], 1) if self.query_DL is None else x_ND @ self.query_DL
        score_NL = score_NL.float()
        if self.kind == "last":
            # Finite, so that a sample without a token in the last bin falls back to the mean of all.
            score_NL = score_NL.masked_fill(~layout.final_N[:, None], -1e4)
        by_sample = Segments.of(layout.sample_N, layout.samples)
        weight_NL = by_sample.softmax(score_NL).to(x_ND.dtype)
        value_ND = self.value(x_ND)
        # One query after the other: all of them at once would be as many copies of the tokens.
        pooled = [by_sample.sum(weight_N[:, None] * value_ND) for weight_N in weight_NL.unbind(1)]
        return torch.cat(pooled, 1).to(x_ND.dtype)


def last_tokens(x_ND: Tensor, layout: TokenLayout) -> Tensor:
    """(B, D) in fp32 at least: the sum of the tokens that show each modality at its last, those of absence too."""
    return Segments.of(layout.sample_N, layout.samples).sum(x_ND * layout.final_N[:, None])
