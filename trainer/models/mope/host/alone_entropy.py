"""Entropy loss for streams that are alone: a null context must not leave their routing undecided.

A modality without company has the same learned context in every record, so only its own pooled state can tell records
apart, and the importance loss leaves it out. What is asked of its routing is what FuseMoE asks of modalities (equation
3): each decision for few experts, all decisions together for many. The loss is minus the mutual information of record
and expert: 0 where all records route alike, -log K at best.

Shapes: L sites, Q pairs (sample, modality), K experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel import summed_over_ranks
from parallel.moe.balance import entropy


def alone_entropy(weights: list[Tensor], counted: list[Tensor]) -> Tensor:
    """Mean over sites of mean H(r) - H(mean r); collective, the same value on every rank; 0 where nobody is alone.

    Args:
        weights: per site (Q, K), without noise. counted: per site (Q,), 1 for pairs that are alone.
    """
    rows = []
    for weight_QK, count_Q in zip(weights, counted, strict=True):
        summed_K = (weight_QK * count_Q[:, None]).sum(0)
        rows.append(torch.cat([summed_K, (entropy(weight_QK) * count_Q).sum()[None], count_Q.sum()[None]]))
    shared = summed_over_ranks(torch.stack(rows))
    number_L = shared[:, -1].detach().clamp_min(1)
    each_L = shared[:, -2] / number_L
    together_L = entropy(shared[:, :-2] / number_L[:, None])
    return (each_L - together_L).mean()
