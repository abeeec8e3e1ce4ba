"""Measures of censored times against scikit-survival on random data with ties, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sksurv import metrics as oracle
from sksurv.nonparametric import kaplan_meier_estimator

from trainer.metrics.censored import (
    Concordance,
    brier,
    calibration,
    censoring_weights,
    concordance,
    integrated_brier,
    kaplan_meier,
    uncensored,
)


def drawn(seed: int, records: int = 120, times: int = 25, risks: int = 12, censored: float = 0.4):
    """Times and risks of few values, so that many are equal."""
    rng = np.random.default_rng(seed)
    time = rng.integers(1, times, records).astype(float)
    seen = rng.random(records) >= censored
    seen[np.argmin(time)], seen[np.argmax(time)] = True, True
    return time, seen, rng.integers(0, risks, records).astype(float), rng.random((records, 4)).cumprod(axis=1)


def surv(time: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.array(list(zip(seen, time, strict=True)), dtype=[("seen", bool), ("time", float)])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("censored", [0.0, 0.4, 0.9])
def test_everything_is_as_the_library_has_it(seed: int, censored: float) -> None:
    time, seen, risk, survival = drawn(seed, censored=censored)
    labels, grid = surv(time, seen), np.array([3.0, 7.5, 12.0, 20.0])
    falls, value = kaplan_meier_estimator(seen, time)
    mine = kaplan_meier(time, seen)
    assert mine.time_U.tolist() == falls.tolist() and mine.value_U == pytest.approx(value, abs=1e-14)
    falls, value = kaplan_meier_estimator(seen, time, reverse=True)
    assert uncensored(time, seen).at(falls) == pytest.approx(value, abs=1e-14)
    expected, *pairs = oracle.concordance_index_censored(seen, time, risk)
    assert concordance(time, seen, risk) == pytest.approx(expected, abs=1e-14)
    assert sum(pairs[:3]) > 100 and pairs[2] > 0, "there are equal risks among the pairs"
    tau = 20.0
    factor = np.where(time < tau, censoring_weights(time, seen), 0.0) ** 2
    expected = oracle.concordance_index_ipcw(labels, labels, risk, tau=tau)[0]
    assert concordance(time, seen, risk, factor) == pytest.approx(expected, abs=1e-12)
    _, scores = oracle.brier_score(labels, labels, survival, grid)
    assert brier(time, seen, survival, grid).mean(axis=0) == pytest.approx(scores, abs=1e-12)
    expected = oracle.integrated_brier_score(labels, labels, survival, grid)
    assert integrated_brier(time, seen, survival, grid).mean() == pytest.approx(expected, abs=1e-12)


def test_a_weight_is_a_record_that_is_there_so_often() -> None:
    time, seen, risk, _ = drawn(3, records=40)
    counts = np.random.default_rng(0).integers(0, 4, (6, 40))
    got = Concordance(time, seen, risk)(counts.astype(float))
    for row, value in zip(counts, got, strict=True):
        often = np.repeat(np.arange(40), row)
        # Copies of one record are no pair of the library's, as both were seen at one time, or neither was.
        expected = oracle.concordance_index_censored(seen[often], time[often], risk[often])[0]
        assert value == pytest.approx(expected, abs=1e-14)
    assert np.isnan(Concordance(time, seen, risk)(np.zeros((1, 40)))).all()


def test_pieces_of_the_weights_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    time, seen, risk, _ = drawn(4, records=50)
    weights = np.random.default_rng(0).random((7, 50))
    whole = Concordance(time, seen, risk)(weights)
    monkeypatch.setattr("trainer.metrics.censored.MOST_WEIGHTS", 150)
    monkeypatch.setattr("trainer.metrics.censored.FEWEST_SETS", 2)
    assert Concordance(time, seen, risk)(weights) == pytest.approx(whole, abs=1e-14)


def test_concordance_by_hand() -> None:
    # Seen at 1, at 2 and at 2, censored at 2 and 3: pairs (1, all four others), each seen at 2 with both censored.
    time, seen = np.array([1.0, 2, 2, 2, 3]), np.array([True, True, True, False, False])
    assert concordance(time, seen, np.array([5.0, 4, 4, 2, 1])) == 1.0
    assert concordance(time, seen, np.array([5.0, 4, 1, 2, 1])) == (4 + 2 + 0.5) / 8
    assert concordance(time, seen, np.zeros(5)) == 0.5
    assert np.isnan(concordance(time, np.zeros(5, bool), np.zeros(5)))


def test_a_hundred_thousand_records_take_no_time_in_their_square() -> None:
    rng = np.random.default_rng(0)
    time, risk = rng.random(100_000), rng.random(100_000)
    assert concordance(time, np.ones(100_000, bool), -time) == 1.0
    assert concordance(time, rng.random(100_000) < 0.5, risk) == pytest.approx(0.5, abs=0.01)


def test_kaplan_meier_by_hand() -> None:
    curve = kaplan_meier(np.array([1.0, 2, 2, 3, 4]), np.array([True, False, True, False, True]))
    assert curve.at(np.array([0.5, 1, 1.9, 2, 3.5, 4, 9])) == pytest.approx([1, 0.8, 0.8, 0.6, 0.6, 0, 0])


def test_calibration_compares_groups_with_kaplan_meier() -> None:
    time = np.concatenate([np.full(50, 1.0), np.full(50, 5.0), np.full(100, 5.0)])
    seen = np.concatenate([np.ones(50, bool), np.zeros(150, bool)])
    stated = np.concatenate([np.full(100, 0.4), np.full(100, 0.9)])
    found = calibration(time, seen, stated, 2.0)
    assert found.count.tolist() == [50.0] * 4
    assert found.stated == pytest.approx([0.4, 0.4, 0.9, 0.9]) and found.found.tolist() == [0, 1, 1, 1]
    assert found.error == pytest.approx((0.4 + 0.6 + 0.1 + 0.1) / 4)
    assert len(calibration(time[:90], seen[:90], stated[:90], 2.0).count) == 1, "too few to be told apart"
