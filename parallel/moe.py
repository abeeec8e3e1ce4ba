"""The mixture-of-experts layer: router -> dispatch -> experts -> combine.

Tokens of any mix of modalities come packed in one matrix; the shape never changes, and there is no residual and no norm
here. The layer knows a dispatcher, not a process group: with the local one it is an ordinary module for inference and
export.

What shares a routing decision is a choice (`granularity`): a token (default), all tokens of a time bin, or all of a
sample (as in the FuseMoE code, where a patient's whole stay takes one decision). A shared decision is made from the
mean of its tokens. With per-modality or disjoint routers a decision never spans modalities: a unit's tokens decide
modality by modality.

Shapes: N tokens, D width, M modalities, E experts, K experts a decision, U decisions, R = N*K dispatched rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.balance import RoutingStats, measure, tokens_per_decision
from parallel.config import Granularity, MoEConfig
from parallel.dispatch import Dispatcher, LocalDispatcher
from parallel.experts import Experts, generator_for
from parallel.routers import Router
from parallel.rows import combine_rows, expand_rows, inverse_permutation


def decision_units(
    granularity: Granularity, sample_N: Tensor, bin_N: Tensor, samples: int, bins: int
) -> tuple[Tensor | None, int]:
    """(unit_N, number of units) for `MoELayer.forward`: which tokens share one routing decision.

    Args:
        granularity: token, bin or sample.
        sample_N: int64, sample of each token, in [0, samples).
        bin_N: int64, time bin of each token, in [0, bins).
    """
    if granularity == "token":
        return None, 0
    if granularity == "bin":
        return sample_N * bins + bin_N, samples * bins
    return sample_N, samples


class MoELayer(nn.Module):
    """Sparse mixture of experts over packed tokens.

    Args:
        dim: token width D.
        config: experts, top_k, gate, router, ...
        modalities: number of modalities M.
        layer_id, seed: initial weights are a function of (seed, layer_id, global expert id) and nothing else.
        dispatcher: how rows reach experts on other ranks; None keeps all experts here.

    Raises:
        ValueError: if top_k exceeds the experts in reach, or the experts do not divide by the dispatcher's ranks.
    """

    def __init__(
        self,
        dim: int,
        config: MoEConfig,
        modalities: int = 1,
        layer_id: int = 0,
        seed: int = 0,
        dispatcher: Dispatcher | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.config, self.modalities = dim, config, modalities
        self.dispatcher: Dispatcher = dispatcher or LocalDispatcher()
        if config.experts % self.dispatcher.size:
            raise ValueError(
                f"moe.experts={config.experts} cannot be spread evenly over {self.dispatcher.size} "
                "expert-parallel ranks: choose a multiple."
            )
        local = config.experts // self.dispatcher.size
        ids = range(self.dispatcher.rank * local, (self.dispatcher.rank + 1) * local)
        key = (seed, layer_id)
        self.router = Router(dim, config, modalities, generator_for(*key, "router"))
        self.experts = Experts(dim, config.hidden or 4 * dim, ids, key)
        self.shared = (
            Experts(dim, config.shared_expert_hidden, range(1), (*key, "shared"))
            if config.shared_expert_hidden
            else None
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_ND: Tensor, modality_N: Tensor, unit_N: Tensor | None = None, units: int = 0
    ) -> tuple[Tensor, RoutingStats]:
        """Serve every token by its top-k experts.

        Args:
            x_ND: tokens; N may be 0.
            modality_N: int64, modality of each token, in [0, M).
            unit_N: int64, decision unit of each token in [0, units), or None if every token decides for itself.
            units: number of units; some may have no token.

        Returns:
            Output (N, D) in the dtype of `x_ND`, and the routing statistics of these tokens.
        """
        x_UD, modality_U, unit_N = self._decisions(x_ND, modality_N, unit_N, units)
        routing = self.router(x_UD, modality_U)
        experts_NK, weights_NK = routing.experts_UK, routing.weights_UK
        if unit_N is not None:
            experts_NK, weights_NK = experts_NK[unit_N], weights_NK.index_select(0, unit_N)
        tokens_MU = tokens_per_decision(modality_N, unit_N, self.modalities, len(x_UD))
        stats = measure(routing, tokens_MU, experts_NK, weights_NK, modality_N)
        y_ND = self._serve(x_ND, experts_NK, weights_NK)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND, torch.full((1,), len(x_ND), device=x_ND.device))
        return self.dropout(y_ND), stats

    def _decisions(
        self, x_ND: Tensor, modality_N: Tensor, unit_N: Tensor | None, units: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is routed: features (U, D), modality (U) and the decision of each token."""
        if unit_N is None:
            return x_ND, modality_N, None
        modality_U = torch.zeros(units, dtype=torch.int64, device=x_ND.device)
        if self.config.router != "joint":
            unit_N = unit_N * self.modalities + modality_N
            modality_U = torch.arange(self.modalities, device=x_ND.device).repeat(units)
            units *= self.modalities
        sum_UD = torch.zeros(units, self.dim, device=x_ND.device).index_add(0, unit_N, x_ND.float())
        count_U = torch.bincount(unit_N, minlength=units).clamp_min(1)
        return sum_UD / count_U[:, None], modality_U, unit_N

    def _serve(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Sort the N*K (token, expert) rows by expert, run the experts, and add each token's rows up by weight."""
        k = experts_NK.shape[1]
        expert_R = experts_NK.reshape(-1)
        order_R = expert_R.argsort(stable=True)
        inverse_R = inverse_permutation(order_R)
        counts_E = torch.bincount(expert_R, minlength=self.config.experts)
        rows_RD = expand_rows(x_ND, order_R, inverse_R, k)
        y_RD = self.dispatcher(rows_RD, counts_E, self.experts)
        return combine_rows(y_RD, weights_NK, order_R, inverse_R)
