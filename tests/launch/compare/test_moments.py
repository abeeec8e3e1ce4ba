"""Records are drawn, not their moments: intervals of long records are as wide as they must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards import TaskSpec
from launch.compare import comparison
from launch.compare.tested import Kept
from trainer.metrics.bootstrap import intervals
from trainer.metrics.bootstrap.intervals import draw_weights, interval, over_moments
from trainer.metrics.bootstrap.measures import record_measures, task_measures
from trainer.metrics.by_record import metrics_by_record, record_rows
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import task_metrics

TASKS = [
    TaskSpec("sepsis", "binary", timed=True),
    TaskSpec("kind", "multiclass", classes=("u", "v", "w"), timed=True),
    TaskSpec("codes", "multilabel", classes=("p", "q"), timed=True),
    TaskSpec("rest", "regression", dim=2, timed=True),
]


def data(task: TaskSpec, records: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits, targets, record of each moment): 1 to 9 moments a record, some without a label."""
    rng = np.random.default_rng(5)
    index = np.repeat(np.arange(records) * 3 + 1, rng.integers(1, 10, records))
    logits = torch.tensor(rng.normal(size=(len(index), task.dim)))
    if task.kind == "multiclass":
        target = torch.tensor(rng.integers(0, 3, (len(index), 1)), dtype=torch.float64)
    elif task.kind == "regression":
        target = torch.tensor(rng.normal(size=(len(index), task.dim)))
    else:
        target = torch.tensor(rng.random((len(index), task.dim)) < 0.2, dtype=torch.float64)
    target[rng.random(len(index)) < 0.2] = torch.nan
    return logits, target, torch.tensor(index)


def repeated(index_B: torch.Tensor, weight_G: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, record of each row) of a part in which record g is there `weight_G[g]` times, as so many records."""
    rows, numbers, number = [], [], 0
    for g, record in enumerate(index_B.unique().tolist()):
        own = (index_B == record).nonzero()[:, 0]
        for _ in range(int(weight_G[g])):
            rows.append(own)
            numbers.append(torch.full((len(own),), number))
            number += 1
    return torch.cat(rows), torch.cat(numbers)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_drawn_record_is_all_of_its_moments(task: TaskSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "MOST_WEIGHTS", 700)  # two draws at a time
    logits, target, index_B = data(task)
    row_B = record_rows(index_B)
    weight_RG = draw_weights(60, draws=4)
    over = {name: over_moments(m, row_B)(weight_RG) for name, m in task_measures(task, logits, target).items()}
    by = {name: measure(weight_RG) for name, measure in record_measures(task, logits, target, row_B).items()}
    assert by and all(len(values) == 5 for values in (over | by).values())
    for draw in range(5):
        rows, number_B = repeated(index_B, weight_RG[draw])
        expected = task_metrics(task, logits[rows], target[rows])
        expected |= metrics_by_record(task, logits[rows], target[rows], number_B)
        assert {name for name in expected if name.endswith("_by_record")} == set(by)
        for name, values in (over | by).items():
            assert values[draw] == pytest.approx(expected[name], abs=1e-6), f"{name}, draw {draw}"


def kept(records: int, moments: int, seed: int, grouped: bool = True) -> Kept:
    """Of 80 % of records all moments are answered rightly, of the others none."""
    right = np.repeat(np.random.default_rng(seed).random(records) < 0.8, moments)
    index = torch.arange(records).repeat_interleave(moments)
    time = torch.arange(moments).float().repeat(records)
    if not grouped:
        index, time = torch.arange(records * moments), None
    logits = {"sepsis": torch.tensor(np.where(right, 1.0, -1.0))[:, None]}
    truth = {"sepsis": torch.ones(records * moments, 1)}
    return Kept(TASKS[:1], Predictions(index, logits, truth, moment_B=time))


def test_the_interval_over_records_holds_the_truth_and_one_over_moments_would_not() -> None:
    held = {True: 0, False: 0}
    for trial in range(100):
        for grouped in held:
            own = kept(50, 20, trial, grouped)
            weights = draw_weights(own.predictions.records, 200, seed=trial)
            found = interval(comparison.draws_of(own, weights)["test/accuracy"])
            assert found is not None
            held[grouped] += found.low <= 0.8 <= found.high
    assert held[True] >= 88 and held[False] <= 50, held


def test_one_record_with_many_moments_is_one_record() -> None:
    one = kept(1, 50, 0)
    assert comparison._labelled(one, TASKS[0]) == 1
    assert comparison.draws_of(one, draw_weights(1)) == {}
    assert comparison.draws_of(kept(2, 50, 0), draw_weights(2)).keys() >= {"test/accuracy", "test/brier_by_record"}


def test_other_moments_of_the_same_records_are_other_things_that_were_tested() -> None:
    first, second = kept(5, 3, 0), kept(5, 3, 0)
    assert first.numbers == second.numbers
    assert second.predictions.moment_B is not None
    second.predictions.moment_B[2] += 1
    assert first.numbers != second.numbers
