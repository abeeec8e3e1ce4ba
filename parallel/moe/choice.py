"""Which experts serve which tokens, as a list of (token, expert, weight) in the order of the tokens.

Usually a token has K experts. Where experts choose their tokens, or where only those of a token's experts are meant
that live on one rank, their number differs from token to token; the list serves all cases.

Shapes: N tokens, K experts a token, R entries, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """`token_R` int64 ascending in [0, tokens), `expert_R` int64, `weight_R` fp32; `fixed` is K if every token has K
    entries, None if their number differs."""

    tokens: int
    token_R: Tensor
    expert_R: Tensor
    weight_R: Tensor
    fixed: int | None = None


def top_k_choice(experts_NK: Tensor, weights_NK: Tensor) -> Choice:
    """The choice in which every token has K experts."""
    tokens, k = experts_NK.shape
    token_R = torch.arange(tokens, device=experts_NK.device).repeat_interleave(k)
    return Choice(tokens, token_R, experts_NK.reshape(-1), weights_NK.reshape(-1), k)


def choice_of_experts(prob_NE: Tensor, sample_N: Tensor, samples: int, k: int) -> Choice:
    """Every expert takes its best tokens of each sample (Zhou et al. 2022, within a sample instead of a batch).

    Of a sample with n tokens each expert takes ceil(K n / E), so all experts work equally much and a token is served by
    K experts on average; by none, perhaps. A choice within the batch would let a sample's result depend on its
    neighbours; within a sample nothing leaks. An expert takes at least one token of a sample, so with fewer than E / K
    tokens a sample this costs more than top-k.

    Args:
        prob_NE: fp32, probability of each expert for each token; also the weights.
        sample_N: int64 in [0, samples), in any order.
    """
    tokens, experts = prob_NE.shape
    size_B = torch.bincount(sample_N, minlength=samples)
    take_B = torch.div(k * size_B + experts - 1, experts, rounding_mode="floor").clamp_max(size_B)
    # Two stable sorts: by score, then by sample, leave each sample's tokens together with the best one first.
    by_score_NE = prob_NE.detach().argsort(dim=0, descending=True, stable=True)
    by_sample_NE = sample_N[by_score_NE].argsort(dim=0, stable=True)
    order_NE = by_score_NE.gather(0, by_sample_NE)  # per expert: by sample, best token first
    first_B = size_B.cumsum(0) - size_B
    sorted_sample_N = sample_N.sort().values
    place_N = torch.arange(tokens, device=sample_N.device) - first_B[sorted_sample_N]
    taken_N = place_N < take_B[sorted_sample_N]
    # Back from the order of each expert to that of the tokens, as `Choice` wants its entries.
    chosen_NE = torch.zeros_like(prob_NE, dtype=torch.bool).scatter(0, order_NE, taken_N[:, None].expand(-1, experts))
    # How many entries there are depends on the data: the host waits for the device.
    token_R, expert_R = chosen_NE.nonzero(as_tuple=True)
    return Choice(tokens, token_R, expert_R, prob_NE[token_R, expert_R])
