"""Trees as arrays: what boosting has grown, applied without the library that grew it, and kept without pickle.

Shapes: B rows, X columns, C scores, T trees, N nodes of all trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.baseline.learners.problem import Array

LEAF = -1


@dataclass(frozen=True)
class Forest:
    """A sum of trees.

    Attributes:
        start_C: scores before any tree. root_T, score_T: first node of each tree, and which score it adds to.
        column_N: that a node asks for; -1 is a leaf. limit_N: up to it a row goes left. left_N, right_N: nodes.
        missing_left_N: bool, where rows without a value go. value_N: what a leaf adds.
    """

    start_C: Array
    root_T: NDArray[np.int64]
    score_T: NDArray[np.int64]
    column_N: NDArray[np.int64]
    limit_N: Array
    left_N: NDArray[np.int64]
    right_N: NDArray[np.int64]
    missing_left_N: NDArray[np.bool_]
    value_N: Array

    def scores(self, x_BX: np.ndarray) -> Array:
        """(B, C)."""
        score_BC = np.tile(self.start_C, (len(x_BX), 1))
        for root, score in zip(self.root_T.tolist(), self.score_T.tolist(), strict=True):
            score_BC[:, score] += self.value_N[self._leaves(x_BX, root)]
        return score_BC

    def _leaves(self, x_BX: np.ndarray, root: int) -> NDArray[np.int64]:
        """int64 [B]: the leaf that each row comes to."""
        node_B = np.full(len(x_BX), root)
        going = np.arange(len(x_BX)) if self.column_N[root] != LEAF else np.empty(0, np.int64)
        while len(going):
            node = node_B[going]
            value = x_BX[going, self.column_N[node]].astype(np.float64)
            left = np.where(np.isnan(value), self.missing_left_N[node], value <= self.limit_N[node])
            node_B[going] = np.where(left, self.left_N[node], self.right_N[node])
            going = going[self.column_N[node_B[going]] != LEAF]
        return node_B

    @staticmethod
    def mean(forests: Sequence[Forest]) -> Forest:
        """One forest whose scores are the mean of theirs."""
        sizes = np.cumsum([0, *(len(own.value_N) for own in forests)])[:-1].tolist()

        def joined(name: str, shifted: bool = False) -> Any:
            pieces = [getattr(own, name) for own in forests]
            return np.concatenate([p + size if shifted else p for p, size in zip(pieces, sizes, strict=True)])

        return Forest(
            np.mean([own.start_C for own in forests], axis=0),
            joined("root_T", shifted=True),
            joined("score_T"),
            joined("column_N"),
            joined("limit_N"),
            joined("left_N", shifted=True),
            joined("right_N", shifted=True),
            joined("missing_left_N"),
            joined("value_N") / len(forests),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        return dict(vars(self))

    @staticmethod
    def of(arrays: dict[str, np.ndarray]) -> Forest:
        """Inverse of `arrays`."""
        return Forest(**arrays)
