"""Normal scores and steps, against loops and by hand."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.statistics import ModalityStatistics
from trainer.models.numbers.scale import BEYOND, END, NormalScores, score_reference
from trainer.models.numbers.steps import STEPS, Steps


def table_of(*channels: np.ndarray) -> ModalityStatistics:
    """Statistics of these values, channel by channel."""
    quantiles = tuple(tuple(np.quantile(values, PROBABILITIES).astype(np.float32).tolist()) for values in channels)
    zeros = (0.0,) * len(channels)
    return ModalityStatistics(1, (1,) * len(channels), zeros, zeros, zeros, zeros, quantiles)


def exact(p: float) -> float:
    return NormalDist().inv_cdf(min(max(p, BEYOND), 1 - BEYOND))


def test_scores_by_hand() -> None:
    """0 .. 1000 once each: value v stands at v / 1000. Then a count that is 0 in seven of ten, 5 and 9 once more."""
    even = np.arange(1001.0)
    count = np.array([0.0] * 7 + [5.0] * 2 + [9.0])
    scale = NormalScores({"a": table_of(even, count)})
    value = torch.tensor([[500.0, 0.0], [50.0, 5.0], [975.0, 9.0], [-7.0, -1.0], [1e9, 1e9]])
    got = scale(value, torch.zeros(5, dtype=torch.int64)).tolist()
    # 975 lies between the quantiles .97 and .98, so its score does between theirs.
    first = [0.0, exact(0.05), (exact(0.97) + exact(0.98)) / 2, -END, END]
    # Quantiles up to .65 are 0 (that at .7 lies between the seventh and the eighth), .8 to .88 are 5, and only 1 is 9.
    second = [exact(0.65 / 2), exact(0.84), END, exact(0.65 / 2), END]
    assert got == pytest.approx(np.array([first, second]).T, abs=1e-5)
    assert exact(1.0) == pytest.approx(END, abs=1e-6)


def test_scores_are_those_of_the_loop_and_of_the_row_they_belong_to() -> None:
    rng = np.random.default_rng(0)
    skewed, few, never = np.exp(3 * rng.normal(size=999)), rng.integers(0, 3, 999).astype(float), np.zeros(2)
    tables = {"wide": table_of(skewed, few, never), "narrow": table_of(-skewed)}
    scale = NormalScores(tables)
    values = torch.tensor(np.concatenate([skewed[:50], -skewed[:50], [0, 1, 1.5, 2, -1e30, 1e30]]), dtype=torch.float32)
    for block, feature in ((0, 0), (0, 1), (0, 2), (1, 0)):
        index = torch.full((len(values),), block), torch.full((len(values),), feature)
        got = scale(values, *index)
        expected = [
            score_reference(value, list(tables.values())[block].quantiles[feature]) for value in values.tolist()
        ]
        torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=2e-5)
        assert feature != 2 or got.unique().tolist() == [0.0]
    whole = scale(values[:6].view(2, 3), torch.tensor([1, 0]))
    assert whole[0, 0] == scale(values[:1], torch.tensor([1]), torch.tensor([0]))
    assert whole[1, 1] == scale(values[4:5], torch.tensor([0]), torch.tensor([1]))
    assert scale(values[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_scores_of_training_values_are_normal_whatever_the_values_are() -> None:
    rng = np.random.default_rng(1)
    skewed = np.exp(4 * rng.normal(size=20_000)).astype(np.float32)
    score = NormalScores({"a": table_of(skewed)})(
        torch.from_numpy(skewed), torch.zeros(20_000, dtype=torch.int64), torch.zeros(20_000, dtype=torch.int64)
    )
    assert abs(float(score.mean())) < 0.02 and abs(float(score.std()) - 1) < 0.02
    assert float((score < 1).float().mean()) == pytest.approx(NormalDist().cdf(1), abs=0.01)


def test_statistics_stay_as_they_are_in_bf16() -> None:
    """Values of about 1,000 with differences of 1 are the same number in bf16."""
    scale = NormalScores({"a": table_of(np.arange(1000.0, 1101.0))}).bfloat16()
    score = scale(torch.tensor([1050.0, 1051.0]), torch.tensor([0, 0]), torch.tensor([0, 0]))
    # Between the quantiles .5 and .55 of a straight line.
    assert score.tolist() == pytest.approx([0.0, exact(0.55) / 5], abs=1e-5)


def test_data_without_quantiles_are_refused_in_words() -> None:
    old = ModalityStatistics(1, (1,), (0.0,), (1.0,), (0.0,), (1.0,))
    with pytest.raises(ValueError, match=r"the statistics of modality lab hold no quantiles.*pack the data again"):
        NormalScores({"lab": old})


def test_steps_by_hand() -> None:
    knots = [-END, *(NormalDist().inv_cdf(i / STEPS) for i in range(1, STEPS)), END]
    got = Steps()(torch.tensor([[-9.0, knots[2]], [0.0, END], [(knots[4] + knots[5]) / 2, 9.0]]))
    assert got.shape == (3, 2, STEPS)
    assert got[0, 0].tolist() == [0.0] * 8 and got[1, 1].tolist() == [1.0] * 8 and got[2, 1].tolist() == [1.0] * 8
    assert got[0, 1].tolist() == pytest.approx([1, 1, 0, 0, 0, 0, 0, 0], abs=1e-6)
    assert got[1, 0].tolist() == pytest.approx([1, 1, 1, 1, 0, 0, 0, 0], abs=1e-6)
    assert got[2, 0].tolist() == pytest.approx([1, 1, 1, 1, 0.5, 0, 0, 0], abs=1e-6)
