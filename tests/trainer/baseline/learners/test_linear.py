"""Normal scores and penalties of the linear models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from trainer.baseline.learners.linear import KNOTS, Linear, NormalScores, best_linear
from trainer.baseline.learners.problem import Problem

NONE = float("nan")


def test_normal_scores_are_of_ranks() -> None:
    x_BX = np.stack([np.exp(np.arange(101.0)), np.full(101, 3.0), np.repeat([0.0, 0.0, 0.0, 7.0], 26)[:101]], axis=1)
    before = NormalScores.fit(x_BX)
    assert before.column_F.tolist() == [0, 2] and before.pattern_P.tolist() == []  # a constant says nothing
    score_BF = before(x_BX)
    # Skew is gone: the values of equal ranks, here quantiles of a straight line, are normal scores.
    assert score_BF[50, 0] == pytest.approx(0.0, abs=1e-6) and score_BF[0, 0] == ndtri(0.5 / KNOTS)
    np.testing.assert_allclose(score_BF[25, 0], -score_BF[75, 0], atol=0.02)
    # 78 of 101 are 0: their rank is the middle of 0 and about 0.77.
    assert score_BF[0, 1] == pytest.approx(ndtri(0.77 / 2), abs=0.01)
    far = before(np.array([[1e60, 3.0, 7.0], [NONE, NONE, NONE]]))
    assert far[0, 0] == ndtri(1 - 0.5 / KNOTS) and far[1].tolist() == [0, 0]


def test_each_pattern_of_missing_values_is_one_column() -> None:
    x_BX = np.array([[1, 1, 1, NONE], [2, NONE, NONE, NONE], [3, 3, 3, NONE], [4, 4, 5, NONE]], np.float32)
    before = NormalScores.fit(x_BX)
    assert before.pattern_P.tolist() == [1] and before.column_F.tolist() == [0, 1, 2]
    assert before(x_BX)[:, 3].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("kind", ["binary", "classes", "number"])
def test_the_penalty_is_the_best_of_validation(kind: str) -> None:
    rng = np.random.default_rng(0)
    x_BX = rng.normal(size=(300, 5)).astype(np.float32)
    noisy_B = x_BX[:, 0] - x_BX[:, 1] + rng.normal(size=300)
    y_B = {"binary": noisy_B > 0, "classes": np.digitize(noisy_B, [-1, 1]), "number": noisy_B}[kind].astype(np.float64)
    train, val = (Problem(kind, x_BX[own], y_B[own]) for own in (slice(0, 200), slice(200, 300)))  # type: ignore[arg-type]
    learned = best_linear(train, val)
    assert val.loss(learned.scorer.scores(val.x_BX)) == pytest.approx(learned.loss)
    rate = {"binary": np.log(2), "classes": np.log(3), "number": val.y_B.var()}[kind]
    assert learned.loss < 0.8 * rate
    arrays = learned.scorer.arrays()
    np.testing.assert_array_equal(Linear.of(arrays).scores(val.x_BX), learned.scorer.scores(val.x_BX))


def test_noise_is_penalised_hard() -> None:
    rng = np.random.default_rng(1)
    x_BX, y_B = rng.normal(size=(200, 40)).astype(np.float32), rng.integers(0, 2, 200).astype(np.float64)
    train, val = Problem("binary", x_BX[:100], y_B[:100]), Problem("binary", x_BX[100:], y_B[100:])
    assert best_linear(train, val).chosen == {"penalty": 1.0}
