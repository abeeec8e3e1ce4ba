"""The best evaluation so far, and patience, on made-up evaluations."""

from __future__ import annotations

import math

import pytest

from trainer.config.sections import EarlyStoppingConfig
from trainer.training.early_stopping import (
    best_metrics,
    best_value,
    mode_of,
    other_ranking,
    out_of_patience,
    ranking,
    record_evaluation,
    score_of,
)
from trainer.training.progress import Progress

LOSS = EarlyStoppingConfig(metric="val/loss", mode="min", patience=2)
AUROC = EarlyStoppingConfig(metric="val/auroc", mode="max", patience=2)


def evaluated(config: EarlyStoppingConfig, *values: float) -> Progress:
    """A run that was evaluated every ten steps; another metric counts the evaluations."""
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress.step += 10
        record_evaluation(config, progress, {config.metric: value, "val/f1": number / 8})
    return progress


def test_a_score_is_larger_where_the_run_is_better():
    assert score_of(LOSS, {"val/loss": 0.25, "val/f1": 0.5}) == -0.25
    assert score_of(AUROC, {"val/auroc": 0.75}) == 0.75
    assert score_of(LOSS, {"val/loss": math.nan}) == score_of(AUROC, {"val/auroc": math.nan}) == -math.inf


@pytest.mark.parametrize(
    ("values", "score", "best_score", "best_step", "bad"),
    [
        ([0.5], -0.5, -0.5, 10, 0),
        ([0.5, 0.25], -0.25, -0.25, 20, 0),
        ([0.5, 0.75, 0.625], -0.625, -0.5, 10, 2),
        ([0.5, 0.75, 0.25, 0.375], -0.375, -0.25, 30, 1),
        ([0.5, 0.5], -0.5, -0.5, 10, 1),  # as good is not better
        ([0.5, math.nan], -math.inf, -0.5, 10, 1),
        ([math.nan, math.nan, 0.5], -0.5, -0.5, 30, 0),
        ([math.nan, math.nan], -math.inf, -math.inf, 10, 1),
    ],
)
def test_the_best_evaluation_and_those_without_gain(values, score, best_score, best_step, bad):
    progress = evaluated(LOSS, *values)
    assert (progress.score, progress.evaluated_step) == (score, 10 * len(values))
    assert (progress.best_score, progress.best_step, progress.bad_evaluations) == (best_score, best_step, bad)


def test_the_best_metrics_are_those_of_the_best_step():
    progress = evaluated(LOSS, 0.5, 0.25, 0.75)
    assert best_metrics(LOSS, progress) == {"best/val/loss": 0.25, "best/val/f1": 0.25, "best/step": 20.0}
    assert best_value(LOSS, progress) == 0.25
    progress = evaluated(AUROC, 0.5, 0.25, 0.75)
    assert best_metrics(AUROC, progress) == {"best/val/auroc": 0.75, "best/val/f1": 0.375, "best/step": 30.0}
    assert best_value(AUROC, progress) == 0.75


def test_without_any_number_the_best_is_infinitely_bad():
    assert best_metrics(LOSS, evaluated(LOSS, math.nan))["best/val/loss"] == math.inf
    assert best_metrics(AUROC, evaluated(AUROC, math.nan))["best/val/auroc"] == -math.inf


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.5], False),
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.75, 0.25, 0.5], False),
        ([0.5, 0.75, 0.25, 0.5, 0.5], True),
    ],
)
def test_patience_is_over_after_two_evaluations_without_gain(values, over):
    progress = evaluated(LOSS, *values)
    assert out_of_patience(LOSS, progress) is over
    # By the recipe as it is now, not as it was when they were counted.
    assert not out_of_patience(LOSS.model_copy(update={"patience": 3}), progress)
    assert not out_of_patience(LOSS.model_copy(update={"patience": None}), progress)


def test_a_metric_that_was_not_computed_changes_nothing():
    progress = evaluated(LOSS, 0.5)
    progress.step = 20
    with pytest.raises(ValueError) as error:
        record_evaluation(AUROC, progress, {"val/loss": 0.25, "val/f1": 0.5})
    assert str(error.value) == (
        "training.early_stopping.metric = 'val/auroc' is not computed; there are val/f1, val/loss"
    )
    assert progress == Progress(
        step=20,
        score=-0.5,
        evaluated_step=10,
        best_score=-0.5,
        best_step=10,
        best_metrics={"val/loss": 0.5, "val/f1": 0.125},
    )


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *((f"val/{name}", "min") for name in ("loss", "mae", "rmse", "brier", "ece")),
        *((f"val/{name}", "max") for name in ("auroc", "auprc", "accuracy", "y/f1", "r2", "iou", "pixel_accuracy")),
        ("val/loss/auroc", "max"),  # of a task that is called loss
        ("val/auroc/brier", "min"),
        ("val/records/f1", "max"),
    ],
)
def test_without_a_mode_the_metric_has_its_own_direction(metric, mode):
    config = EarlyStoppingConfig(metric=metric)
    assert config.mode is None and mode_of(config) == mode
    progress = evaluated(config, 0.25, 0.75, 0.5)
    assert (progress.best_step, best_value(config, progress)) == ((10, 0.25) if mode == "min" else (20, 0.75))
    assert mode_of(EarlyStoppingConfig(metric=metric, mode=mode)) == mode
    other = {"min": "max", "max": "min"}[mode]
    more = {"min": "less", "max": "more"}[mode]
    with pytest.raises(ValueError) as error:
        mode_of(EarlyStoppingConfig(metric=metric, mode=other))
    assert str(error.value) == (
        f"training.early_stopping.mode={other} would choose the worst model by {metric}, of which {more} is better: "
        f"set training.early_stopping.mode={mode}, or leave it out"
    )


def test_a_metric_of_unknown_direction_needs_a_mode():
    assert mode_of(EarlyStoppingConfig(metric="val/other", mode="max")) == "max"
    assert mode_of(EarlyStoppingConfig(metric="val/other", mode="min")) == "min"
    with pytest.raises(ValueError, match=r"mode is not given, and nothing says whether more of val/other is better"):
        mode_of(EarlyStoppingConfig(metric="val/other"))


@pytest.mark.parametrize("metric", ["val/records", "val/skipped"])
@pytest.mark.parametrize("mode", [None, "min", "max"])
def test_a_count_cannot_choose(metric, mode):
    with pytest.raises(ValueError, match=f"early_stopping.metric={metric} counts records and cannot choose"):
        score_of(EarlyStoppingConfig(metric=metric, mode=mode), {metric: 8.0})
    with pytest.raises(ValueError, match=r"'val/f1' is not computed; there are val/loss$"):
        score_of(EarlyStoppingConfig(metric="val/f1"), {"val/loss": 0.5, "val/records": 8.0, "val/skipped": 1.0})


def test_scores_of_another_metric_or_mode_do_not_compare():
    config = EarlyStoppingConfig(metric="val/auroc")
    assert ranking(config) == {"metric": "val/auroc", "mode": "max"} == ranking(AUROC)
    assert other_ranking(config, None) is None and other_ranking(config, ranking(AUROC)) is None
    assert other_ranking(config, ranking(LOSS)) == (
        "chose by val/loss (min) so far, which does not compare with val/auroc (max): give the run another name, or "
        "keep training.early_stopping.metric=val/loss and training.early_stopping.mode=min"
    )
    # What is refused now is no way out.
    assert other_ranking(config, {"metric": "val/auroc", "mode": "min"}) == (
        "chose by val/auroc (min) so far, which does not compare with val/auroc (max): give the run another name"
    )
