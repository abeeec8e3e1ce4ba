"""Trees as arrays say what the library that grew them says, and go through a file unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.baseline.learners.forest import Forest
from trainer.baseline.learners.problem import Problem
from trainer.baseline.learners.trees import TreeSetting, _fit, averaged, forest_of, grow

SETTING = TreeSetting(iterations=12, rate=0.2, leaves=4, l2=1.0, least=5, columns=0.5)


def rows(kind: str, seed: int, number: int = 120) -> Problem:
    rng = np.random.default_rng(seed)
    x_BX = rng.normal(size=(number, 4)).astype(np.float32)
    x_BX[rng.random(x_BX.shape) < 0.3] = np.nan
    signal_B = np.nansum(x_BX[:, :2], axis=1) + np.isnan(x_BX[:, 2])
    y_B = {"binary": signal_B > 0, "classes": np.digitize(signal_B, [-0.5, 0.5]), "number": signal_B}[kind]
    return Problem(kind, x_BX, y_B.astype(np.float64))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["binary", "classes", "number"])
def test_scores_are_those_of_the_library(kind: str) -> None:
    train, other = rows(kind, 0), rows(kind, 1)
    model = _fit(train, SETTING, 0)
    score_BC = forest_of(model, SETTING.iterations).scores(other.x_BX)
    wanted = model.predict(other.x_BX) if kind == "number" else model.decision_function(other.x_BX)
    np.testing.assert_allclose(score_BC, wanted.reshape(len(wanted), -1), atol=1e-12)
    fewer = list(model.staged_predict(other.x_BX) if kind == "number" else model.staged_decision_function(other.x_BX))[
        4
    ]
    np.testing.assert_allclose(forest_of(model, 5).scores(other.x_BX), fewer.reshape(len(fewer), -1), atol=1e-12)


def test_a_tree_by_hand() -> None:
    """x0 <= 1 (missing: left) -> 2; else x1 <= 0 (missing: right) -> 5, or 7."""
    forest = Forest(
        start_C=np.array([10.0]),
        root_T=np.array([0]),
        score_T=np.array([0]),
        column_N=np.array([0, -1, 1, -1, -1]),
        limit_N=np.array([1.0, 0, 0, 0, 0]),
        left_N=np.array([1, 0, 3, 0, 0]),
        right_N=np.array([2, 0, 4, 0, 0]),
        missing_left_N=np.array([True, False, False, False, False]),
        value_N=np.array([0, 2.0, 0, 5.0, 7.0]),
    )
    x_BX = np.array([[1, 9], [np.nan, 9], [2, 0], [2, 1], [2, np.nan]], np.float32)
    assert forest.scores(x_BX)[:, 0].tolist() == [12, 12, 15, 17, 17]
    again = Forest.mean([forest, forest, forest])
    np.testing.assert_allclose(again.scores(x_BX)[:, 0], [12, 12, 15, 17, 17])


def test_the_number_of_trees_is_the_best_of_validation_and_forests_are_averaged() -> None:
    train, val = rows("binary", 0), rows("binary", 1)
    grown = grow(train, val, SETTING, 0)
    model = _fit(train, SETTING, 0)
    losses = [val.loss(score_B[:, None]) for score_B in model.staged_decision_function(val.x_BX)]
    assert grown.chosen["iterations"] == int(np.argmin(losses)) + 1 and grown.loss == pytest.approx(min(losses))
    mean = averaged(train, val, grown, 0)
    parts = [_fit(train, TreeSetting(**grown.chosen), seed).decision_function(val.x_BX) for seed in range(3)]
    np.testing.assert_allclose(mean.scorer.scores(val.x_BX)[:, 0], np.mean(parts, axis=0), atol=1e-12)
    assert not np.allclose(parts[0], parts[1]) and mean.chosen["forests"] == 3
