"""AUROC and average precision of scores that lie on many ranks: a merge of sorted scores, each range of them on a rank.

Counts are whole numbers, so the area is the same to the last bit as on one rank (`formulas.auroc`).

Shape legend: B records of a rank, U its distinct scores, falling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.metrics.spread.exact import Sums
from trainer.worker.collectives import own_rank, rows_everywhere
from trainer.worker.ordered_rows import in_order_over_ranks, rising_key


def areas(score_B: Tensor, truth_B: Tensor) -> dict[str, float]:
    """`auroc` and `auprc` of all ranks' records, of which both classes are there. Collective.

    Args:
        score_B: float64. truth_B: 0 or 1.
    """
    key_U, negative_U, positive_U = _counted(-rising_key(score_B.double()), 1 - truth_B.long(), truth_B.long())
    rows = torch.stack([negative_U, positive_U], dim=1).view(torch.int32)
    rows, key_U = in_order_over_ranks(rows, key_U)
    counts_U2 = rows.contiguous().view(torch.int64)
    _, negative_U, positive_U = _counted(key_U, counts_U2[:, 0], counts_U2[:, 1])
    own = torch.stack([negative_U.sum(), positive_U.sum()])
    ranks_R2, rank = rows_everywhere(own[None]), own_rank()
    before, (negatives, positives) = ranks_R2[:rank].sum(0), ranks_R2.sum(0)
    false_U, true_U = before[0] + negative_U.cumsum(0), before[1] + positive_U.cumsum(0)
    # Twice the area, as a whole number.
    area = (negative_U * (2 * true_U - positive_U)).sum()
    sums = Sums()
    sums.add("precision", positive_U.double() * (true_U.double() / (true_U + false_U)))
    twice = int(rows_everywhere(area[None, None]).sum())
    found = sums.everywhere()
    return {
        "auroc": float(torch.tensor(twice).double() / 2 / (negatives * positives)),
        "auprc": found["precision"] / float(positives),
    }


def _counted(key_B: Tensor, negative_B: Tensor, positive_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct keys, rising, with what is counted of each."""
    key_U, place_B = key_B.unique(return_inverse=True)
    zeros = torch.zeros(len(key_U), dtype=torch.int64)
    return key_U, zeros.index_add(0, place_B, negative_B), zeros.index_add(0, place_B, positive_B)
