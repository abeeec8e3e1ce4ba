"""The prompts of one site: static ones, a mixture of experts, one mapped from the context.

A site is a place in a frozen host where prompts enter attention. Its prompt is three parts one below the other: rows
that are the same for every sample, rows that are a convex mixture of K experts chosen by the router, and one row that
a small network makes from the context. Any part may be absent; what is compared with MoPE is MoPE with parts left out.

Shapes: B samples, D width of the host, X width of the context, K experts, S static rows, L rows of an expert, P rows
of all parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel.moe.initial import generator_for
from trainer.config.mope import MopeConfig
from trainer.models.mope.prompts.router import Router

# Half-width of the uniform distribution that prompts are drawn from (as for prompts of a 16-pixel-patch ViT of 128).
SPREAD = math.sqrt(6 / (3 * 16 + 128))


def prompt_tensor(*shape: int) -> nn.Parameter:
    """A fresh prompt."""
    return nn.Parameter(torch.empty(shape).uniform_(-SPREAD, SPREAD))


class Mapper(nn.Module):
    """Context -> one prompt row per width of the host: a shared trunk, a head per stage.

    LayerNorm rather than batch norm: a frozen-host job has no use for statistics that move.
    """

    def __init__(self, context: int, hidden: int, widths: list[int], dropout: float) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(context, hidden), nn.LayerNorm(hidden), nn.GELU())
        self.heads = nn.ModuleList(nn.Linear(hidden, width) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, context_BX: Tensor) -> list[Tensor]:
        """Per stage (B, 1, D)."""
        hidden_BH = self.trunk(context_BX)
        return [self.dropout(functional.gelu(head(hidden_BH)))[:, None] for head in self.heads]


class SitePrompts(nn.Module):
    """What is trained at one site.

    Args:
        width: D. context: X. name: of the site; with `seed` it determines the frozen keys.
    """

    def __init__(self, config: MopeConfig, width: int, context: int, seed: int, name: str) -> None:
        super().__init__()
        self.static_SD = prompt_tensor(config.static_length, width) if config.static and config.static_length else None
        self.experts_KLD = prompt_tensor(config.k, config.dynamic_length, width) if config.dynamic else None
        self.router = None
        if config.dynamic:
            self.router = Router(
                width,
                context,
                config.k,
                generator_for(seed, "routing keys", name),
                config.router,
                config.intra_dim,
                config.cross_dim,
                config.tau,
                config.noise,
                config.normalise_query,
            )

    def forward(self, pooled_BD: Tensor, context_BX: Tensor, mapped_B1D: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, P, D) prompts, and the (B, K) weights of the experts, without noise, if there are any."""
        parts, weights_BK = [], None
        if self.static_SD is not None:
            parts.append(self.static_SD.expand(len(pooled_BD), -1, -1))
        if self.experts_KLD is not None and self.router is not None:
            noisy_BK, weights_BK = self.router(pooled_BD, context_BX)
            parts.append(torch.einsum("bk,kld->bld", noisy_BK.to(self.experts_KLD.dtype), self.experts_KLD))
        if mapped_B1D is not None:
            parts.append(mapped_B1D)
        return torch.cat(parts, 1), weights_BK


class StaticPrompts(nn.Module):
    """Prompts that are the same for every sample: of the source tower, or of an un-routed first layer."""

    def __init__(self, rows: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.static_SD = prompt_tensor(rows, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled_BD: Tensor, context_BX: Tensor, mapped_B1D: Tensor | None) -> tuple[Tensor, None]:
        """(B, S, D)."""
        return self.dropout(self.static_SD).expand(len(pooled_BD), -1, -1), None
