"""Routing statistics, and the losses that keep routing healthy.

A layer reports sums over its tokens, never means, so the statistics of ranks and micro-batches add up. `reduce_stats`
adds them over all ranks in one all-reduce for all layers; after it every rank computes the same losses from the same
global sums. The derivative of that all-reduce is the identity: each rank then holds the gradient of the global loss
with respect to its own tokens, and the sum over ranks is the gradient one process would have computed. The engine
*averages* gradients over ranks, so the caller multiplies every loss by the world size.

Shapes: M modalities, E experts, U decisions, K chosen experts a decision.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from parallel.config import MoEConfig
from parallel.moe.choice import Choice
from parallel.moe.routers import Routing, expert_pools, slice_of

EPS = 1e-10


@dataclass
class RoutingStats:
    """Sums over tokens of one layer, fp32, split by modality.

    prob_ME: router probabilities (softmax over all experts in reach, before top-k).
    gate_ME: weights given to the chosen experts ("importance").
    load_ME: expected number of times an expert is chosen; equals count_ME when there is no noise to make it smooth.
    count_ME: times an expert was chosen; no gradient.
    z_M: logsumexp(logits)².
    tokens_M: tokens; no gradient.
    """

    prob_ME: Tensor
    gate_ME: Tensor
    load_ME: Tensor
    count_ME: Tensor
    z_M: Tensor
    tokens_M: Tensor


def measure(routing: Routing, tokens_MU: Tensor, choice: Choice, modality_N: Tensor) -> RoutingStats:
    """Statistics of one layer.

    Args:
        routing: the decisions.
        tokens_MU: fp32, how many tokens of each modality follow each decision.
        choice: experts and weights of every token.
        modality_N: modality of every token.
    """
    modalities, experts = len(tokens_MU), routing.logits_UE.shape[1]
    # One number for (modality, expert), so that one pass fills the table.
    slot_R = modality_N.index_select(0, choice.token_R) * experts + choice.expert_R
    empty = torch.zeros(modalities * experts, device=choice.weight_R.device)
    gate_ME = empty.index_add(0, slot_R, choice.weight_R).view(modalities, experts)
    count_ME = torch.bincount(slot_R, minlength=modalities * experts).float().view(modalities, experts)
    # A decision counts as often as tokens follow it.
    prob_ME = tokens_MU @ routing.logits_UE.softmax(1)
    load_ME = count_ME if routing.load_UE is None else tokens_MU @ routing.load_UE
    z_M = tokens_MU @ routing.logits_UE.logsumexp(1).square()
    return RoutingStats(prob_ME, gate_ME, load_ME, count_ME, z_M, tokens_MU.sum(1))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        # all_reduce works in place, and the input belongs to autograd.
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


def summed_over_ranks(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of `x` over all ranks of `group`, for a loss that every rank computes from it.

    Backwards each rank's own part gets the gradient, unsummed. Every rank must call it, with the same shape.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return x
    total: Tensor = _SumOverRanks.apply(x, group)
    return total


def reduce_stats(stats: list[RoutingStats], group: dist.ProcessGroup | None = None) -> list[RoutingStats]:
    """The same statistics summed over all ranks of `group` (None: the default group, or this process if there is none).

    One all-reduce whatever the number of layers. Every rank must call it, also one without tokens.
    """
    if not stats or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return stats
    # All tables of all layers end to end, and cut apart again below.
    tensors = [getattr(layer, field.name) for layer in stats for field in fields(layer)]
    total = summed_over_ranks(torch.cat([tensor.reshape(-1) for tensor in tensors]), group)
    parts = [
        part.view_as(tensor) for part, tensor in zip(total.split([t.numel() for t in tensors]), tensors, strict=True)
    ]
    width = len(fields(RoutingStats))
    reduced = [RoutingStats(*parts[i : i + width]) for i in range(0, len(parts), width)]
    for layer in reduced:
        # Numbers of things have no gradient; through the joint all-reduce they would seem to.
        layer.count_ME, layer.tokens_M = layer.count_ME.detach(), layer.tokens_M.detach()
    return reduced


def squared_variation(x_E: Tensor) -> Tensor:
    """CV² = variance / mean² over experts (the last dimension); 0 if uniform, if all are zero, or if there is one."""
    return x_E.var(-1, correction=0) / (x_E.mean(-1).square() + EPS)


def balance_loss(stats: RoutingStats, config: MoEConfig) -> Tensor:
    """CV²(importance) + CV²(load) over the experts that compete with each other (Shazeer et al. 2017).

    With disjoint pools the experts of different modalities do not compete: mean over the pools that saw tokens.
    """
    modalities, experts = stats.gate_ME.shape
    if config.router != "disjoint":
        return squared_variation(stats.gate_ME.sum(0)) + squared_variation(stats.load_ME.sum(0))
    pools = expert_pools(experts, modalities, config.top_k)
    values_M = torch.stack(
        [
            squared_variation(stats.gate_ME[m, slice_of(pool)]) + squared_variation(stats.load_ME[m, slice_of(pool)])
            for m, pool in enumerate(pools)
        ]
    )
    # A pool without tokens has variation 0, which would pass for perfect balance in the mean.
    seen_M = (stats.tokens_M > 0).to(values_M)
    return (values_M * seen_M).sum() / seen_M.sum().clamp_min(1)


def entropy(p: Tensor) -> Tensor:
    """−Σ p log p over the last dimension; 0 · log 0 = 0."""
    return -(p * p.clamp_min(EPS).log()).sum(-1)


def entropy_loss(stats: RoutingStats) -> Tensor:
    """(1/M) Σ_m H(p_m) − H((1/M) Σ_m p_m), p_m the mean routing distribution of modality m (FuseMoE, equation 3).

    Minus the Jensen-Shannon divergence of the modalities: 0 if all route alike, −log M if no two share an expert.
    Modalities without tokens do not count.
    """
    seen_M = (stats.tokens_M > 0).to(stats.prob_ME)
    number = seen_M.sum().clamp_min(1)
    # Where nothing was seen p is 0, and so is what it adds to either entropy.
    p_ME = stats.prob_ME / stats.tokens_M.clamp_min(1)[:, None]
    return (entropy(p_ME) * seen_M).sum() / number - entropy(p_ME.sum(0) / number)


def z_loss(stats: RoutingStats) -> Tensor:
    """Mean over tokens of logsumexp(logits)² (Zoph et al. 2022): keeps logits small."""
    return stats.z_M.sum() / stats.tokens_M.sum().clamp_min(1)


def balance_losses(stats: list[RoutingStats], config: MoEConfig) -> dict[str, Tensor]:
    """The losses "balance", "entropy" and "z", each the mean over layers, without their coefficients; zero without
    tokens.

    `stats` must be global (`reduce_stats`) for the result to be the loss of the whole batch.
    """
    if not stats:  # a model without sparse layers
        return {name: torch.zeros(()) for name in ("balance", "entropy", "z")}
    return {
        "balance": torch.stack([balance_loss(layer, config) for layer in stats]).mean(),
        "entropy": torch.stack([entropy_loss(layer) for layer in stats]).mean(),
        "z": torch.stack([z_loss(layer) for layer in stats]).mean(),
    }


def tokens_per_decision(modality_N: Tensor, unit_N: Tensor | None, modalities: int, decisions: int) -> Tensor:
    """(M, U) fp32: number of tokens of each modality that follow each decision (`unit_N` None: token n is decision
    n)."""
    if unit_N is None:
        return F.one_hot(modality_N, modalities).to(torch.float32).t()
    return (
        torch.bincount(modality_N * decisions + unit_N, minlength=modalities * decisions)
        .view(modalities, decisions)
        .float()
    )
