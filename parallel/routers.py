"""Routers: which K experts serve a decision, and with what weight.

    joint         one set of prototypes; every modality competes for every expert
    per_modality  a set of prototypes for each modality over shared experts
    disjoint      the experts are partitioned into one pool a modality; a decision sees only its own pool

A decision is usually a token; it can be a time bin or a sample (see `parallel.moe`). The K largest logits win and their
softmax gives the weights (FuseMoE; Shazeer et al. 2017), so the weights of a decision sum to 1. Noise, if configured,
is added to the logits in training only: ε · noise · softplus(z·W_noise), ε standard normal.

Shapes: U decisions, D width, E experts, K chosen, M modalities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.config import MoEConfig
from parallel.gates import Gate, products

MIN_NOISE = 1e-2


class Routing(NamedTuple):
    """Decisions of one layer: `experts_UK` int64 ids, `weights_UK` fp32 summing to 1 over K, `logits_UE` fp32 without
    noise (-inf outside the pool), and `load_UE` = the probability that noise lets the expert be chosen, or None without
    noise."""

    experts_UK: Tensor
    weights_UK: Tensor
    logits_UE: Tensor
    load_UE: Tensor | None


def pool_bounds(experts: int, modalities: int, top_k: int) -> list[range]:
    """Expert pools of the disjoint router; sizes differ by at most one.

    Raises:
        ValueError: if there are fewer experts than modalities, or a pool is smaller than top_k.
    """
    if experts < modalities:
        raise ValueError(
            f"moe.router=disjoint gives every modality its own experts, but moe.experts={experts} is less than the "
            f"{modalities} modalities: use at least {modalities * top_k} experts for moe.top_k={top_k}, "
            "or another router."
        )
    smallest = experts // modalities
    if smallest < top_k:
        raise ValueError(
            f"moe.router=disjoint splits moe.experts={experts} over {modalities} modalities into pools as small as "
            f"{smallest}, less than moe.top_k={top_k}: use at least {modalities * top_k} experts "
            f"or a top_k of at most {smallest}."
        )
    return [range(m * experts // modalities, (m + 1) * experts // modalities) for m in range(modalities)]


class Router(nn.Module):
    """Gate, pools, noise and top-k selection.

    Args:
        dim: width D of what is routed.
        config: gate, router, experts, top_k, noise, forced_balance are read.
        modalities: number of modalities M.
        generator: source of the initial weights.

    Raises:
        ValueError: if top_k exceeds the experts a decision can see.
    """

    def __init__(self, dim: int, config: MoEConfig, modalities: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if config.experts < config.top_k:
            raise ValueError(
                f"moe.top_k={config.top_k} asks for more experts than moe.experts={config.experts}: "
                "lower top_k or add experts."
            )
        self.config = config
        shared = config.router == "joint"
        prototype_rows = modalities if config.router == "per_modality" else 1
        self.gate = Gate(config.gate, dim, config.experts, prototype_rows, 1 if shared else modalities, generator)
        self.noise_weight = nn.Parameter(torch.zeros(prototype_rows, dim, config.experts)) if config.noise else None
        pools = [range(config.experts)]
        if config.router == "disjoint":
            pools = pool_bounds(config.experts, modalities, config.top_k)
            inside_ME = torch.tensor([[e in pool for e in range(config.experts)] for pool in pools])
            self.register_buffer("outside_ME", ~inside_ME, persistent=False)
        self.pools = pools

    def forward(self, x_UD: Tensor, modality_U: Tensor) -> Routing:
        """Route decisions. `modality_U` is int64 in [0, M); the joint router ignores it."""
        row_U = modality_U if self.config.router == "per_modality" else None
        logits_UE = self.gate(x_UD, None if self.config.router == "joint" else modality_U)
        if self.config.router == "disjoint":
            assert isinstance(self.outside_ME, Tensor)
            logits_UE = logits_UE.masked_fill(self.outside_ME[modality_U], -torch.inf)
        scores_UE, load_UE = logits_UE, None
        if self.training and self.noise_weight is not None:
            scores_UE, load_UE = self._add_noise(x_UD, logits_UE, row_U)
        if self.config.forced_balance:
            experts_UK = self._deal(modality_U)
        else:
            experts_UK = scores_UE.detach().topk(self.config.top_k, dim=1).indices
        weights_UK = scores_UE.gather(1, experts_UK).softmax(1)
        return Routing(experts_UK, weights_UK, logits_UE, load_UE)

    def _add_noise(self, x_UD: Tensor, logits_UE: Tensor, row_U: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noisy logits, and each expert's probability to be chosen (Shazeer et al. 2017, appendix A)."""
        assert self.noise_weight is not None
        z_UD = F.layer_norm(x_UD.float(), (x_UD.shape[1],))
        raw_UE = products(z_UD, self.noise_weight.float(), row_U)
        std_UE = self.config.noise * (F.softplus(raw_UE) + MIN_NOISE)
        noisy_UE = logits_UE + torch.randn_like(logits_UE) * std_UE
        k, experts = self.config.top_k, self.config.experts
        if k == experts:
            return noisy_UE, torch.ones_like(logits_UE)
        top = noisy_UE.topk(k + 1, dim=1).values
        # An expert is chosen if it beats the k-th best of the others: the (k+1)-th overall if it is among the top k
        # now.
        rival_UE = torch.where(noisy_UE >= top[:, k - 1 : k], top[:, k:], top[:, k - 1 : k])
        finite_UE = logits_UE.isfinite() & rival_UE.isfinite()
        margin_UE = torch.where(finite_UE, logits_UE - rival_UE, torch.zeros_like(logits_UE)) / std_UE
        chosen_UE = 0.5 * (1 + torch.erf(margin_UE * 0.5**0.5))
        # Without a finite rival (a pool of exactly k experts) an expert of the pool is always chosen, any other never.
        return noisy_UE, torch.where(finite_UE, chosen_UE, logits_UE.isfinite().to(chosen_UE))

    def _deal(self, modality_U: Tensor) -> Tensor:
        """Experts in turn, whatever the scores: decision u takes the next top_k experts of its pool."""
        u_UK = torch.arange(len(modality_U), device=modality_U.device)[:, None] * self.config.top_k
        u_UK = u_UK + torch.arange(self.config.top_k, device=modality_U.device)
        if self.config.router != "disjoint":
            return u_UK % self.config.experts
        first_M = torch.tensor([pool.start for pool in self.pools], device=modality_U.device)
        size_M = torch.tensor([len(pool) for pool in self.pools], device=modality_U.device)
        return first_M[modality_U][:, None] + u_UK % size_M[modality_U][:, None]
