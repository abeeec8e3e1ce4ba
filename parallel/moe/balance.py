"""Routing statistics, and the losses that keep routing healthy.

A layer reports sums over its tokens, never means, so the statistics of ranks and micro-batches add up. `reduce_stats`
adds them over all ranks in one all-reduce for all layers; after it every rank computes the same losses from the same
global sums. The derivative of that all-reduce is the identity: each rank then holds the gradient of the global loss
with respect to its own tokens, and the sum over ranks is the gradient one process would have computed. The engine
*averages* gradients over ranks, so the caller multiplies every loss by the world size.

A layer's sums are one table, filled by one product (tokens of each modality behind each decision) · (what a decision
has to say about each expert): sums in one fixed order, without a scatter that adds and without a wait of the host. The
losses of all layers are computed at once.

Shapes: M modalities, E experts, U decisions, K chosen experts a decision, L layers, C columns of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.config import MoEConfig
from parallel.moe.choice import Choice
from parallel.moe.routers import Routing

EPS = 1e-10


@dataclass
class RoutingStats:
    """Sums over tokens, split by modality, as one fp32 table with the columns

        z (1) | prob (E) | gate (E) | load (E) | tokens (1) | count (E)

    of one layer (M, C), or of several (L, M, C). `count` is left out where it is the same as `load`.

    prob_ME: router probabilities (softmax over all experts in reach, before top-k).
    gate_ME: weights given to the chosen experts ("importance").
    load_ME: expected number of times an expert is chosen; the count if there is no noise to make it smooth, and then
        without gradient, as the next two.
    count_ME: times an expert was chosen. tokens_M: tokens.
    z_M: logsumexp(logits)².
    """

    table_MC: Tensor
    experts: int

    @property
    def z_M(self) -> Tensor:  # noqa: N802
        return self.table_MC[..., 0]

    @property
    def prob_ME(self) -> Tensor:  # noqa: N802
        return self._experts(1)

    @property
    def gate_ME(self) -> Tensor:  # noqa: N802
        return self._experts(1 + self.experts)

    @property
    def load_ME(self) -> Tensor:  # noqa: N802
        return self._experts(1 + 2 * self.experts)

    @property
    def tokens_M(self) -> Tensor:  # noqa: N802
        return self.table_MC[..., 1 + 3 * self.experts].detach()

    @property
    def count_ME(self) -> Tensor:  # noqa: N802
        smooth = self.table_MC.shape[-1] > 2 + 3 * self.experts
        return self._experts(2 + 3 * self.experts if smooth else 1 + 2 * self.experts).detach()

    def _experts(self, start: int) -> Tensor:
        return self.table_MC[..., start : start + self.experts]


class _Table(torch.autograd.Function):
    """(logits (U, E), weights, tokens_MU) -> the table without `count`; `load` is the count, and has no gradient.

    `experts_UK` says where the weights belong in (U, E). If `by_column`, weights are (U, E) themselves, and those count
    whose place has an expert.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_UE: Tensor, weights_UK: Tensor, tokens_MU: Tensor, experts_UK: Tensor, by_column: bool
    ) -> Tensor:
        decisions, experts = logits_UE.shape
        log_prob_UE = logits_UE.log_softmax(1)
        row_UC = logits_UE.new_zeros(decisions, 3 * experts + 2)
        row_UC[:, -1].fill_(1)
        torch.exp(log_prob_UE, out=row_UC[:, 1 : 1 + experts])
        # log Σ exp = logit - log(probability), of the likeliest expert, whose numbers are the closest.
        z_U = logits_UE.amax(1).sub_(log_prob_UE.amax(1))
        torch.square(z_U, out=row_UC[:, 0])
        gate_UE, count_UE = row_UC[:, 1 + experts : -1].split(experts, 1)
        if by_column:
            torch.lt(experts_UK, experts, out=count_UE)
            torch.mul(weights_UK, count_UE, out=gate_UE)
        else:
            gate_UE.scatter_(1, experts_UK, weights_UK)
            count_UE.scatter_(1, experts_UK, 1.0)
        ctx.save_for_backward(logits_UE, tokens_MU, z_U, experts_UK)
        ctx.by_column = by_column
        return tokens_MU @ row_UC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        logits_UE, tokens_MU, z_U, experts_UK = ctx.saved_tensors
        experts = logits_UE.shape[1]
        g_UC = tokens_MU.t() @ grads[0][:, : 1 + 2 * experts]
        g_prob_UE, g_gate_UE = g_UC[:, 1:].split(experts, 1)
        prob_UE = logits_UE.softmax(1)
        g_logits_UE = torch._softmax_backward_data(g_prob_UE, prob_UE, 1, logits_UE.dtype)
        g_logits_UE.addcmul_(prob_UE, (z_U * g_UC[:, 0])[:, None], value=2)
        g_weights_UK = g_gate_UE * (experts_UK < experts) if ctx.by_column else g_gate_UE.gather(1, experts_UK)
        return g_logits_UE, g_weights_UK, None, None, None


def measure(routing: Routing, tokens_MU: Tensor, choice: Choice) -> RoutingStats:
    """Statistics of one layer.

    Args:
        routing: the decisions.
        tokens_MU: fp32, how many tokens of each modality follow each decision.
        choice: experts and weights of every token; read where experts choose, for then the decisions do not say it.
    """
    experts = routing.logits_UE.shape[1]
    # Where experts choose, every token is a decision, and what was chosen is not in the routing.
    own = (choice.weight_NK, choice.expert_NK) if choice.by_column else (routing.weights_UK, routing.experts_UK)
    table_MC: Tensor = _Table.apply(routing.logits_UE, own[0], tokens_MU, own[1], choice.by_column)
    if routing.load_UE is not None:
        before_MC, count_ME, tokens_M1 = table_MC.split([1 + 2 * experts, experts, 1], 1)
        table_MC = torch.cat([before_MC, tokens_MU @ routing.load_UE, tokens_M1, count_ME], 1)
    return RoutingStats(table_MC, experts)


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

    One all-reduce whatever the number of layers, which are of one shape. On a GPU it is queued behind the forward pass,
    and the host goes on. Every rank must call it, also one without tokens.
    """
    if not stats or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return stats
    total_LMC = summed_over_ranks(torch.stack([layer.table_MC for layer in stats]), group)
    return [RoutingStats(table_MC, layer.experts) for table_MC, layer in zip(total_LMC.unbind(), stats, strict=True)]


def squared_variation(x_E: Tensor) -> Tensor:
    """CV² = variance / mean² over experts (the last dimension); 0 if uniform, if all are zero, or if there is one."""
    variance, mean = torch.var_mean(x_E, -1, correction=0)
    return variance / (mean.square() + EPS)


def balance_loss(stats: RoutingStats, config: MoEConfig) -> Tensor:
    """CV²(importance) + CV²(load) over the experts that compete with each other (Shazeer et al. 2017).

    With disjoint pools the experts of different modalities do not compete: mean over the pools that saw tokens. One
    value for each layer of `stats`.
    """
    experts = stats.experts
    both_M2E = stats.table_MC[..., 1 + experts : 1 + 3 * experts].unflatten(-1, (2, experts))
    if config.router != "disjoint":
        return squared_variation(both_M2E.sum(-3)).sum(-1)
    # As `expert_pools` deals them: expert e belongs to pool e mod M.
    modalities, device = both_M2E.shape[-3], both_M2E.device
    pool_1E = torch.arange(experts, device=device).remainder(modalities)
    inside_M1E = (pool_1E == torch.arange(modalities, device=device)[:, None, None]).to(both_M2E)
    size_M1 = inside_M1E.sum(-1)
    both_M2E = both_M2E * inside_M1E
    mean_M2 = both_M2E.sum(-1) / size_M1
    variance_M2 = ((both_M2E - mean_M2[..., None]) * inside_M1E).square().sum(-1) / size_M1
    values_M = (variance_M2 / (mean_M2.square() + EPS)).sum(-1)
    # A pool without tokens has variation 0, which would pass for perfect balance in the mean.
    seen_M = (stats.tokens_M > 0).to(values_M)
    return (values_M * seen_M).sum(-1) / seen_M.sum(-1).clamp_min(1)


def entropy(p: Tensor) -> Tensor:
    """−Σ p log p over the last dimension; 0 · log 0 = 0."""
    return -(p * p.clamp_min(EPS).log()).sum(-1)


def entropy_loss(stats: RoutingStats) -> Tensor:
    """(1/M) Σ_m H(p_m) − H((1/M) Σ_m p_m), p_m the mean routing distribution of modality m (FuseMoE, equation 3).

    Minus the Jensen-Shannon divergence of the modalities: 0 if all route alike, −log M if no two share an expert.
    Modalities without tokens do not count. One value for each layer of `stats`.
    """
    seen_M = (stats.tokens_M > 0).to(stats.table_MC)
    number = seen_M.sum(-1).clamp_min(1)
    # Where nothing was seen p is 0, and so is what it adds to either entropy.
    p_ME = stats.prob_ME / stats.tokens_M.clamp_min(1)[..., None]
    return entropy(p_ME).sum(-1) / number - entropy(p_ME.sum(-2) / number[..., None])


def z_loss(stats: RoutingStats) -> Tensor:
    """Mean over tokens of logsumexp(logits)² (Zoph et al. 2022): keeps logits small. One value a layer."""
    return stats.z_M.sum(-1) / stats.tokens_M.sum(-1).clamp_min(1)


def balance_losses(stats: list[RoutingStats], config: MoEConfig) -> dict[str, Tensor]:
    """The losses "balance", "entropy" and "z", each the mean over layers, without their coefficients; zero without
    tokens.

    `stats` must be global (`reduce_stats`) for the result to be the loss of the whole batch.
    """
    if not stats:  # a model without sparse layers
        return {name: torch.zeros(()) for name in ("balance", "entropy", "z")}
    layers = RoutingStats(torch.stack([layer.table_MC for layer in stats]), stats[0].experts)
    return {
        "balance": balance_loss(layers, config).mean(),
        "entropy": entropy_loss(layers).mean(),
        "z": z_loss(layers).mean(),
    }


def tokens_per_decision(modality_N: Tensor, unit_N: Tensor | None, modalities: int, decisions: int) -> Tensor:
    """(M, U) fp32: number of tokens of each modality that follow each decision (`unit_N` None: token n is decision
    n)."""
    if unit_N is None:
        numbers_M1 = torch.arange(modalities, device=modality_N.device)[:, None]
        tokens_MU = torch.empty(modalities, decisions, device=modality_N.device)
        return torch.eq(modality_N, numbers_M1, out=tokens_MU)
    # Ones in fp32 add up exactly whatever their order, up to 2²⁴; a histogram would let the host wait for a GPU.
    ones_N = torch.ones(len(unit_N), device=unit_N.device)
    place_N = torch.add(unit_N, modality_N, alpha=decisions)
    return ones_N.new_zeros(modalities * decisions).index_add_(0, place_N, ones_N).view(modalities, decisions)
