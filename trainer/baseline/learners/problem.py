"""What a learner is given: rows, one target column, and how wrong its scores are.

Shapes: B rows, X columns, C scores: one (log odds, or a number), or one a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.records.survival import count_intervals, interval_of, life_table

Array = NDArray[np.float64]
Kind = Literal["binary", "classes", "number"]


@dataclass(frozen=True)
class Problem:
    """Labelled rows.

    Attributes:
        y_B: 0 or 1 (binary), the number of a class of which each has a row in training, or a number.
        weight_B: of the rows; None = 1 each.
    """

    kind: Kind
    x_BX: np.ndarray
    y_B: Array
    weight_B: Array | None = None

    def loss(self, score_BC: Array) -> float:
        """Mean log loss in nats, or mean squared error."""
        if self.kind == "number":
            loss_B = (score_BC[:, 0] - self.y_B) ** 2
        elif self.kind == "binary":
            loss_B = np.logaddexp(0.0, np.where(self.y_B == 1, -score_BC[:, 0], score_BC[:, 0]))
        else:
            own_B = score_BC[np.arange(len(score_BC)), self.y_B.astype(np.int64)]
            loss_B = np.logaddexp.reduce(score_BC, axis=1) - own_B
        return float(np.average(loss_B, weights=self.weight_B))


class Scorer(Protocol):
    """Something that was learned, and can be kept as arrays."""

    def scores(self, x_BX: np.ndarray) -> Array:
        """(B, C)."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `scores` needs, by name."""


@dataclass(frozen=True)
class Constant:
    """The same answer for everybody: what is said where training has seen one answer only."""

    score_C: Array

    def scores(self, x_BX: np.ndarray) -> Array:
        """(B, C)."""
        return np.tile(self.score_C, (len(x_BX), 1))

    def arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        return dict(vars(self))

    @staticmethod
    def of(arrays: dict[str, np.ndarray]) -> Constant:
        """Inverse of `arrays`."""
        return Constant(**arrays)


@dataclass(frozen=True)
class Learned:
    """What a learner gives: a scorer, its validation loss, and the settings that were chosen by it."""

    scorer: Scorer
    loss: float
    chosen: dict[str, Any]


@dataclass(frozen=True)
class Periods:
    """Survival as yes and no: one row for each interval that a record entered, is it the one where it happened?

    The log odds of such rows are the logits of the hazards (`trainer/models/layers/hazard.py`). Each row has one more
    column, the log odds of its interval in the training part's life table. Who was censored within an interval counts
    for the share of it that had passed.
    """

    edges: tuple[float, ...]
    base_K: Array

    @staticmethod
    def of(edges: tuple[float, ...], target_B2: np.ndarray) -> Periods:
        """From training targets (time, seen)."""
        lived_K = life_table(count_intervals(edges, target_B2).tolist())
        return Periods(edges, np.log((1 - lived_K) / lived_K))

    def problem(self, x_BX: np.ndarray, target_B2: np.ndarray) -> Problem:
        """Rows of the records, which must all be labelled."""
        end_K = np.asarray(self.edges, np.float32).astype(np.float64)
        begin_K = np.concatenate([[0.0], end_K[:-1]])
        time_B, seen_B = target_B2[:, 0].astype(np.float64), target_B2[:, 1] == 1
        own_B = interval_of(self.edges, target_B2[:, 0])
        share_BK = np.clip((time_B[:, None] - begin_K) / (end_K - begin_K), 0, 1)
        happened_BK = (own_B[:, None] == np.arange(len(end_K))) & seen_B[:, None]
        weight_BK = np.where(happened_BK, 1.0, share_BK)
        record_N, interval_N = np.nonzero(weight_BK)
        y_N = happened_BK[record_N, interval_N].astype(np.float64)
        return Problem("binary", self._rows(x_BX[record_N], interval_N), y_N, weight_BK[record_N, interval_N])

    def every(self, x_BX: np.ndarray) -> np.ndarray:
        """(B * K, X + 1): each record in each interval, record by record."""
        interval_N = np.tile(np.arange(len(self.edges)), len(x_BX))
        return self._rows(np.repeat(x_BX, len(self.edges), axis=0), interval_N)

    def _rows(self, x_NX: np.ndarray, interval_N: np.ndarray) -> np.ndarray:
        return np.concatenate([x_NX, self.base_K[interval_N, None].astype(np.float32)], axis=1)
