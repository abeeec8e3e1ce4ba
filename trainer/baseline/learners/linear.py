"""Regularised linear models on normal scores: logistic regression of yes and no or of classes, ridge regression.

A column becomes the normal score of its rank among the training values, which takes skew and outliers away; what is not
there becomes the median, with one more column for each pattern in which values are not there.

Shapes: B rows, X columns, Q knots, P patterns, F columns of the model, C scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.baseline.learners.problem import Array, Learned, Problem

KNOTS = 129
# Penalty of the squared weights, for each row of the training part.
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class NormalScores:
    """What is done to a column before the linear model sees it.

    Attributes:
        column_F: int64, columns that differ between training rows. knot_QF: their quantiles there.
        pattern_P: int64, one column of each pattern of missing values.
    """

    column_F: NDArray[np.int64]
    knot_QF: Array
    pattern_P: NDArray[np.int64]

    @staticmethod
    def fit(x_BX: np.ndarray) -> NormalScores:
        """From training rows."""
        missing_BX = np.isnan(x_BX)
        some_X = ~missing_BX.all(axis=0)
        low_X, high_X = (function(x_BX[:, some_X], axis=0) for function in (np.nanmin, np.nanmax))
        column_F = np.flatnonzero(some_X)[low_X < high_X]
        steps_Q = np.linspace(0, 1, KNOTS)
        knots = [np.quantile(own[~np.isnan(own)], steps_Q) for own in x_BX[:, column_F].T]
        knot_QF = np.stack(knots, axis=1) if knots else np.empty((KNOTS, 0))
        mixed_X = np.flatnonzero(missing_BX.any(axis=0) & some_X)
        _, first = np.unique(np.packbits(missing_BX[:, mixed_X], axis=0), axis=1, return_index=True)
        return NormalScores(column_F, knot_QF.astype(np.float64), mixed_X[np.sort(first)])

    def __call__(self, x_BX: np.ndarray) -> Array:
        """(B, F + P)."""
        share_Q = np.linspace(0, 1, KNOTS)
        edge = 0.5 / KNOTS
        found_BF = np.empty((len(x_BX), len(self.column_F) + len(self.pattern_P)))
        for number, column in enumerate(self.column_F.tolist()):
            own_B, knot_Q = x_BX[:, column].astype(np.float64), self.knot_QF[:, number]
            # Between the first and the last of equal knots, so that equal values stand in the middle of their rank.
            rank_B = np.interp(own_B, knot_Q, share_Q) - np.interp(-own_B, -knot_Q[::-1], -share_Q[::-1])
            share_B = torch.from_numpy(np.clip(rank_B / 2, edge, 1 - edge))
            score_B = torch.special.ndtri(share_B).numpy()
            found_BF[:, number] = np.where(np.isnan(own_B), 0.0, score_B)
        found_BF[:, len(self.column_F) :] = np.isnan(x_BX[:, self.pattern_P])
        return found_BF


@dataclass(frozen=True)
class Linear:
    """Scores that are sums of weighted normal scores."""

    before: NormalScores
    weight_FC: Array
    start_C: Array

    def scores(self, x_BX: np.ndarray) -> Array:
        """(B, C)."""
        score_BC: Array = self.before(x_BX) @ self.weight_FC + self.start_C
        return score_BC

    def arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        return {**vars(self.before), "weight_FC": self.weight_FC, "start_C": self.start_C}

    @staticmethod
    def of(arrays: dict[str, np.ndarray]) -> Linear:
        """Inverse of `arrays`."""
        before = NormalScores(arrays["column_F"], arrays["knot_QF"], arrays["pattern_P"])
        return Linear(before, arrays["weight_FC"], arrays["start_C"])


def best_linear(train: Problem, val: Problem) -> Learned:
    """The penalty with the smallest validation loss."""
    before = NormalScores.fit(train.x_BX)
    train_BF, val_BF = before(train.x_BX), before(val.x_BX)
    found = []
    for penalty, (weight_FC, start_C) in _path(train, train_BF):
        loss = val.loss(val_BF @ weight_FC + start_C)
        found.append(Learned(Linear(before, weight_FC, start_C), loss, {"penalty": penalty}))
    return min(found, key=lambda learned: learned.loss)


def _path(train: Problem, x_BF: Array) -> Iterator[tuple[float, tuple[Array, Array]]]:
    """(penalty, (weights, intercepts)) by falling penalty, each solved from where the one before has ended."""
    from sklearn.linear_model import LogisticRegression, Ridge

    rows = float(len(x_BF)) if train.weight_B is None else float(train.weight_B.sum())
    logistic = LogisticRegression(warm_start=True, max_iter=300, tol=1e-3)
    for penalty in PENALTIES:
        if train.kind == "number":
            model = Ridge(alpha=penalty * rows)
        else:
            model = logistic.set_params(C=1 / (penalty * rows))
        model.fit(x_BF, train.y_B, sample_weight=train.weight_B)
        weight_FC = np.atleast_2d(model.coef_).T.astype(np.float64).copy()
        yield penalty, (weight_FC, np.atleast_1d(model.intercept_).astype(np.float64).copy())
