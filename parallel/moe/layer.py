"""The mixture-of-experts layer: router -> dispatch -> experts -> combine.

Tokens of any mix of modalities come packed in one matrix; the shape never changes, and there is no residual and no norm
here. The layer knows a dispatcher, not a process group: with the local one it is an ordinary module for inference and
export.

What shares a routing decision is a choice (`granularity`): a token (default), all tokens of a time bin, or all of a
sample (as in the FuseMoE code, where a patient's whole stay takes one decision). A shared decision is made from the
mean of its tokens. With per-modality or disjoint routers a decision never spans modalities: a unit's tokens decide
modality by modality. With `selection: expert` it is the experts that choose, among the tokens of each sample.

Shapes: N tokens, D width, M modalities, E experts, K experts a decision, U decisions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel.config import MoEConfig
from parallel.moe.balance import RoutingStats, measure, tokens_per_decision
from parallel.moe.choice import Choice, choice_of_experts
from parallel.moe.dispatch import Dispatcher, LocalDispatcher
from parallel.moe.experts import Experts
from parallel.moe.initial import generator_for
from parallel.moe.kept import Kept
from parallel.moe.routers import Router, Routing
from parallel.moe.segments import Segments


def decision_units(
    config: MoEConfig, sample_N: Tensor, bin_N: Tensor, samples: int, bins: int
) -> tuple[Tensor | None, int]:
    """(unit_N, number of units) for `MoELayer.forward`: which tokens share one routing decision, or, where experts
    choose, which tokens they choose among.

    Args:
        config: granularity and selection are read.
        sample_N: int64, sample of each token, in [0, samples).
        bin_N: int64, time bin of each token, in [0, bins).
    """
    if config.selection == "expert":
        return sample_N, samples
    if config.granularity == "token":
        return None, 0
    if config.granularity == "bin":
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
        # Neighbouring ids on one rank: `dispatch` finds an expert's rank by division.
        local = config.experts // self.dispatcher.size
        ids = range(self.dispatcher.rank * local, (self.dispatcher.rank + 1) * local)
        key = (seed, layer_id)
        self.router = Router(dim, config, modalities, generator_for(*key, "router"))
        self.experts = Experts(dim, config.hidden or 4 * dim, ids, key, config.expert_bias)
        self.shared = (
            Experts(dim, config.shared_expert_hidden, range(1), (*key, "shared"), config.expert_bias)
            if config.shared_expert_hidden
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.observer: Callable[[Choice], None] | None = None  # sees who serves which token

    def forward(
        self,
        x_ND: Tensor,
        modality_N: Tensor,
        unit_N: Tensor | None = None,
        units: int = 0,
        kept: Kept | None = None,
    ) -> tuple[Tensor, RoutingStats]:
        """Serve every token by its top-k experts.

        Args:
            x_ND: tokens; N may be 0.
            modality_N: int64, modality of each token, in [0, M).
            unit_N: int64, decision unit of each token in [0, units), or None if every token decides for itself.
            units: number of units; some may have no token.
            kept: of a pass that is recomputed: its decisions, made the first time and taken over the second.

        Returns:
            Output (N, D) in the dtype of `x_ND`, and the routing statistics of these tokens.
        """
        x_UD, modality_U, shared = self._decisions(x_ND, modality_N, unit_N, units)
        kept = kept or Kept(hold=False)
        routing = self.router(x_UD, modality_U, kept)
        choice = self._choose(routing, unit_N, units, shared, kept)
        if self.observer is not None:
            self.observer(choice)
        unit_of_N = None if shared is None else shared.segment_N
        tokens_MU = tokens_per_decision(modality_N, unit_of_N, self.modalities, len(x_UD))
        stats = measure(routing, tokens_MU, choice)
        # The tokens themselves travel, not what was routed: those that share a decision are served one by one.
        y_ND, shared_ND = self.dispatcher(x_ND, choice, self.experts, self._beside(x_ND), kept)
        if shared_ND is not None:
            y_ND = y_ND + shared_ND
        return self.dropout(y_ND), stats

    def _choose(
        self, routing: Routing, unit_N: Tensor | None, units: int, shared: Segments | None, kept: Kept
    ) -> Choice:
        """Who serves which token: `unit_N` are the units of the caller, `shared` is which tokens share a decision."""
        experts, k = self.config.experts, self.config.top_k
        if self.config.selection == "expert":
            if unit_N is None:
                raise ValueError("moe.selection=expert chooses among the tokens of a sample: pass unit_N and units")
            return choice_of_experts(routing.logits_UE.softmax(1), unit_N, units, k, kept)
        experts_NK, weights_NK = routing.experts_UK, routing.weights_UK
        if shared is not None:
            experts_NK, weights_NK = experts_NK.index_select(0, shared.segment_N), shared.spread(weights_NK)
        return Choice(experts_NK, weights_NK, experts)

    def _beside(self, x_ND: Tensor) -> Callable[[], Tensor] | None:
        """What every token gets, wherever it is: the work to do while the tokens travel."""
        shared = self.shared
        if shared is None:
            return None
        return lambda: shared(x_ND)

    def _decisions(
        self, x_ND: Tensor, modality_N: Tensor, unit_N: Tensor | None, units: int
    ) -> tuple[Tensor, Tensor, Segments | None]:
        """What is routed: features (U, D), modality (U), and which tokens share a decision if any do."""
        if unit_N is None or self.config.selection == "expert":
            return x_ND, modality_N, None
        if self.config.router == "joint":
            modality_U = torch.zeros(units, dtype=torch.int64, device=x_ND.device)
        else:
            # Units split by modality; many of these are empty and decide for nobody.
            unit_N = torch.add(modality_N, unit_N, alpha=self.modalities)
            modality_U = torch.arange(self.modalities, device=x_ND.device).repeat(units)
            units *= self.modalities
        segments = Segments.of(unit_N, units)
        # In fp32, added up in the order of the tokens: the same decision when a block is computed again.
        return segments.mean(x_ND), modality_U, segments
