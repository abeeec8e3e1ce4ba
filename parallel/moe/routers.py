"""Routers: which K experts serve a decision, and with what weight.

    joint         one set of prototypes; every modality competes for every expert
    per_modality  a set of prototypes for each modality over shared experts
    disjoint      the experts are partitioned into one pool a modality; a decision sees only its own pool

A decision is usually a token; it can be a time bin or a sample (see `parallel.moe`). The K largest logits win and their
softmax gives the weights (FuseMoE; Shazeer et al. 2017), so the weights of a decision sum to 1. Noise, if configured,
is added to the logits in training only: ε · noise · softplus(z·W_noise), ε standard normal.

Two further things bear on the choice and not on the weights: a bias that follows the load (`nudge`, Wang et al. 2024),
and a limit to the groups of experts that one decision sends to (DeepSeek-V3, 2024), for groups that are nodes.

Shapes: U decisions, D width, E experts, K chosen, M modalities, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.config import MoEConfig
from parallel.moe.gates import Gate
from parallel.moe.kept import Kept
from parallel.moe.router_product import Groups, group_rows, router_product

MIN_NOISE = 1e-2


class Routing(NamedTuple):
    """Decisions of one layer: `experts_UK` int64 ids, `weights_UK` fp32 summing to 1 over K, `logits_UE` fp32 without
    noise (-inf outside the pool), and `load_UE` = the probability that noise lets the expert be chosen, or None without
    noise."""

    experts_UK: Tensor
    weights_UK: Tensor
    logits_UE: Tensor
    load_UE: Tensor | None


def expert_pools(experts: int, modalities: int, top_k: int) -> list[range]:
    """Expert pools of the disjoint router; sizes differ by at most one.

    Pool m is every M-th expert from m on. Ranks hold neighbouring experts, so a pool is spread over the ranks, and a
    modality that is absent leaves no rank without work.

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
    return [range(m, experts, modalities) for m in range(modalities)]


def slice_of(pool: range) -> slice:
    """The pool as an index."""
    return slice(pool.start, pool.stop, pool.step)


class Router(nn.Module):
    """Gate, pools, noise and top-k selection.

    Args:
        dim: width D of what is routed.
        config: gate, router, experts, top_k, noise, bias_rate, groups and forced_balance are read.
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
        self.gate = Gate(
            config.gate, dim, config.experts, prototype_rows, 1 if shared else modalities, generator, config.gate_bias
        )
        self.noise_weight = nn.Parameter(torch.zeros(prototype_rows, dim, config.experts)) if config.noise else None
        pools = [range(config.experts)]
        if config.router == "disjoint":
            pools = expert_pools(config.experts, modalities, config.top_k)
            inside_ME = torch.tensor([[e in pool for e in range(config.experts)] for pool in pools])
            self.register_buffer("outside_ME", ~inside_ME, persistent=False)
        self.pools = pools
        if config.bias_rate:
            # How often each expert's bias was raised minus how often it was lowered. Whole numbers keep their value
            # when a model is cast to bf16.
            self.register_buffer("nudges_E", torch.zeros(config.experts, dtype=torch.int64))

    def forward(self, x_UD: Tensor, modality_U: Tensor, kept: Kept | None = None) -> Routing:
        """Route decisions. `modality_U` is int64 in [0, M); the joint router ignores it. `kept`: choices taken over."""
        kept = kept or Kept(hold=False)
        groups = None
        if self.gate.prototypes.shape[0] > 1:
            groups = group_rows(modality_U, self.gate.prototypes.shape[0])
        logits_UE = self.gate(x_UD, None if self.config.router == "joint" else modality_U, groups)
        if self.config.router == "disjoint":
            assert isinstance(self.outside_ME, Tensor)
            logits_UE = logits_UE.masked_fill(self.outside_ME.index_select(0, modality_U), -torch.inf)
        scores_UE, std_UE = logits_UE, None
        if self.training and self.noise_weight is not None:
            std_UE = self._noise_std(x_UD, groups)
            scores_UE = logits_UE + torch.randn_like(logits_UE) * std_UE
        # The bias, and noise, decide who is chosen; the bias never how much a chosen expert weighs.
        rank_UE = self._within_groups(self._biased(scores_UE))
        if rank_UE is scores_UE and not self.config.forced_balance and not kept.hold:
            # What is ranked is what weighs.
            chosen_UK, experts_UK = scores_UE.topk(self.config.top_k, dim=1)
        else:
            experts_UK = self._deal(modality_U) if self.config.forced_balance else self._best(rank_UE, kept)
            chosen_UK = scores_UE.gather(1, experts_UK)
        weights_UK = chosen_UK.softmax(1)
        load_UE = None
        if std_UE is not None:
            # Experts out of reach (another pool or group) stay out of the chance, too.
            mean_UE = self._biased(logits_UE).masked_fill(rank_UE.isneginf(), -torch.inf)
            noisy_UE = self._biased(scores_UE).masked_fill(rank_UE.isneginf(), -torch.inf)
            load_UE = chance_to_be_chosen(mean_UE, noisy_UE, std_UE, self.config.top_k)
        return Routing(experts_UK, weights_UK, logits_UE, load_UE)

    @torch.no_grad()
    def nudge(self, count_E: Tensor) -> None:
        """Move the bias of every expert by one step towards the mean load of those it competes with.

        `count_E`: times each expert was chosen in the last step, over all ranks.
        """
        assert isinstance(self.nudges_E, Tensor)
        for pool in self.pools:
            load_P = count_E[slice_of(pool)].double()
            self.nudges_E[slice_of(pool)] += (load_P.mean() - load_P).sign().to(torch.int64)

    def _biased(self, scores_UE: Tensor) -> Tensor:
        """Scores with what is added to them for the choice; the same tensor where there is nothing to add."""
        if not self.config.bias_rate:
            return scores_UE
        assert isinstance(self.nudges_E, Tensor)
        return scores_UE + self.nudges_E.float() * self.config.bias_rate

    def _best(self, rank_UE: Tensor, kept: Kept) -> Tensor:
        return kept.ids_once(
            "experts", lambda: rank_UE.detach().topk(self.config.top_k, dim=1).indices, self.config.experts
        )

    def _within_groups(self, rank_UE: Tensor) -> Tensor:
        """-inf for experts outside the best groups of a decision; a group counts as much as its best experts do."""
        most, groups, k = self.config.groups_per_token, self.config.expert_groups, self.config.top_k
        if most is None or most >= groups:
            return rank_UE
        rank_UGE = rank_UE.unflatten(1, (groups, -1))
        # As many as a chosen group has to serve on average.
        counted = min(-(-k // most), rank_UGE.shape[2])
        worth_UG = rank_UGE.topk(counted, dim=2).values.sum(2)
        best_UG = torch.zeros_like(worth_UG, dtype=torch.bool).scatter(1, worth_UG.topk(most, dim=1).indices, True)
        return rank_UGE.masked_fill(~best_UG[:, :, None], -torch.inf).flatten(1)

    def _noise_std(self, x_UD: Tensor, groups: Groups | None) -> Tensor:
        """Standard deviation of the noise, (U, E)."""
        assert self.noise_weight is not None
        z_UD = F.layer_norm(x_UD.float(), (x_UD.shape[1],))
        return self.config.noise * (F.softplus(router_product(z_UD, self.noise_weight, groups)) + MIN_NOISE)

    def _deal(self, modality_U: Tensor) -> Tensor:
        """Experts in turn, whatever the scores: decision u takes the next top_k experts of its pool."""
        u_UK = torch.arange(len(modality_U), device=modality_U.device)[:, None] * self.config.top_k
        u_UK = u_UK + torch.arange(self.config.top_k, device=modality_U.device)
        experts, modalities = self.config.experts, len(self.pools)
        if self.config.router != "disjoint":
            return u_UK % experts
        # The pool of m is every M-th expert from m on, so its size follows from m.
        size_U1 = torch.div(experts - 1 - modality_U, modalities, rounding_mode="floor")[:, None] + 1
        return modality_U[:, None] + u_UK % size_U1 * modalities


def chance_to_be_chosen(mean_UE: Tensor, noisy_UE: Tensor, std_UE: Tensor, k: int) -> Tensor:
    """Probability of each expert to be among the k best if its noise were drawn again (Shazeer et al. 2017, app. A).

    -inf in both `mean_UE` and `noisy_UE` marks experts out of reach.
    """
    if k == mean_UE.shape[1]:
        return torch.ones_like(mean_UE)
    top = noisy_UE.topk(k + 1, dim=1).values
    # An expert is chosen if it beats the k-th best of the others: the (k+1)-th overall if it is among the top k now.
    rival_UE = torch.where(noisy_UE >= top[:, k - 1 : k], top[:, k:], top[:, k - 1 : k])
    finite_UE = mean_UE.isfinite() & rival_UE.isfinite()
    margin_UE = torch.where(finite_UE, mean_UE - rival_UE, torch.zeros_like(mean_UE)) / std_UE
    chosen_UE = 0.5 * (1 + torch.erf(margin_UE * 0.5**0.5))
    # Without a finite rival (a pool of exactly k experts) an expert of the pool is always chosen, any other never.
    return torch.where(finite_UE, chosen_UE, mean_UE.isfinite().to(chosen_UE))


def biased_routers(model: nn.Module) -> list[Router]:
    """Routers whose choice has a bias that follows the load, in the order of the layers; all of a model or none.

    Of a frozen model none: its bias stays as well.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    frozen = all(not parameter.requires_grad for router in routers for parameter in router.parameters())
    return [] if frozen else [router for router in routers if router.config.bias_rate]
