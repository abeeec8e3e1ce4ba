"""Which experts serve which tokens: an (N, K) table of expert ids with a table of weights beside it.

Usually every place is taken. Where experts choose their tokens, or where only those of a token's experts are meant that
live on one rank, some places are empty: they hold the number of experts, which is no expert's id. What serves a choice
goes along its table, so every sum over a token's experts has one order.

Shapes: N tokens, K places a token, E experts, B samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from parallel.moe.kept import Kept


class Choice(NamedTuple):
    """expert_NK: int64 in [0, E), E or more for none. weight_NK: fp32, of no meaning where there is none.

    experts: E. rows: None if no place is empty; else a number that the taken places do not exceed.
    by_column: whether place k of a token can only hold expert k (and K = E).
    """

    expert_NK: Tensor
    weight_NK: Tensor
    experts: int
    rows: int | None = None
    by_column: bool = False

    def gates(self) -> Tensor:
        """(N, E) fp32: the weight of every expert for every token, 0 for those that do not serve it."""
        return self._spread(self.weight_NK)

    def served(self) -> Tensor:
        """(N, E) fp32: 1 where an expert serves a token, else 0."""
        return self._spread(torch.ones_like(self.weight_NK))

    def _spread(self, value_NK: Tensor) -> Tensor:
        # Empty places fall into a column of their own. A token has an expert at most once: nothing is added up.
        wide_NX = value_NK.new_zeros(len(value_NK), self.experts + (self.rows is not None))
        return wide_NX.scatter(1, self.expert_NK, value_NK)[:, : self.experts]


def choice_of_experts(prob_NE: Tensor, sample_N: Tensor, samples: int, k: int, kept: Kept) -> Choice:
    """Every expert takes its best tokens of each sample (Zhou et al. 2022, within a sample instead of a batch).

    Of a sample with n tokens each expert takes ceil(K n / E), so all experts work equally much and a token is served by
    K experts on average; by none, perhaps. A choice within the batch would let a sample's result depend on its
    neighbours; within a sample nothing leaks. An expert takes at least one token of a sample, so with fewer than E / K
    tokens a sample this costs more than top-k.

    Args:
        prob_NE: fp32, probability of each expert for each token; also the weights.
        sample_N: int64 in [0, samples), in any order.
    """
    experts = prob_NE.shape[1]
    expert_NE = kept.ids_once("takers", lambda: experts_that_chose(prob_NE.detach(), sample_N, k), experts)
    return Choice(expert_NE, prob_NE, experts, most_rows(len(prob_NE), experts, samples, k), by_column=True)


def most_rows(tokens: int, experts: int, samples: int, k: int) -> int:
    """What E · Σ ceil(K n / E) over samples of n tokens cannot exceed, known without looking at the samples."""
    return min(k * tokens + (experts - 1) * min(samples, tokens), tokens * experts)


def experts_that_chose(prob_NE: Tensor, sample_N: Tensor, k: int) -> Tensor:
    """int64 (N, E): e where expert e takes the token, E where it does not."""
    tokens, experts = prob_NE.shape
    # Two stable sorts: by score, then by sample, leave each sample's tokens together with the best one first.
    by_score_NE = prob_NE.argsort(dim=0, descending=True, stable=True)
    sorted_NE, by_sample_NE = sample_N[by_score_NE].sort(dim=0, stable=True)
    order_NE = by_score_NE.gather(0, by_sample_NE)  # per expert: by sample, best token first
    # Samples come in one order for every expert, so the first column tells where each begins and ends.
    sorted_N = sorted_NE[:, 0].contiguous()
    first_N = torch.searchsorted(sorted_N, sorted_N)
    size_N = torch.searchsorted(sorted_N, sorted_N, right=True) - first_N
    place_N = torch.arange(tokens, device=sample_N.device) - first_N
    # Fewer whole numbers than ceil(K n / E) are those below K n / E.
    taken_N = place_N * experts < size_N * k
    # Back from the order of each expert to that of the tokens.
    taker_NE = torch.where(taken_N[:, None], torch.arange(experts, device=sample_N.device), experts)
    return torch.empty_like(order_NE).scatter_(0, order_NE, taker_NE)
