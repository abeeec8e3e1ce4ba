"""The textbook formulas of the metrics, in double precision; counts are whole numbers, so nothing in them is rounded.

Torchmetrics has all of them and is what the tests compare with. It is not used at work: its import brings
scipy.signal, transformers and matplotlib along and takes longer than torch's own, at the first evaluation of every
start, while all ranks wait for it.

Shape legend: B records, C classes, U distinct scores, X values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def counts_by_score(score_B: Tensor, truth_B: Tensor) -> tuple[Tensor, Tensor]:
    """(false_U, true_U): negatives and positives that score at least as much, at each distinct score, falling."""
    score_B, order_B = score_B.sort(descending=True)
    # Records of one score come together: a threshold lies between different scores only.
    last_U = torch.cat([score_B.diff().nonzero()[:, 0], torch.tensor([len(score_B) - 1])])
    true_U = truth_B[order_B].long().cumsum(0)[last_U]
    return last_U + 1 - true_U, true_U


def auroc(false_U: Tensor, true_U: Tensor) -> Tensor:
    """Chance that a positive scores above a negative; equal scores count half. Both classes must be there."""
    # Twice the area, as a whole number.
    area = (_gained(false_U) * (2 * true_U - _gained(true_U))).sum()
    return area.double() / 2 / (false_U[-1] * true_U[-1])


def average_precision(false_U: Tensor, true_U: Tensor) -> Tensor:
    """Precision at each threshold, weighted by the recall gained there. A positive must be there."""
    precision_U = true_U.double() / (true_U + false_U)
    return (_gained(true_U) * precision_U).sum() / true_U[-1]


def f1(found: Tensor, said: Tensor, there: Tensor) -> Tensor:
    """Harmonic mean of precision and recall of each class; NaN for one that was neither said nor there."""
    return 2 * found.double() / (said + there)


def macro_f1(chosen_B: Tensor, truth_B: Tensor, classes: int) -> Tensor:
    """Mean over the classes that were said or there."""
    return macro_f1_of(confusion(chosen_B, truth_B, classes))


def macro_f1_of(confusion_CC: Tensor) -> Tensor:
    """`macro_f1`, from counts."""
    return f1(confusion_CC.diagonal(), confusion_CC.sum(0), confusion_CC.sum(1)).nanmean()


def confusion(chosen_B: Tensor, truth_B: Tensor, classes: int) -> Tensor:
    """(C, C) records by true class (row) and chosen one (column)."""
    return torch.bincount(truth_B * classes + chosen_B, minlength=classes**2).reshape(classes, classes)


def macro_auroc(probability_BC: Tensor, truth_B: Tensor) -> Tensor:
    """Mean over classes of one against the rest. Every class must be there."""
    columns = zip(probability_BC.T, functional.one_hot(truth_B, probability_BC.shape[1]).T, strict=True)
    return torch.stack([auroc(*counts_by_score(score_B, is_B)) for score_B, is_B in columns]).mean()


def r2(value_X: Tensor, target_X: Tensor) -> Tensor:
    """Share of the targets' variance that is explained. They must differ."""
    return 1 - (target_X - value_X).square().sum() / (target_X - target_X.mean()).square().sum()


def _gained(count_U: Tensor) -> Tensor:
    return count_U.diff(prepend=torch.zeros(1, dtype=count_U.dtype))
