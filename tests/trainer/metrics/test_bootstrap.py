"""Weighted metrics against the plain ones on rows that are really repeated, and intervals that keep their promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from data_shards import TaskSpec
from trainer.metrics.bootstrap.intervals import difference, draw_weights, interval, seed_test
from trainer.metrics.bootstrap.measures import task_measures
from trainer.metrics.scores import task_metrics

TASKS = [
    TaskSpec("died", "binary"),
    TaskSpec("kind", "multiclass", classes=("u", "v", "w")),
    TaskSpec("codes", "multilabel", classes=("p", "q")),
    TaskSpec("days", "regression", dim=2),
]


def data(task: TaskSpec, records: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    """Random answers, of which some tie where a tie stays one after rounding, and labels of which some are missing."""
    rng = np.random.default_rng(3)
    logits = torch.tensor(np.round(rng.normal(size=(records, task.dim)), 9 if task.kind == "multiclass" else 1))
    if task.kind == "multiclass":
        target = torch.tensor(rng.integers(0, 3, (records, 1)), dtype=torch.float64)
    elif task.kind == "regression":
        target = torch.tensor(rng.normal(size=(records, task.dim)))
    else:
        target = torch.tensor(rng.integers(0, 2, (records, task.dim)), dtype=torch.float64)
    target[rng.random(records) < 0.2] = torch.nan
    if task.dim > 1 and task.kind != "multiclass":
        target[::7, 1] = torch.nan
    return logits, target


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_weight_is_a_repeated_row(task: TaskSpec) -> None:
    logits, target = data(task)
    weights = draw_weights(len(logits), draws=4)
    measures = task_measures(task, logits, target)
    values = {name: measure(weights) for name, measure in measures.items()}
    for draw in range(len(weights)):
        rows = torch.tensor(np.repeat(np.arange(len(logits)), weights[draw].astype(int)))
        expected = task_metrics(task, logits[rows], target[rows])
        assert values.keys() <= expected.keys()
        for name, value in values.items():
            assert value[draw] == pytest.approx(expected[name], abs=1e-6), f"{name}, draw {draw}"


def test_survival_draws_records_and_keeps_what_is_known_of_censoring() -> None:
    """Concordance of drawn rows is that of repeated rows; Brier score and Uno's are weighted by the whole part's."""
    rng, task = np.random.default_rng(3), TaskSpec("life", "survival", edges=(1.0, 2.0, 4.0))
    logits = torch.tensor(np.round(rng.normal(size=(120, 3)), 1))
    target = torch.tensor(np.stack([rng.integers(1, 11, 120) / 2, rng.integers(0, 2, 120)], axis=1))
    target[rng.random(120) < 0.2] = torch.nan
    weights = draw_weights(120, draws=6)
    values = {name: measure(weights) for name, measure in task_measures(task, logits, target).items()}
    whole = task_metrics(task, logits, target)
    assert values.keys() == {"concordance", "concordance_ipcw", "integrated_brier"}
    for name, value in values.items():
        assert value[0] == pytest.approx(whole[name], abs=1e-12), name
        assert len(set(value.tolist())) == 7, name
    for draw, value in enumerate(values["concordance"]):
        rows = torch.tensor(np.repeat(np.arange(120), weights[draw].astype(int)))
        assert value == pytest.approx(task_metrics(task, logits[rows], target[rows])["concordance"], abs=1e-12)
    nobody = np.isnan(target.numpy()).any(axis=1)[None].astype(float)
    assert all(np.isnan(measure(nobody)).all() for measure in task_measures(task, logits, target).values())
    with pytest.raises(ValueError, match="task life has no labelled record"):
        task_measures(task, torch.zeros(2, 3), torch.full((2, 2), torch.nan))


def test_draws_with_one_class_only_have_no_area() -> None:
    measures = task_measures(TASKS[0], torch.tensor([[0.1], [0.2]]), torch.tensor([[0.0], [1.0]]))
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    assert measures["auroc"](weights)[0] == 1.0 and np.isnan(measures["auroc"](weights)[1:]).all()
    assert np.isnan(measures["auprc"](weights)[1])
    assert measures["f1"](weights)[0] == pytest.approx(2 / 3) and np.isnan(measures["f1"](weights)[1])
    with pytest.raises(ValueError, match="task died has no labelled record"):
        task_measures(TASKS[0], torch.zeros(2, 1), torch.full((2, 1), torch.nan))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for trial in range(200):
        right = torch.tensor(rng.random((150, 1)) < 0.8)
        measure = task_measures(TASKS[0], torch.where(right, 1.0, -1.0), torch.ones(150, 1))["accuracy"]
        found = interval(measure(draw_weights(150, 300, seed=trial)))
        held += found.low <= 0.8 <= found.high
    assert 0.90 < held / 200 < 0.985


def test_equal_runs_do_not_differ_and_paired_draws_see_what_single_intervals_do_not() -> None:
    rng = np.random.default_rng(1)
    hard, weights = rng.random(400) < 0.5, draw_weights(400)
    truth = torch.ones(400, 1)
    weak = ~hard
    strong = weak | (rng.random(400) < 0.08)  # right wherever the other is, and in a few more cases
    measured = [
        task_measures(TASKS[0], torch.tensor(np.where(right, 1.0, -1.0))[:, None], truth)["accuracy"](weights)
        for right in (strong, weak)
    ]
    same = difference(measured[0], measured[0])
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    found = difference(*measured)
    assert found.low > 0 and found.p < 0.01
    alone = [interval(values) for values in measured]
    assert alone[0].low < alone[1].high, "the single intervals overlap"


def test_seeds_are_tested_in_pairs() -> None:
    first, second = [0.81, 0.84, 0.79], [0.80, 0.82, 0.785]
    assert seed_test(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert seed_test([0.8], [0.7]) is None and seed_test([0.8, 0.9], [0.7, 0.8]) is not None
    assert seed_test([0.5, 0.75], [0.25, 0.5]) is None, "no spread at all is no evidence"


def test_a_draw_without_a_label_has_no_figure_and_nothing_has_no_interval() -> None:
    target = torch.tensor([[1.0], [torch.nan], [torch.nan]])
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [2.0, 0.0, 1.0]])
    for task in (TaskSpec("t", "binary"), TaskSpec("t", "regression")):
        for name, measure in task_measures(task, torch.tensor([[0.5], [0.5], [0.5]]), target).items():
            values = measure(weights)
            assert np.isnan(values[1]), f"{task.kind} {name} of no label"
            assert np.isnan(values[0]) == (name in ("auroc", "r2"))
    nothing, some = np.full(4, np.nan), np.array([0.5, 0.25, np.nan, 0.75])
    assert interval(nothing) is None and difference(some, nothing) is None
    found = interval(some)
    assert found is not None and found.value == 0.5 and 0.25 <= found.low < found.high <= 0.75


def test_variance_of_targets_far_from_zero_is_no_rounding() -> None:
    """Targets near 1e9: their squares leave no digit for a variance of 1."""
    rng = np.random.default_rng(0)
    target = torch.tensor(1e9 + rng.normal(size=(50, 1)))
    value = target + torch.tensor(rng.normal(size=(50, 1)) / 2)
    measure = task_measures(TaskSpec("t", "regression"), value, target)["r2"]
    error, spread = (value - target).square().mean(), target.var(correction=0)
    assert measure(np.ones((1, 50)))[0] == pytest.approx(float(1 - error / spread), rel=1e-6)
