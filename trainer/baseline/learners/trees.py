"""Gradient-boosted trees (scikit-learn's histogram method): few settings, as many trees as suit the validation part.

Of three settings the one with the smallest validation loss is taken, and the mean of three forests is grown with it.
The first has at most 350 iterations at a rate of 0.04, twelve leaves of at least thirty rows, an L2 of 5, and three
tenths of the columns in each split, which is near the best on clinical records of some thousand. The second is for
small data, the third for large ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.baseline.learners.forest import LEAF, Forest
from trainer.baseline.learners.problem import Array, Learned, Problem

FORESTS = 3


@dataclass(frozen=True)
class TreeSetting:
    """Of `HistGradientBoostingClassifier` and `-Regressor`; `iterations` is the most."""

    iterations: int = 350
    rate: float = 0.04
    leaves: int = 12
    l2: float = 5.0
    least: int = 30
    columns: float = 0.3


SETTINGS = (
    TreeSetting(),
    TreeSetting(leaves=6, l2=1.0, least=5),
    TreeSetting(iterations=150, rate=0.1, leaves=31, l2=1.0, least=20),
)


def grow(train: Problem, val: Problem, setting: TreeSetting, seed: int) -> Learned:
    """Grow trees and keep as many of the first iterations as have the smallest validation loss."""
    model = _fit(train, setting, seed)
    losses = [val.loss(score_BC) for score_BC in _stages(model, val.x_BX)]
    number = int(np.argmin(losses)) + 1
    return Learned(forest_of(model, number), losses[number - 1], {**asdict(setting), "iterations": number})


def averaged(train: Problem, val: Problem, grown: Learned, seed: int) -> Learned:
    """The mean of what was chosen and of forests like it from two further seeds, which draw other columns."""
    setting = TreeSetting(**grown.chosen)
    others = [forest_of(_fit(train, setting, seed + more), setting.iterations) for more in range(1, FORESTS)]
    forest = Forest.mean([grown.scorer, *others])  # type: ignore[list-item]
    return Learned(forest, val.loss(forest.scores(val.x_BX)), {**grown.chosen, "forests": FORESTS})


def _fit(train: Problem, setting: TreeSetting, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if train.kind == "number" else HistGradientBoostingClassifier
    model = kind(
        max_iter=setting.iterations,
        learning_rate=setting.rate,
        max_leaf_nodes=setting.leaves,
        l2_regularization=setting.l2,
        min_samples_leaf=setting.least,
        max_features=setting.columns,
        early_stopping=False,
        random_state=seed,
    )
    y_B = train.y_B if train.kind == "number" else train.y_B.astype(np.int64)
    return model.fit(train.x_BX, y_B, sample_weight=train.weight_B)


def _stages(model: Any, x_BX: np.ndarray) -> Iterator[Array]:
    """(B, C) after each iteration. Of two classes the library has one score."""
    stages = model.staged_decision_function if hasattr(model, "classes_") else model.staged_predict
    for score in stages(x_BX):
        yield score.reshape(len(score), -1).astype(np.float64)


def forest_of(model: Any, iterations: int) -> Forest:
    """The first iterations of a fitted model as arrays: names of scikit-learn's inside are in this function only."""
    grown = [tree for each in model._predictors[:iterations] for tree in each]
    nodes = [tree.nodes for tree in grown]
    root_T = np.cumsum([0, *map(len, nodes)])[:-1]
    shift_N = np.repeat(root_T, [len(node) for node in nodes])
    all_N = np.concatenate(nodes)
    assert not all_N["is_categorical"].any(), "no column was called categorical"
    leaf_N = all_N["is_leaf"].astype(bool)
    return Forest(
        model._baseline_prediction.reshape(-1).astype(np.float64),
        root_T.astype(np.int64),
        (np.arange(len(grown)) % len(model._predictors[0])).astype(np.int64),
        np.where(leaf_N, LEAF, all_N["feature_idx"]).astype(np.int64),
        all_N["num_threshold"].astype(np.float64),
        (all_N["left"] + shift_N).astype(np.int64),
        (all_N["right"] + shift_N).astype(np.int64),
        all_N["missing_go_to_left"].astype(bool),
        all_N["value"].astype(np.float64),
    )
